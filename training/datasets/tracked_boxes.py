# SPDX-License-Identifier: Apache-2.0
"""True velocity of the points inside tracked boxes, for bags that come with a JSON of boxes.

The JSON has `sweeps`: for each sweep of the bag a list of boxes with track_id, category, center [m], size_lwh [m] and
yaw [rad] in the LiDAR frame. A box moves rigidly between two sweeps; points outside all boxes are unknown, not static.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

# Boxes are annotated tightly: 0.1 m around length and width, and the lowest 0.15 m left out, which is ground.
_MARGIN, _GROUND_MARGIN = 0.1, 0.15


@dataclass(frozen=True)
class BoxPoints:
    """The points of one box in one sweep.

    category: of the box. rows: (K,) row numbers of the sweep. velocity: (K, 3) float64 [m/s], ego motion removed.
    """

    category: str
    rows: np.ndarray
    velocity: np.ndarray


def read_boxes(path: Path) -> list[list[dict]]:
    """Return the boxes of each sweep.

    Raises: DataError when the file is missing or has no `sweeps`.
    """
    try:
        return json.loads(Path(path).read_text())['sweeps']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path} should be a JSON file of tracked boxes with an entry "sweeps": {error!r}') from error


def box_points(points: np.ndarray, boxes: list[dict], previous: list[dict], ego0_T_ego1: np.ndarray, dt: float,
               min_points: int = 5) -> list[BoxPoints]:  # fmt: skip
    """Return the points (N, 3) of a sweep in each box that was also there in the previous sweep.

    boxes, previous: of this sweep and the one before, each in its own frame. ego0_T_ego1: maps this sweep's frame into
    the previous one's. dt: seconds between them.
    """
    before = {box['track_id']: _pose(box) for box in previous}
    found = []
    for box in boxes:
        if box['track_id'] not in before:
            continue
        ego_T_box = _pose(box)
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


def _pose(box: dict) -> np.ndarray:
    return transforms.yaw_translation(box['yaw'], *box['center'])
