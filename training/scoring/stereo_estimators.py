# SPDX-License-Identifier: Apache-2.0
"""Every source of scene flow for stereo pairs, named by one line of text."""

from zeroflow_ros.camera.stereo import StereoEstimator
from zeroflow_ros.errors import ConfigError

KINDS = 'classical'


def build_stereo_estimator(spec: str) -> StereoEstimator:
    """Return the estimator of a spec, one of KINDS; its name is the spec.

    Raises: ConfigError for an unknown spec.
    """
    if spec == 'classical':
        from zeroflow_ros.camera.classical_flow import ClassicalStereoFlow

        return ClassicalStereoFlow()
    raise ConfigError(f'Unknown estimator of stereo pairs {spec!r}; expected one of: {KINDS}.')
