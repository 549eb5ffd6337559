# SPDX-License-Identifier: Apache-2.0
"""Every source of scene flow for stereo pairs, named by one line of text.

Estimators of one camera take the left images only, and some of those before the pair.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.stereo_pairs import StereoDatasetPair
from zeroflow_ros.camera.stereo import StereoEstimator, StereoFlow
from zeroflow_ros.errors import ConfigError, DataError

KINDS = 'classical, opencv, MODEL.onnx, CHECKPOINT, teacher:NAME, labels:STORE'


@dataclass(frozen=True)
class ClassicalOptions:
    """Options of `classical` after a question mark.

    scale: size of the images it works on, as a share of the camera's; 0: its default.
    """

    scale: float = 0.0


@dataclass(frozen=True)
class CheckpointOptions:
    """Options of a checkpoint of a student of stereo images. size: WIDTHxHEIGHT of its images [px], '' for its own."""

    size: str = ''


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
    path = spec.partition('?')[0]
    if Path(path).suffix == '.onnx':
        from training.scoring.mono_estimators import MonoModelFlow
        from zeroflow_ros.engines.mono_card import is_mono_model

        if is_mono_model(path):
            return MonoModelFlow(spec)
        from zeroflow_ros.engines.stereo_network import NetworkStereoFlow

        estimator = NetworkStereoFlow(Path(spec))
        estimator.name = spec
        return estimator
    if Path(path).suffix in ('.pt', '.ckpt', '.npz'):
        return _of_checkpoint(spec)
    if spec == 'opencv':
        from training.scoring.opencv_baseline import OpenCvBaseline

        return OpenCvBaseline()
    raise ConfigError(f'Unknown estimator of stereo pairs {spec!r}; expected one of: {KINDS}.')


def _of_checkpoint(spec: str):
    """Return the estimator of a checkpoint of a student of stereo images, or of one camera."""
    from training.learning.checkpoint import load_checkpoint
    from training.scoring.stereo_checkpoint import checkpoint_flow
    from training.students import CAMERA_STUDENTS

    checkpoint = load_checkpoint(Path(spec.partition('?')[0]))
    if checkpoint.student not in CAMERA_STUDENTS:
        from training.scoring.mono_estimators import checkpoint_estimator

        return checkpoint_estimator(spec)
    _, options = split_options(spec, CheckpointOptions)
    return checkpoint_flow(spec, checkpoint, options.size)


def estimate_pair(estimator: 'StereoEstimator | StereoLabels', item: StereoDatasetPair) -> StereoFlow:
    """Return the scene flow of a pair of a dataset; its truth is not used.

    Raises: as the estimator; NoEarlierImageError when it needs an image before the pair.
    """
    if isinstance(estimator, StereoLabels):
        return estimator.read(item)
    if takes_one_camera(estimator):
        return estimator.estimate_images(_images(estimator, item), item.reference.camera)
    return estimator.estimate(item.reference, item.other, item.other_T_reference)


def takes_one_camera(estimator: 'StereoEstimator | StereoLabels') -> bool:
    """Return whether an estimator takes the left images only."""
    return getattr(estimator, 'num_cameras', 2) == 1


def _images(estimator, item: StereoDatasetPair) -> list[np.ndarray]:
    """Return the left images that an estimator of one camera takes for a pair, in the order of time."""
    if item.dt < 0:
        raise DataError(
            f'{estimator.name} estimates the motion until the next image, and {item.key} is seen from its newer frame. '
            'Leave --sweep latest and latest out.'
        )
    earlier = item.earlier(estimator.num_earlier) if item.earlier else []
    if not earlier and not estimator.needs_earlier:
        earlier = [item.reference.left]
    if not earlier:
        raise NoEarlierImageError(
            f'{estimator.name} takes three images or more in a row, and there is none before {item.key}. For KITTI '
            'scene flow, unpack data_scene_flow_multiview.zip beside the pairs; of a simulation, use '
            '?num_frames=5&at=3.'
        )
    return [*earlier, item.reference.left, item.other.left]


class NoEarlierImageError(DataError):
    """A pair without the image before it, which estimators of one camera need."""


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
