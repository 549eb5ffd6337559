# SPDX-License-Identifier: Apache-2.0
"""The exceptions of this project. Each message says what was expected, what was found, and how to fix it."""


class ZeroFlowError(Exception):
    """Base of all errors that the project raises on bad input; the message ends with a remedy."""


class CloudError(ZeroFlowError):
    """A point cloud message that cannot be decoded."""


class ImageError(ZeroFlowError):
    """An image message that cannot be decoded or does not fit its camera."""


class ModelError(ZeroFlowError):
    """A model file that is missing, has no model card, is damaged, or does not match its card."""


class GpuLostError(ModelError):
    """The GPU takes no more calls of this process; only a new process can use it again."""


class EgoMotionError(ZeroFlowError):
    """The motion between two sweeps is unknown or implausible."""


class ConfigError(ZeroFlowError):
    """An invalid parameter or configuration file."""


class DataError(ZeroFlowError):
    """A recording or data set that is missing, broken or empty."""
