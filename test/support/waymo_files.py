# SPDX-License-Identifier: Apache-2.0
"""A small drive of the Waymo Open perception data, written by an independent writer: rays are cast into a small world.

Messages are encoded by the documented wire format, with the field numbers of dataset.proto, label.proto and map.proto.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from drive_world import GROUND_Z, THE_CAR, DriveWorld, moved, pose

START_US = 1_553_735_853_462_203
PERIOD = 0.1  # s
NUM_FRAMES = 5
CONTEXT = '10023947602400723454_1120_000_1140_000'
WALL_Y = 12.0  # m: walls on both sides, 5 m high
MAP_OFFSET_Z = 0.5  # m
TILT = (0.02, -0.03)  # rad: roll and pitch of the vehicle while a sweep is taken, not of the frame's pose
COMPONENTS = ('lidar', 'lidar_pose', 'lidar_calibration', 'vehicle_pose', 'lidar_box')  # of version 2
UNLABELLED = slice(100, 120)  # columns of the TOP LiDAR in a zone without labels
NUM_ROWS, NUM_COLUMNS = 24, 180
# name: (x, y, z, yaw) on the vehicle, rows, columns; the first has listed inclinations, the others uniform ones
LASERS = {
    1: (pose(1.43, 0.0, 2.18, 2.6), NUM_ROWS, NUM_COLUMNS), 2: (pose(4.07, 0.0, 0.69, 0.1), 8, 60),
    3: (pose(3.25, 1.02, 0.98, 1.6), 8, 60), 4: (pose(3.25, -1.02, 0.98, -1.5), 8, 60),
    5: (pose(-1.15, 0.0, 0.46, 3.1), 8, 60),
}  # fmt: skip


def varint(value: int) -> bytes:
    value, out = value & (1 << 64) - 1, b''
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value) -> bytes:
    """Encode one field: int as varint, float as double, bytes or str with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack('<d', value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def transform(matrix) -> bytes:
    return b''.join(field(1, float(number)) for number in np.asarray(matrix).ravel())


def matrix_float(values: np.ndarray) -> bytes:
    """Encode a MatrixFloat, compressed."""
    shape = b''.join(field(1, int(n)) for n in values.shape)
    return zlib.compress(field(1, values.astype('<f4').tobytes()) + field(2, shape), 1)


_CRC = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _CRC.append(_byte)


def masked(data: bytes) -> int:
    """Return the masked CRC-32C, byte by byte."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', masked(length)) + data + struct.pack('<I', masked(data))


def turned(roll, pitch, yaw) -> np.ndarray:
    """Return the rotation about x, then y, then z, (3, 3)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    about_x, about_y = (
        np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]]),
        np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]),
    )
    return np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ about_y @ about_x


@dataclass
class TrueFrame:
    """What a frame shows, by return, laser and cell: points (N, 3) in the frame's vehicle frame.

    is_car, is_unlabelled, is_second: (N,) bool. laser: (N,).
    """

    points: np.ndarray
    is_car: np.ndarray
    is_unlabelled: np.ndarray
    is_second: np.ndarray
    laser: np.ndarray


class WaymoWorld:
    """Ground, two walls and a car. tilt: whether the vehicle rolls and pitches within a sweep."""

    def __init__(self):
        self.drive = DriveWorld()
        self._local_T_world = np.linalg.inv(self.drive.box(THE_CAR, 0.0) @ np.linalg.inv(THE_CAR.pose(0.0)))

    def frame_pose(self, k: int) -> np.ndarray:
        return self.drive.world_T_ego(k * PERIOD + 0.05)

    def car(self, k: int) -> np.ndarray:
        """Return world_T_box of the car in frame k; it stands still within a frame."""
        return self.drive.box(THE_CAR, k * PERIOD)

    def ranges(self, origin, direction, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how far rays in the world get, (R,) [m], -1 beyond 70 m, and whether they end on the car."""
        start = moved(self._local_T_world, origin)
        along = direction @ self._local_T_world[:3, :3].T
        with np.errstate(divide='ignore', invalid='ignore'):
            to_ground = (GROUND_Z - start[:, 2]) / along[:, 2]
            to_wall = (np.sign(along[:, 1]) * WALL_Y - start[:, 1]) / along[:, 1]
            to_wall[start[:, 2] + to_wall * along[:, 2] > 5] = np.inf
            in_car = np.linalg.inv(self.car(k))
            begin, way = moved(in_car, origin), direction @ in_car[:3, :3].T
            half = np.array(THE_CAR.size) / 2 - 0.01
            low, high = np.sort([(-half - begin) / way, (half - begin) / way], axis=0)
        enter, leave = low.max(1), high.min(1)
        to_car = np.where((enter < leave) & (enter > 0), enter, np.inf)
        reach = np.min([np.where(d > 0, d, np.inf) for d in (to_ground, to_wall, to_car)], axis=0)
        return np.where(reach < 70, reach, -1.0), (to_car == reach) & (reach < 70)


def write_frame(world: WaymoWorld, k: int, *, flow=True, boxes=True, with_map=True,
                tables=None) -> tuple[bytes, TrueFrame]:  # fmt: skip
    """Return a serialised frame and what it shows. tables: lists of rows by component, to which the frame is added."""
    tables = {name: [] for name in COMPONENTS} if tables is None else tables
    stamp, context = START_US + round(k * PERIOD * 1e6), CONTEXT
    drive, vehicle_T_world = world.drive, np.linalg.inv(world.frame_pose(k))
    calibrations, lasers, shown = b'', {}, {(ret, name): None for ret in (0, 1) for name in LASERS}
    for name, (mount, rows, columns) in LASERS.items():
        if name == 1:
            inclinations = np.linspace(-0.3, 0.04, rows) ** 3 * 10  # not uniform, ascending
            listed = b''.join(field(2, float(one)) for one in inclinations)
        else:
            inclinations = -0.5 + (np.arange(rows) + 0.5) / rows * 0.6
            listed = field(3, -0.5) + field(4, 0.1)
        calibrations += field(3, field(1, name) + listed + field(5, transform(mount)))
        # In the sensor's frame, column j lies at an azimuth that is measured from the vehicle's x axis.
        azimuth = np.pi - (np.arange(columns) + 0.5) * 2 * np.pi / columns - np.arctan2(mount[1, 0], mount[0, 0])
        up, around = np.meshgrid(inclinations[::-1], azimuth, indexing='ij')
        ray = np.stack([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)], -1)  # (H, W, 3)
        poses = np.broadcast_to(world.frame_pose(k), (columns, 4, 4)).copy()
        stored = np.zeros((rows, columns, 6))
        if name == 1:
            for j in range(columns):
                time = k * PERIOD + j / columns * PERIOD
                angles = (*TILT, drive.ego_yaw(time))
                poses[j] = drive.world_T_ego(time)
                stored[:, j] = (*angles, *poses[j][:3, 3])
                stored[:, j] = stored[:, j].astype(np.float32)  # what can be written
                poses[j][:3, :3], poses[j][:3, 3] = turned(*stored[0, j, :3]), stored[0, j, 3:]
        world_T_laser = poses @ mount  # (W, 4, 4)
        direction = np.einsum('jab,ijb->ija', world_T_laser[:, :3, :3], ray)
        origin = np.broadcast_to(world_T_laser[:, :3, 3], direction.shape)
        reach, on_car = world.ranges(origin.reshape(-1, 3), direction.reshape(-1, 3), k)
        reach, on_car = reach.reshape(rows, columns).astype(np.float32), on_car.reshape(rows, columns)
        is_second = (np.arange(rows * columns).reshape(rows, columns) % 7 == 0) & (reach > 0)
        is_second &= origin[..., 2] + direction[..., 2] * (reach + 8) > 0  # above ground
        second = np.where(is_second, reach + 8, -1)  # behind the car, if it is hit
        images, row = (
            [],
            {'key.segment_context_name': context, 'key.frame_timestamp_micros': stamp, 'key.laser_name': name},
        )
        for number, (distance, is_car) in enumerate([(reach, on_car), (second, np.zeros_like(on_car))]):
            cells = np.stack([distance, distance * 0 + 0.5, distance * 0, distance * 0 - 1], -1)
            if name == 1:
                cells[:, UNLABELLED, 3] = 1
            image = field(2, matrix_float(cells)) + field(3, b'not read')
            values = {'values': cells.ravel().astype(np.float32), 'shape': cells.shape}
            row |= {f'[LiDARComponent].range_image_return{number + 1}.{part}': one for part, one in values.items()}
            if name == 1 and number == 0:
                image += field(4, matrix_float(stored))
                prefix = '[LiDARPoseComponent].range_image_return1'
                tables['lidar_pose'].append({
                    'key.frame_timestamp_micros': stamp, 'key.laser_name': 1, f'{prefix}.shape': stored.shape,
                    f'{prefix}.values': stored.ravel().astype(np.float32),
                })  # fmt: skip
            hit = distance > 0
            points = origin[hit] + direction[hit] * distance[hit][:, None]
            label = np.full((rows, columns, 4), -1.0)
            label[hit] = 0
            label[hit & is_car, :3] = velocity(world, k, points[is_car[hit]])
            label[hit & is_car, 3] = 1
            label[cells[..., 3] > 0] = [0, 0, 0, -1]
            image += field(5, matrix_float(label)) if flow else b''
            images.append(image)
            shown[number, name] = (moved(vehicle_T_world, points), is_car[hit], cells[..., 3][hit] > 0,
                                   np.full(len(points), number == 1), np.full(len(points), name))  # fmt: skip
        tables['lidar'].append(row)
        if k == 0:
            prefix = '[LiDARCalibrationComponent]'
            tables['lidar_calibration'].append({
                'key.segment_context_name': context, 'key.laser_name': name,
                f'{prefix}.extrinsic.transform': mount.ravel(),
                f'{prefix}.beam_inclination.min': -0.5, f'{prefix}.beam_inclination.max': 0.1,
                f'{prefix}.beam_inclination.values': inclinations if name == 1 else None,
            })  # fmt: skip
        lasers[name] = field(5, field(1, name) + field(2, images[0]) + field(3, images[1]))
    frame = field(1, field(1, CONTEXT) + field(2, b'') + calibrations)
    frame += field(2, START_US + round(k * PERIOD * 1e6)) + field(3, transform(world.frame_pose(k)))
    frame += field(4, field(1, 1) + field(2, bytes(500))) + b''.join(lasers[name] for name in (2, 1, 5, 4, 3))
    tables['vehicle_pose'].append({
        'key.segment_context_name': context, 'key.frame_timestamp_micros': stamp,
        '[VehiclePoseComponent].world_from_vehicle.transform': world.frame_pose(k).ravel(),
    })  # fmt: skip
    if boxes:
        x, y, z = (vehicle_T_world @ world.car(k))[:3, 3]
        heading = THE_CAR.yaw + THE_CAR.yaw_rate * k * PERIOD - drive.ego_yaw(k * PERIOD + 0.05)
        numbers = enumerate((x, y, z, THE_CAR.size[1], THE_CAR.size[0], THE_CAR.size[2], heading), 1)
        box = b''.join(field(number, float(value)) for number, value in numbers)
        prefix = '[LiDARBoxComponent].box'
        tables['lidar_box'].append({
            'key.frame_timestamp_micros': stamp, 'key.laser_object_id': 'car', '[LiDARBoxComponent].type': 1,
            **{f'{prefix}.center.{axis}': float(one) for axis, one in zip('xyz', (x, y, z), strict=True)},
            **{f'{prefix}.size.{axis}': one for axis, one in zip('xyz', THE_CAR.size, strict=True)},
            f'{prefix}.heading': float(heading),
        })  # fmt: skip
        frame += field(6, field(1, box) + field(3, 1) + field(4, 'car'))
    if k == 0 and with_map:
        frame += field(10, field(1, 77) + field(5, field(1, 1) + b''.join(field(2, point) for point in map_points())))
    frame += field(11, field(3, MAP_OFFSET_Z))
    return frame, TrueFrame(*(np.concatenate(parts) for parts in zip(*shown.values(), strict=True)))


def map_points() -> list[bytes]:
    """Return points of a road edge, every 2 m, so that the world plus the offset lies on it."""
    points = []
    for x in range(-40, 41, 2):
        for y in range(-12, 13, 2):
            numbers = enumerate((600.0 + x, 1600.0 + y, GROUND_Z + MAP_OFFSET_Z), 1)
            points.append(b''.join(field(number, float(value)) for number, value in numbers))
    return points


def velocity(world: WaymoWorld, k: int, points: np.ndarray) -> np.ndarray:
    """Return the velocity since the frame before of points (N, 3) on the car, in the axes of the vehicle."""
    before = moved(world.car(k - 1) @ np.linalg.inv(world.car(k)), points)
    return (points - before) / PERIOD @ world.frame_pose(k)[:3, :3]


def write_waymo(root, **options) -> list[TrueFrame]:
    """Write a drive as one file, and return what its frames show."""
    world = WaymoWorld()
    frames = [write_frame(world, k, **options) for k in range(NUM_FRAMES)]
    root.mkdir(exist_ok=True)
    path = root / f'segment-{CONTEXT}_with_camera_labels.tfrecord'
    path.write_bytes(b''.join(record(data) for data, _ in frames))
    return [true for _, true in frames]


def write_tables(root, change=lambda tables: None, rows_per_group=7) -> list[TrueFrame]:
    """Write the same drive as tables of version 2, after change(tables), and return what its frames show."""
    import pyarrow as pa
    from pyarrow import parquet

    tables, world = {name: [] for name in COMPONENTS}, WaymoWorld()
    true = [write_frame(world, k, tables=tables)[1] for k in range(NUM_FRAMES)]
    change(tables)
    for name, rows in tables.items():
        if not rows:
            continue
        types = {}
        for column in rows[0]:
            if column.endswith('.shape'):
                types[column] = pa.list_(pa.int32(), 3)
            elif column.endswith('transform'):
                types[column] = pa.list_(pa.float64(), 16)
            elif column.endswith('image_return1.values') or column.endswith('image_return2.values'):
                types[column] = pa.list_(pa.float32())
        columns = {column: pa.array([row[column] for row in rows], types.get(column)) for column in rows[0]}
        (root / name).mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), root / name / f'{CONTEXT}.parquet', row_group_size=rows_per_group)
    return true
