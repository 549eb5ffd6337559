# SPDX-License-Identifier: Apache-2.0
"""One frame of the Waymo Open perception data: points of its range images, scene flow labels, boxes and map.

Source: dataset.proto, label.proto and map.proto of waymo-open-dataset, whose field numbers stand below, and the
geometry of its range images: rows go from the highest beam to the lowest, columns from azimuth pi to -pi, in a sensor
frame that is not turned about z against the vehicle. Cells of the TOP LiDAR have a vehicle pose of their own.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from training.datasets.drive_pairs import rigid_transform
from training.datasets.protobuf_wire import Message
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

TOP = 1  # LaserName
LASERS = {1: 'TOP', 2: 'FRONT', 3: 'SIDE_LEFT', 4: 'SIDE_RIGHT', 5: 'REAR'}
NO_FLOW = -1  # class of points without scene flow label
_FARTHEST = 1e4  # m: no LiDAR sees farther
_LARGEST = 1 << 28  # bytes of an unpacked matrix; the largest real one has 4 MB
_CONTEXT, _STAMP, _POSE, _LASERS, _LABELS, _MAP, _MAP_OFFSET = 1, 2, 3, 5, 6, 10, 11  # of Frame
_RETURNS = (2, 3)  # of Laser: ri_return1, ri_return2
_RANGES, _CELL_POSES, _FLOW = 2, 4, 5  # of RangeImage, all compressed
_MAP_SHAPES = {4: 2, 5: 2, 8: 1}  # of MapFeature: road_line, road_edge, crosswalk, and where their points are


@dataclass(frozen=True)
class FrameHeader:
    """What a frame says of itself. context: name of its drive. world_T_vehicle: (4, 4) of the middle of the frame."""

    context: str
    stamp_us: int
    world_T_vehicle: np.ndarray
    has_flow: bool


@dataclass(frozen=True)
class FramePoints:
    """The returns of one frame, in the vehicle frame of its middle.

    points: (N, 3) float32 [m]. is_unlabelled: (N,) bool, in a zone without labels. velocity: (N, 3) float32 [m/s] over
    ground in the axes of the vehicle, and its kind (N,) int8, NO_FLOW where there is none; None without labels.
    """

    points: np.ndarray
    is_unlabelled: np.ndarray
    velocity: np.ndarray | None
    kind: np.ndarray | None


@dataclass(frozen=True)
class LabelBox:
    """A labelled box. vehicle_T_box: (4, 4). half_size: (3,) [m]. kind: Label.Type."""

    vehicle_T_box: np.ndarray
    half_size: np.ndarray
    kind: int


def frame_header(data, what: str) -> FrameHeader:
    """Return the header of a serialised frame. what: names it in errors. Raises: DataError when it is no frame."""
    frame = Message(data, what)
    context, pose = frame.message(_CONTEXT, f'{what}, context'), frame.message(_POSE, f'{what}, pose')
    if not (_CONTEXT in frame and _STAMP in frame and _POSE in frame):
        raise DataError(f'{what} is no frame of the Waymo Open perception data: it lacks context, timestamp or pose.')
    images = (
        laser.message(number, f'{what}, range image')
        for laser in frame.messages(_LASERS, f'{what}, laser')
        for number in _RETURNS
    )
    has_flow = any(_FLOW in image for image in images)
    pose = rigid_transform(pose.doubles(1), f'The pose of {what}')
    return FrameHeader(context.text(1), frame.integer(_STAMP), pose, has_flow)


def frame_points(data, what: str, *, only_top: bool = False, only_first: bool = False) -> FramePoints:
    """Return the returns of a frame: by return, laser and cell, as far as wanted.

    only_top: of the TOP LiDAR only. only_first: first returns only. Raises: DataError when it is damaged.
    """
    frame = Message(data, what)
    world_T_vehicle = rigid_transform(frame.message(_POSE, what).doubles(1), f'The pose of {what}')
    calibrations = {
        calibration.integer(1): calibration
        for calibration in frame.message(_CONTEXT, f'{what}, context').messages(3, f'{what}, calibration')
    }
    lasers = sorted(frame.messages(_LASERS, f'{what}, laser'), key=lambda laser: laser.integer(1))
    parts, poses = [], {}
    for number in _RETURNS[:1] if only_first else _RETURNS:
        for laser in lasers:
            name, where = laser.integer(1), f'{what}, {LASERS.get(laser.integer(1), "unknown laser")}'
            image = laser.message(number, where)
            if (only_top and name != TOP) or _RANGES not in image:
                continue
            if name not in calibrations:
                raise DataError(f'{where}: there is no calibration of this laser.')
            if _CELL_POSES in image:  # with the first return only; the second one has the same
                poses[name] = _matrix(image.bytes(_CELL_POSES), 6, f'{where}, poses')
            if name == TOP and name not in poses:
                raise DataError(f'{where}: the range image lacks the poses of its cells.')
            parts.append(_image_points(image, calibrations[name], poses.get(name), world_T_vehicle, where))
    if not parts:
        raise DataError(f'{what} holds no range image of the wanted LiDARs.')
    points, is_unlabelled = (np.concatenate([getattr(part, name) for part in parts]) for name in
                             ('points', 'is_unlabelled'))  # fmt: skip
    if all(part.kind is None for part in parts):
        return FramePoints(points, is_unlabelled, None, None)
    velocity, kind = np.zeros_like(points), np.full(len(points), NO_FLOW, np.int8)
    ends = np.cumsum([len(part.points) for part in parts])
    for part, end in zip(parts, ends.tolist(), strict=True):
        if part.kind is not None:
            rows = slice(end - len(part.points), end)
            velocity[rows], kind[rows] = part.velocity, part.kind
    return FramePoints(points, is_unlabelled, velocity, kind)


def frame_boxes(data, what: str) -> dict[str, LabelBox]:
    """Return the labelled boxes of a frame by their id. Raises: DataError for a box without a size."""
    found = {}
    for label in Message(data, what).messages(_LABELS, f'{what}, label'):
        box, name = label.message(1, f'{what}, box'), label.text(4)
        x, y, z, width, length, height, heading = (box.double(number, float('nan')) for number in range(1, 8))
        half_size = np.array([length, width, height]) / 2
        is_near = (np.abs([x, y, z, *half_size]) < _FARTHEST).all() and np.isfinite(heading)  # NaN is not
        if not (is_near and (half_size > 0).all()):
            raise DataError(f'{what}: the box {name!r} lacks a position or a size.')
        found[name] = LabelBox(transforms.yaw_translation(heading, x, y, z), half_size, label.integer(3))
    return found


def map_points(data, what: str) -> np.ndarray:
    """Return the points of road lines, road edges and crosswalks, (N, 3) float64 [m] in the world; none: no map."""
    frame, found = Message(data, what), []
    for feature in frame.messages(_MAP, f'{what}, map'):
        for number, points in _MAP_SHAPES.items():
            shape = feature.message(number, f'{what}, map feature')
            found += [[point.double(axis) for axis in (1, 2, 3)] for point in shape.messages(points, f'{what}, map')]
    return np.array(found, np.float64).reshape(-1, 3)


def map_offset(data, what: str) -> np.ndarray:
    """Return what is added to points of a frame in the world, to agree with the map, (3,) [m]."""
    offset = Message(data, what).message(_MAP_OFFSET, f'{what}, map offset')
    return np.array([offset.double(axis) for axis in (1, 2, 3)])


def range_image_points(ranges: np.ndarray, inclinations: np.ndarray, vehicle_T_laser: np.ndarray) -> np.ndarray:
    """Return the points (H, W, 3) float64 [m] of a range image, each in the vehicle frame at its own time.

    ranges: (H, W) [m]. inclinations: (H,) [rad] of the rows.
    """
    width = ranges.shape[1]
    turn = np.arctan2(vehicle_T_laser[1, 0], vehicle_T_laser[0, 0])
    azimuth = np.pi * (1 - 2 * (np.arange(width) + 0.5) / width) - turn  # (W,)
    level = np.cos(inclinations)[:, None] * ranges
    in_laser = np.stack(
        [np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(inclinations)[:, None] * ranges], axis=-1
    )
    return in_laser @ vehicle_T_laser[:3, :3].T + vehicle_T_laser[:3, 3]


def _image_points(image: Message, calibration: Message, cell_poses: np.ndarray | None, world_T_vehicle: np.ndarray,
                  what: str) -> FramePoints:  # fmt: skip
    cells = _matrix(image.bytes(_RANGES), 4, f'{what}, range image')  # range, intensity, elongation, in no-label zone
    height, width = cells.shape[:2]
    vehicle_T_laser = rigid_transform(calibration.message(5, what).doubles(1), f'The extrinsic of {what}')
    inclinations = calibration.doubles(2)[::-1]
    if not len(inclinations):
        low, high = calibration.double(3), calibration.double(4)
        inclinations = (low + (high - low) * (np.arange(height) + 0.5) / height)[::-1]
    if len(inclinations) != height or not np.isfinite(inclinations).all():
        raise DataError(f'{what}: {height} rows of the range image have {len(inclinations)} beam inclinations.')
    is_return = (cells[..., 0] > 0) & (cells[..., 0] < _FARTHEST)  # (H, W); NaN is none
    ranges = np.where(is_return, cells[..., 0], 0).astype(np.float64)
    points = range_image_points(ranges, inclinations, vehicle_T_laser)[is_return]
    if cell_poses is not None:
        if cell_poses.shape[:2] != (height, width):
            raise DataError(f'{what}: {cells.shape[:2]} cells have {cell_poses.shape[:2]} poses.')
        points = _from_cell_frames(points, cell_poses[is_return].astype(np.float64), world_T_vehicle)
    velocity = kind = None
    if _FLOW in image:
        flow = _matrix(image.bytes(_FLOW), 4, f'{what}, scene flow')  # vx, vy, vz, class
        if flow.shape[:2] != (height, width):
            raise DataError(f'{what}: {cells.shape[:2]} cells have {flow.shape[:2]} scene flow labels.')
        flow = flow[is_return]
        is_label = (np.abs(flow[:, :4]) < 127).all(1)  # m/s and class; NaN is none
        velocity, kind = flow[:, :3].copy(), np.where(is_label, flow[:, 3], NO_FLOW).astype(np.int8)
    points[~(np.abs(points) < _FARTHEST).all(1)] = np.nan  # a cell with a senseless pose
    return FramePoints(points.astype(np.float32), cells[..., 3][is_return] > 0, velocity, kind)


def _from_cell_frames(points: np.ndarray, poses: np.ndarray, world_T_vehicle: np.ndarray) -> np.ndarray:
    """Return points (N, 3), each in the vehicle frame of its own pose (N, 6), in the one of the frame.

    poses: roll, pitch, yaw [rad], x, y, z [m] in the world: turned about x first, then y, then z.
    """
    roll, pitch, yaw = poses[:, :3].T
    x, y, z = points.T
    y, z = np.cos(roll) * y - np.sin(roll) * z, np.sin(roll) * y + np.cos(roll) * z
    x, z = np.cos(pitch) * x + np.sin(pitch) * z, np.cos(pitch) * z - np.sin(pitch) * x
    x, y = np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y
    return transforms.apply(transforms.invert(world_T_vehicle), np.stack([x, y, z], axis=1) + poses[:, 3:])


def _matrix(compressed: memoryview, channels: int, what: str) -> np.ndarray:
    """Return a MatrixFloat, compressed by zlib, as (H, W, C) float32 with at least that many channels."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(compressed, _LARGEST)
    except zlib.error as error:
        raise DataError(f'{what} should be compressed by zlib: {error}.') from error
    if not unpacker.eof:
        raise DataError(f'{what} is cut, or unpacks to more than {_LARGEST >> 20} MB.')
    matrix = Message(data, what)
    values, shape = matrix.floats(1), matrix.message(2, what).integers(1)
    if len(shape) != 3 or shape[2] < channels or len(values) != np.prod(shape):
        raise DataError(f'{what} should be (H, W, {channels}), has the shape {shape} and {len(values)} numbers.')
    return values.reshape(shape)
