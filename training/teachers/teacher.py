# SPDX-License-Identifier: Apache-2.0
"""The interface of teachers: flow for both sweeps of a pair, from the points alone."""

from typing import Protocol, runtime_checkable

import numpy as np

from training.datasets.pairs import DatasetPair, PairDataset, Times
from training.teachers.pseudo_label import PseudoLabel
from training.teachers.teacher_input import TeacherInput
from zeroflow_ros.camera.stereo import StereoFlow, StereoFrame

Flows = tuple[np.ndarray, np.ndarray]  # (N, 3) and (M, 3) float32 [m]


class Teacher(Protocol):
    """A slow method that needs no labels.

    name: name of the method. config: frozen dataclass of its settings, stored in the provenance of its labels.
    """

    name: str
    config: object

    def label(self, points0: np.ndarray, points1: np.ndarray, dt: float, *, times: Times | None = None) -> Flows:
        """Return the residual flow [m] of points0 (N, 3) to the time of points1 (M, 3), and of points1 back.

        points0, points1: float32 [m], both in ego0, without ground, all finite. dt: seconds between them, positive.
        times: measurement times of the points, or None; flow is from stamp to stamp in both cases.
        Returns (N, 3) and (M, 3) float32, all finite; with an empty cloud on either side all flow is zero.
        """


@runtime_checkable
class DriveTeacher(Protocol):
    """A method that uses more of a drive than the pair it labels. name, config: as for a Teacher."""

    name: str
    config: object

    def label_in_drive(self, drive: PairDataset, index: int, item: DatasetPair, seen: TeacherInput) -> PseudoLabel:
        """Return the label of `item`, which is drive[index]; `seen` is its teacher input.

        The result does not depend on the order in which the pairs of a drive are labelled.
        """


@runtime_checkable
class StereoPairTeacher(Protocol):
    """A method that labels pairs of stereo frames; a StereoEstimator, too. name, config: as for a Teacher."""

    name: str
    config: object

    def label(self, reference: StereoFrame, other: StereoFrame, dt: float,
              other_T_reference: np.ndarray | None = None) -> StereoFlow:  # fmt: skip
        """Return the scene flow of the pixels of `reference`; its is_measured marks those that are labels.

        dt: seconds from the reference to the other frame. other_T_reference: (4, 4), ego motion where it is known.
        """

    def estimate(self, reference: StereoFrame, other: StereoFrame,
                 other_T_reference: np.ndarray | None = None) -> StereoFlow:  # fmt: skip
        """See StereoEstimator."""


def run_teacher(teacher: Teacher, seen: TeacherInput) -> PseudoLabel:
    """Return the pseudo-label of a pair by a teacher. Raises: what the teacher or `to_pseudo_label` raises."""
    times = seen.times and (seen.times[0][seen.rows0], seen.times[1][seen.rows1])
    return seen.to_pseudo_label(*teacher.label(*seen.clouds, seen.dt, times=times))
