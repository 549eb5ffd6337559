# SPDX-License-Identifier: Apache-2.0
"""Every source of scene flow for stereo pairs, named by one line of text."""

from dataclasses import dataclass
from pathlib import Path

from training.datasets import split_options
from zeroflow_ros.camera.stereo import StereoEstimator
from zeroflow_ros.errors import ConfigError

KINDS = 'classical, opencv, MODEL.onnx, teacher:stereo'


@dataclass(frozen=True)
class ClassicalOptions:
    """Options of `classical` after a question mark.

    scale: size of the images it works on, as a share of the camera's; 0: its default.
    """

    scale: float = 0.0


def build_stereo_estimator(spec: str) -> StereoEstimator:
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
    if spec == 'teacher:stereo':
        from training.teachers.stereo import StereoTeacher

        estimator = StereoTeacher()
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
