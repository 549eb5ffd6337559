# SPDX-License-Identifier: Apache-2.0
"""Every error of this project: what was expected, what was found, and what to do about it."""


class ZeroFlowError(Exception):
    """Base of all errors that the project raises on bad input; its text is a sentence with a remedy."""


class CloudError(ZeroFlowError):
    """A point cloud message that cannot be decoded."""


class ModelError(ZeroFlowError):
    """A model file that is missing, foreign, damaged, or does not fit its card."""


class EgoMotionError(ZeroFlowError):
    """The motion between two sweeps is unknown or not to be believed."""


class ConfigError(ZeroFlowError):
    """A parameter or a configuration file that does not make sense."""


class DataError(ZeroFlowError):
    """A recording or data set that is missing, broken, or holds nothing to work on."""
