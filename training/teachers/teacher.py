# SPDX-License-Identifier: Apache-2.0
"""What every teacher does: flow for both sweeps of a pair, from the points alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from training.datasets.pairs import DatasetPair, PairDataset
    from training.pseudo_labels import PseudoLabel
    from training.teacher_input import TeacherInput

Times = tuple[np.ndarray, np.ndarray]  # (N,) and (M,): seconds after the stamp of its sweep that a point was measured
Flows = tuple[np.ndarray, np.ndarray]  # (N, 3) and (M, 3) float32 [m]


class Teacher(Protocol):
    """A slow method that needs no labels.

    name: of the method. config: a frozen dataclass of its settings, which ends up in the provenance of its labels.
    """

    name: str
    config: object

    def label(self, points0: np.ndarray, points1: np.ndarray, dt: float, *, times: Times | None = None) -> Flows:
        """Return the residual flow [m] of points0 (N, 3) to the time of points1 (M, 3), and of points1 back.

        points0, points1: float32 [m], both in ego0, without ground, all finite. dt: seconds between them, positive.
        times: of the points, None where the sensor does not say; flow is from stamp to stamp either way.
        Returns (N, 3) and (M, 3) float32, all finite; with an empty cloud on either side all flow is zero.
        """


@runtime_checkable
class DriveTeacher(Protocol):
    """A method that looks at more of a drive than the pair that it labels. name, config: as of a Teacher."""

    name: str
    config: object

    def label_in_drive(self, drive: PairDataset, index: int, item: DatasetPair, seen: TeacherInput) -> PseudoLabel:
        """Return the label of drive[index], which is `item`, and of which a teacher sees `seen`.

        It is the same in whatever order the pairs of a drive are asked for.
        """
