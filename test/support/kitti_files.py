# SPDX-License-Identifier: Apache-2.0
"""Small files in the layouts of KITTI, written from their description, with a PNG writer of its own."""

import struct
import zlib
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 24, 10
FOCAL, BASELINE = 20.0, 0.5
# Disparities and flow [px] of all pixels but those in UNKNOWN; exact in the formats.
DISPARITY, OTHER_DISPARITY, FLOW = 4.5, 5.25, (-1.5, 2.25)
UNKNOWN = (0, 0)  # row and column without any truth
OCCLUDED = (2, 3)  # row and column with truth in the occ folders only
CAR = (slice(4, 8), slice(10, 20))


def png(image: np.ndarray) -> bytes:
    """Return (H, W) or (H, W, 3) uint8 or uint16, red first, as PNG."""
    height, width = image.shape[:2]
    color = 0 if image.ndim == 2 else 2
    rows = image.astype(image.dtype.newbyteorder('>')).reshape(height, -1)
    raw = b''.join(b'\0' + row.tobytes() for row in rows)
    header = struct.pack('>IIBBBBB', width, height, 8 * image.dtype.itemsize, color, 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b'')


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def camera_calibration(width: int = WIDTH, height: int = HEIGHT) -> str:
    """Return the text of a calib_cam_to_cam file."""

    def projection(offset):
        return f'{FOCAL} 0 {width / 2} {offset} 0 {FOCAL} {height / 2} 0 0 0 1 0'

    return '\n'.join(
        [
            'calib_time: 09-Jan-2012 13:57:47',
            'corner_dist: 9.950000e-02',
            f'S_rect_02: {width:.6e} {height:.6e}',
            'R_rect_00: 1 0 0 0 1 0 0 0 1',
            f'P_rect_02: {projection(0.06 * FOCAL)}',
            f'P_rect_03: {projection((0.06 - BASELINE) * FOCAL)}',
        ]
    )


def photo(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write_scene(root: Path, scene: int = 0, *, frames=(10, 11), truth: bool = True, size=(WIDTH, HEIGHT)) -> Path:
    """Write one scene of KITTI scene flow 2015 into the folder of a split; return that folder."""
    for frame in frames:
        for eye in (2, 3):
            image = photo(100 * frame + eye, *size)
            write(root / f'image_{eye}' / f'{scene:06d}_{frame:02d}.png', png(image))
    write(root / 'calib_cam_to_cam' / f'{scene:06d}.txt', camera_calibration(*size))
    if truth:
        for folder, image in truth_images(*size).items():
            write(root / folder / f'{scene:06d}_10.png', png(image))
    return root


def truth_images(width: int = WIDTH, height: int = HEIGHT) -> dict[str, np.ndarray]:
    """Return the images of the ground truth by folder."""
    found = {}
    for folder, value in (('disp_{}_0', DISPARITY), ('disp_{}_1', OTHER_DISPARITY)):
        image = np.full((height, width), round(256 * value), np.uint16)
        image[UNKNOWN] = 0
        found[folder.format('occ')] = image
    flow = np.empty((height, width, 3), np.uint16)
    flow[:] = round(64 * FLOW[0] + 2**15), round(64 * FLOW[1] + 2**15), 1
    flow[UNKNOWN] = 0
    found['flow_occ'] = flow
    for name, image in list(found.items()):
        visible = image.copy()
        visible[OCCLUDED] = 0
        found[name.replace('occ', 'noc')] = visible
    found['obj_map'] = np.zeros((height, width), np.uint8)
    found['obj_map'][CAR] = 7
    return found


LATITUDE, LONGITUDE = 49.0, 8.4
IMU_T_CAMERA = np.array([[0, 0, 1, 1.1], [-1, 0, 0, 0.26], [0, -1, 0, 0.8], [0, 0, 0, 1]])  # see write_drive


def write_drive(day: Path, motion=((0, 0), (1, 0), (2, 0)), *, delay_ms: float = 0.0) -> Path:
    """Write a drive of KITTI raw data into the folder of a day; return its folder.

    motion: metres to the east and heading [rad] of the IMU at each frame, 0.1 s apart; the heading of 0 is east.
    delay_ms: by how much the images are later than the poses.
    """
    write(day / 'calib_cam_to_cam.txt', camera_calibration())
    # Camera 0 is 1.1 m before the IMU, 0.2 m to its left and 0.8 m above it; camera 2 is 6 cm further left.
    write(
        day / 'calib_velo_to_cam.txt', 'calib_time: 15-Mar-2012\nR: 0 -1 0 0 0 -1 1 0 0\nT: 0 -0.08 -0.27\ndelta_f: 0 0'
    )
    write(day / 'calib_imu_to_velo.txt', 'R: 1 0 0 0 1 0 0 0 1\nT: -0.83 -0.2 -0.88')
    drive = day / '2011_09_26_drive_0005_sync'
    earth = 6378137 * np.cos(np.radians(LATITUDE))
    stamps = {'image_02': [], 'oxts': []}
    for k, (east, yaw) in enumerate(motion):
        for eye in (2, 3):
            write(drive / f'image_0{eye}' / 'data' / f'{k:010d}.png', png(photo(10 * k + eye)))
        longitude = LONGITUDE + np.degrees(east / earth)
        numbers = [LATITUDE, longitude, 112.0, 0.0, 0.0, yaw, *[0.0] * 24]
        write(drive / 'oxts' / 'data' / f'{k:010d}.txt', ' '.join(f'{number:.14g}' for number in numbers))
        for name, late_ms in (('oxts', 0), ('image_02', delay_ms)):
            fraction = 0.1 * k + 0.25 + 1e-3 * late_ms
            stamps[name].append(f'2011-09-26 13:02:{25 + int(fraction):02d}.{round(1e9 * (fraction % 1)):09d}')
    for name, lines in stamps.items():
        write(drive / name / 'timestamps.txt', '\n'.join(lines) + '\n')
    return drive
