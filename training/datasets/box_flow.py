# SPDX-License-Identifier: Apache-2.0
"""Ground-truth flow from boxes: the points in a box move with it, all others are static."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from training.datasets.pairs import GroundTruthFlow, MetaClass
from zeroflow_ros import transforms

BOX_MARGIN = 0.2  # m added to the length and width of boxes, which are annotated tightly. Source: av2's scene flow


@dataclass(frozen=True)
class MovingBox:
    """A box at the times of both sweeps of a pair, both in the frame of the sweep whose points get the flow.

    ego0_T_box: (4, 4), when those points are measured. ego0_T_later: (4, 4), when the other sweep is measured; None
    where the box is then not known. half_size: (3,) [m], half of length, width and height. meta_class: a MetaClass.
    """

    ego0_T_box: np.ndarray
    ego0_T_later: np.ndarray | None
    half_size: np.ndarray
    meta_class: int


def box_flow(points: np.ndarray, boxes: Iterable[MovingBox]) -> GroundTruthFlow:
    """Return the flow of points (N, 3) float32 [m] in ego0, by the boxes they are in; the last one counts.

    Points outside all boxes are static background. Points in a box that is not known later, and rows that are not
    finite, are not valid.
    """
    flow, is_valid = np.zeros_like(points), np.isfinite(points).all(1)
    meta_class = np.full(len(points), MetaClass.BACKGROUND, np.uint8)
    for box in boxes:
        rows, inside = points_in_box(points, box.ego0_T_box, box.half_size)
        meta_class[rows], is_valid[rows] = box.meta_class, box.ego0_T_later is not None
        if box.ego0_T_later is None or np.array_equal(box.ego0_T_later, box.ego0_T_box):
            flow[rows] = 0  # exactly, without rounding
        else:
            ego0_T_past = box.ego0_T_later @ transforms.invert(box.ego0_T_box)
            flow[rows] = transforms.apply(ego0_T_past, inside) - inside
    return GroundTruthFlow(flow, meta_class, is_valid)


def points_in_box(points: np.ndarray, ego_T_box: np.ndarray, half_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers (K,) of the points (N, 3) [m] in a box, and those points (K, 3) as float64."""
    reach = np.linalg.norm(half_size)
    near = np.flatnonzero((np.abs(points - ego_T_box[:3, 3]) < reach).all(1))
    found = points[near].astype(np.float64)
    inside = (np.abs(transforms.apply(transforms.invert(ego_T_box), found)) <= half_size).all(1)
    return near[inside], found[inside]
