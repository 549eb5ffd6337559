# SPDX-License-Identifier: Apache-2.0
"""Ground-truth flow of the points inside tracked boxes, for bags with a JSON of boxes.

The JSON has `sweeps`: for each sweep of the bag a list of boxes with track_id, category, center [m], size_lwh [m] and
yaw [rad] in the LiDAR frame. A box moves rigidly between two sweeps; points outside all boxes are unknown, not static.
If boxes were annotated in a camera image, it also has `lidar_to_image_3x4` and `image_size_wh`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets.pairs import GroundTruthFlow, MetaClass
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair

_FARTHEST = 1e6  # m: out of LiDAR range, and its flow would overflow float32
# Boxes are annotated tightly: 0.1 m is added around length and width; the lowest 0.15 m is ground and left out.
_MARGIN, _GROUND_MARGIN = 0.1, 0.15

# KITTI's categories and the plain class names, in lower case. A van is a car, as in Argoverse 2.
_META_CLASS = {
    'car': MetaClass.CAR, 'van': MetaClass.CAR,
    'truck': MetaClass.OTHER_VEHICLES, 'tram': MetaClass.OTHER_VEHICLES, 'bus': MetaClass.OTHER_VEHICLES,
    'pedestrian': MetaClass.PEDESTRIAN, 'person_sitting': MetaClass.PEDESTRIAN,
    'person (sitting)': MetaClass.PEDESTRIAN,
    'cyclist': MetaClass.WHEELED_VRU, 'motorcyclist': MetaClass.WHEELED_VRU,
    'misc': MetaClass.IGNORED,
}  # fmt: skip


@dataclass(frozen=True)
class BoxPoints:
    """The points of one box in one sweep.

    category: of the box. rows: (K,) row numbers of the sweep. velocity: (K, 3) float64 [m/s], ego motion removed.
    """

    category: str
    rows: np.ndarray
    velocity: np.ndarray


@dataclass(frozen=True)
class TrackedBoxes:
    """The boxes of a bag.

    path: of the JSON. sweeps: the boxes of each cloud of the bag. lidar_to_image: (3, 4) projection to pixels, and
    image_size (2,), width and height [px], of the camera in whose image all boxes were annotated; None: all around.
    """

    path: Path
    sweeps: list[list[dict]]
    lidar_to_image: np.ndarray | None = None
    image_size: np.ndarray | None = None

    @classmethod
    def read(cls, path: Path) -> 'TrackedBoxes':
        """Raises: DataError when the file is missing, has no `sweeps`, or has an incomplete box."""
        sweeps, content = read_boxes(path), json.loads(Path(path).read_text())
        for box in (box for boxes in sweeps for box in boxes):
            if not _is_complete(box):
                raise DataError(
                    f'{path}: a box needs track_id, category, center, size_lwh and yaw, got {str(box)[:300]}.'
                )
            if box['category'].lower() not in _META_CLASS:
                category = box['category'][:80]
                raise DataError(
                    f'{path} has a box of category {category!r}. Known categories: {", ".join(_META_CLASS)}.'
                )
        if 'lidar_to_image_3x4' not in content:
            return cls(Path(path), sweeps)
        try:
            lidar_to_image = np.array(content['lidar_to_image_3x4'], np.float64).reshape(3, 4)
            size = np.array(content['image_size_wh'], np.float64).reshape(2)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = repr(error)[:300]
            raise DataError(
                f'{path}: lidar_to_image_3x4 should be 3 rows of 4, and image_size_wh two numbers: {reason}'
            ) from error
        return cls(Path(path), sweeps, lidar_to_image, size)

    def ground_truth_flow(self, pair: SweepPair, number0: int, number1: int) -> GroundTruthFlow:
        """Return the flow of points inside boxes that both sweeps have; number0, number1: of the sweeps in the bag.

        All other points, those in two boxes, and those outside the camera's image are not valid.
        """
        num_points = len(pair.points0)
        flow = np.zeros((num_points, 3), np.float32)
        meta_class, num_boxes = np.zeros(num_points, np.uint8), np.zeros(num_points, np.uint8)
        ego1_T_ego0 = transforms.invert(pair.ego0_T_ego1)
        # `box_points` runs backwards in time here, so the flow is minus its velocity times dt.
        for box in box_points(pair.points0, self.sweeps[number0], self.sweeps[number1], ego1_T_ego0, pair.dt, 1):
            flow[box.rows] = -box.velocity * pair.dt
            meta_class[box.rows] = _META_CLASS[box.category.lower()]
            num_boxes[box.rows] += 1
        return GroundTruthFlow(flow, meta_class, (num_boxes == 1) & self.is_in_image(pair.points0))

    def is_in_image(self, points: np.ndarray) -> np.ndarray:
        """Return which of points (N, 3) are inside the image."""
        if self.lidar_to_image is None:
            return np.ones(len(points), bool)
        pixels = points @ self.lidar_to_image[:, :3].T + self.lidar_to_image[:, 3]  # (N, 3), times depth
        inside = (pixels[:, :2] >= 0) & (pixels[:, :2] < self.image_size * pixels[:, 2:])
        return inside.all(1) & (pixels[:, 2] > 0)


def read_boxes(path: Path) -> list[list[dict]]:
    """Return the boxes of each sweep.

    Raises: DataError when the file is missing or has no `sweeps`.
    """
    try:
        return [list(boxes) for boxes in json.loads(Path(path).read_text())['sweeps']]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = repr(error)[:300]
        raise DataError(f'{path} should be a JSON file of tracked boxes with an entry "sweeps": {reason}') from error


def box_points(points: np.ndarray, boxes: list[dict], previous: list[dict], ego0_T_ego1: np.ndarray, dt: float,
               min_points: int = 5) -> list[BoxPoints]:  # fmt: skip
    """Return the points (N, 3) of a sweep in each box that the previous sweep has too.

    boxes, previous: boxes of this and of the previous sweep, each in its own frame. ego0_T_ego1: this frame into
    the previous one's. dt: seconds between them.
    """
    before = {box['track_id']: pose_of(box) for box in previous}
    found = []
    for box in boxes:
        if box['track_id'] not in before:
            continue
        ego_T_box = pose_of(box)
        in_box = transforms.apply(transforms.invert(ego_T_box), points.astype(np.float64))
        length, width, height = box['size_lwh']
        half = np.array([length / 2 + _MARGIN, width / 2 + _MARGIN, height / 2])
        inside = (np.abs(in_box) <= half).all(1) & (in_box[:, 2] > -height / 2 + _GROUND_MARGIN)
        rows = np.flatnonzero(inside)
        if len(rows) < min_points:
            continue
        ego1_T_past = transforms.invert(ego0_T_ego1) @ before[box['track_id']] @ transforms.invert(ego_T_box)
        now = points[rows].astype(np.float64)
        found.append(BoxPoints(box['category'], rows, (now - transforms.apply(ego1_T_past, now)) / dt))
    return found


def pose_of(box: dict) -> np.ndarray:
    """Return ego_T_box (4, 4)."""
    return transforms.yaw_translation(box['yaw'], *box['center'])


def _is_complete(box) -> bool:
    """Return whether a box has all fields, of the right types, with finite numbers in range."""
    try:
        numbers = [*box['center'], *box['size_lwh'], box['yaw']]
        named = isinstance(box['category'], str) and isinstance(box['track_id'], str | int)
    except (KeyError, TypeError):
        return False
    plain = all(type(number) in (int, float) and -_FARTHEST <= number <= _FARTHEST for number in numbers)  # and not NaN
    return named and plain and len(box['center']) == 3 and len(box['size_lwh']) == 3
