# SPDX-License-Identifier: Apache-2.0
"""Import the numba kernels where numba is installed; `numba_kernels` is None otherwise."""

import numpy as np

try:
    from zeroflow_ros.camera import numba_kernels  # numpy gives the same results in two to four times the time
except ImportError:
    numba_kernels = None


def compile_kernels() -> None:
    """Compile all kernels, or load them from the disk: seconds at the first start, which no frame should wait for."""
    if numba_kernels is None:
        return
    image, vectors, mask = np.ones((1, 1), np.float32), np.ones((1, 1, 3), np.float32), np.ones((1, 1), bool)
    flow, square, line, one = (
        vectors[..., :2].copy(),
        np.eye(3, dtype=np.float32),
        np.ones(3, np.float32),
        np.float32(1),
    )
    numba_kernels.rigid_flow(image, square, line, one, flow.copy(), image.copy())
    numba_kernels.motion_residual(
        image, flow, image, True, square, line, one, one, one, image.copy(), image.copy()
    )  # fmt: skip
    numba_kernels.normal_equations(
        np.ones((8, 1, 1)), True, np.ones(6), np.eye(4)[None], 1.0, np.zeros((1, 6, 6)), np.zeros((1, 6))
    )
    numba_kernels.pixel_velocity(
        image, image, flow, image, image, image, image, mask, mask, np.ones(6, np.float32), square, line, one,
        vectors.copy(), vectors.copy(), image.copy(),
    )  # fmt: skip
