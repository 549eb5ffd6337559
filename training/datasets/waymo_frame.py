# SPDX-License-Identifier: Apache-2.0
"""One frame of the Waymo Open perception data, version 1: points of its range images, labels, boxes and map.

Source: dataset.proto, label.proto and map.proto of waymo-open-dataset, whose field numbers stand below.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from training.datasets.drive_pairs import rigid_transform
from training.datasets.protobuf_wire import Message
from training.datasets.range_image import (
    LASERS,
    TOP,
    FramePoints,
    LabelBox,
    LaserMount,
    image_points,
    join_points,
    label_box,
)
from zeroflow_ros.errors import DataError

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
            cells = _matrix(image.bytes(_RANGES), 4, f'{where}, range image')
            flow = _matrix(image.bytes(_FLOW), 4, f'{where}, scene flow') if _FLOW in image else None
            mount = _mount(calibrations[name], where)
            parts.append(image_points(cells, mount, poses.get(name), world_T_vehicle, flow, where))
    if not parts:
        raise DataError(f'{what} holds no range image of the wanted LiDARs.')
    return join_points(parts)


def frame_boxes(data, what: str) -> dict[str, LabelBox]:
    """Return the labelled boxes of a frame by their id. Raises: DataError for a box without a size."""
    found = {}
    for label in Message(data, what).messages(_LABELS, f'{what}, label'):
        box, name = label.message(1, f'{what}, box'), label.text(4)
        x, y, z, width, length, height, heading = (box.double(number, float('nan')) for number in range(1, 8))
        found[name] = label_box(
            (x, y, z), (length, width, height), heading, label.integer(3), f'{what}: the box {name!r}'
        )
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


def _mount(calibration: Message, what: str) -> LaserMount:
    vehicle_T_laser = rigid_transform(calibration.message(5, what).doubles(1), f'The extrinsic of {what}')
    return LaserMount(vehicle_T_laser, calibration.doubles(2), calibration.double(3), calibration.double(4))
