# SPDX-License-Identifier: Apache-2.0
"""Optical flow by dense inverse search, checked forward and backward."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.errors import ConfigError

PRESETS = ('ultrafast', 'fast', 'medium')
_OUTSIDE = 1e6  # px: no flow comes back from there; NaN would also void the last row and column


@dataclass(frozen=True)
class FlowConfig:
    """Settings of dense inverse search.

    preset, finest_scale: of the forward flow; scale k works on images of 1 / 2^k the size. check_preset,
    check_finest_scale: of the backward flow, which only confirms the forward one. max_error: largest distance between a
    pixel and where forward and backward flow bring it [px], plus max_share of the flow's length.
    """

    preset: str = 'ultrafast'
    finest_scale: int = 0
    check_preset: str = 'ultrafast'
    check_finest_scale: int = 1
    max_error: float = 1.0
    max_share: float = 0.05

    def __post_init__(self):
        for name in ('preset', 'check_preset'):
            if getattr(self, name) not in PRESETS:
                raise ConfigError(
                    f'{name} of optical flow is one of {", ".join(PRESETS)}; got {getattr(self, name)!r}.'
                )


class OpticalFlow:
    """Measures optical flow; forward and backward may run in two threads."""

    def __init__(self, config: FlowConfig = FlowConfig()):
        self.config = config
        self._cv2 = load_opencv()
        self._forward = self._search(config.preset, config.finest_scale)
        self._backward = self._search(config.check_preset, config.check_finest_scale)

    def _search(self, preset: str, finest_scale: int):
        search = self._cv2.DISOpticalFlow_create(PRESETS.index(preset))
        search.setFinestScale(finest_scale)
        return search

    def forward(self, reference: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the flow (H, W, 2) float32 [px] from one grey image (H, W) uint8 to another."""
        return self._forward.calc(reference, other, None)

    def backward(self, reference: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the flow (H, W, 2) float32 [px] from `other` back to `reference`."""
        return self._backward.calc(other, reference, None)

    def check(
        self, flow: np.ndarray, backward: np.ndarray, disparity: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return `is_consistent` (H, W), and the disparity (H, W) [px] of the other frame where the flow leads.

        disparity: (H, W) float32 [px] of the other frame. That of the nearest pixel is returned, NaN outside the image.
        """
        if numba_support.numba_kernels is None or min(disparity.shape) < 2:
            other_disparity = self._cv2.remap(
                disparity, *targets(flow), self._cv2.INTER_NEAREST,
                borderMode=self._cv2.BORDER_CONSTANT, borderValue=np.nan,
            )  # fmt: skip
            return self.is_consistent(flow, backward), other_disparity
        is_consistent, other_disparity = np.empty(disparity.shape, bool), np.empty(disparity.shape, np.float32)
        numba_support.numba_kernels.consistent_flow(
            flow, backward, disparity, np.float32(self.config.max_error), np.float32(self.config.max_share),
            is_consistent, other_disparity,
        )  # fmt: skip
        return is_consistent, other_disparity

    def is_consistent(self, flow: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Return which pixels (H, W) of the reference the backward flow brings back; outside the other image: none."""
        returned = self._cv2.remap(
            backward, *targets(flow), self._cv2.INTER_LINEAR,
            borderMode=self._cv2.BORDER_CONSTANT, borderValue=(_OUTSIDE, _OUTSIDE),
        )  # fmt: skip
        returned += flow
        length = np.sqrt(flow[..., 0] ** 2 + flow[..., 1] ** 2)
        limit = np.float32(self.config.max_error) + np.float32(self.config.max_share) * length
        return returned[..., 0] ** 2 + returned[..., 1] ** 2 < limit**2


def targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return column and row (H, W) float32 of the other image that each pixel moves to."""
    height, width = flow.shape[:2]
    columns = flow[..., 0] + np.arange(width, dtype=np.float32)
    rows = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return columns, rows
