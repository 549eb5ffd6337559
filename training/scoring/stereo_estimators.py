# SPDX-License-Identifier: Apache-2.0
"""Every source of scene flow for stereo pairs, named by one line of text."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.stereo_pairs import StereoDatasetPair
from zeroflow_ros.camera.stereo import StereoEstimator, StereoFlow
from zeroflow_ros.errors import ConfigError, DataError

KINDS = 'classical, opencv, MODEL.onnx, teacher:NAME, labels:STORE'


@dataclass(frozen=True)
class ClassicalOptions:
    """Options of `classical` after a question mark.

    scale: size of the images it works on, as a share of the camera's; 0: its default.
    """

    scale: float = 0.0


@dataclass(frozen=True)
class TeacherOptions:
    """Options of `teacher:lidar`. clouds: bag with the clouds of the same drive. mount: see `LidarTeacherConfig`."""

    clouds: str = ''
    mount: str = ''


def build_stereo_estimator(spec: str) -> 'StereoEstimator | StereoLabels':
    """Return the estimator of a spec, one of KINDS; its name is the spec.

    Raises: ConfigError for an unknown spec, DataError for an unknown option, ModelError for a model file that cannot be
    used.
    """
    kind, options = split_options(spec, ClassicalOptions) if spec.startswith('classical') else (spec, None)
    if kind == 'classical':
        from zeroflow_ros.camera.classical_flow import ClassicalConfig, ClassicalStereoFlow

        scale = {'scale': options.scale} if options.scale else {}
        estimator = ClassicalStereoFlow(ClassicalConfig(fill=True, **scale))
        estimator.name = spec
        return estimator
    if spec.startswith('labels:'):
        return StereoLabels(spec, Path(spec.removeprefix('labels:')))
    if spec.startswith('teacher:'):
        from training.teachers import STEREO_TEACHERS, build_teacher

        name, options = split_options(spec.removeprefix('teacher:'), TeacherOptions)
        if name not in STEREO_TEACHERS:
            raise ConfigError(f'{name!r} is no teacher of stereo pairs; these are {", ".join(STEREO_TEACHERS)}.')
        estimator = build_teacher(name, {key: value for key, value in asdict(options).items() if value})
        estimator.name = spec
        return estimator
    if Path(spec).suffix == '.onnx':
        from zeroflow_ros.engines.stereo_network import NetworkStereoFlow

        estimator = NetworkStereoFlow(Path(spec))
        estimator.name = spec
        return estimator
    if spec == 'opencv':
        from training.scoring.opencv_baseline import OpenCvBaseline

        return OpenCvBaseline()
    raise ConfigError(f'Unknown estimator of stereo pairs {spec!r}; expected one of: {KINDS}.')


def estimate_pair(estimator: 'StereoEstimator | StereoLabels', item: StereoDatasetPair) -> StereoFlow:
    """Return the scene flow of a pair of a dataset; its truth is not used. Raises: as the estimator."""
    if isinstance(estimator, StereoLabels):
        return estimator.read(item)
    return estimator.estimate(item.reference, item.other, item.other_T_reference)


class StereoLabels:
    """Stored pseudo-labels. folder: a store that `training.label` wrote. Raises: DataError when it is none."""

    def __init__(self, name: str, folder: Path):
        from training.labels.stereo_label_store import StereoLabelStore

        self.name = name
        self._store = StereoLabelStore(folder)
        self._keys = frozenset(self._store.keys())

    def read(self, item: StereoDatasetPair) -> StereoFlow:
        """Return the labels of a pair, NaN where it has none. Raises: DataError when there are none of this pair."""
        if item.key not in self._keys:
            raise DataError(
                f'{self.name} has no labels of {item.key} (it has {len(self._keys)} pairs). Use the dataset that was '
                'labelled.'
            )
        made = self._store.read(item.key)
        label, zero = made.truth, np.zeros_like(made.truth.disparity)
        return StereoFlow(
            label.disparity, label.other_disparity, label.flow, zero, zero, zero, label.has_flow,
            made.other_T_reference, label.has_disparity,
        )  # fmt: skip
