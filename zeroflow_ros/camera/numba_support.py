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
    numba_kernels.refine_motions(
        np.ones((8, 1, 1)), True, np.ones(6), np.eye(4)[None], 1.0, 1, np.ones(6), np.zeros((1, 6, 6))
    )  # fmt: skip
    numba_kernels.pixel_velocity(
        image, image, flow, image, image, image, image, mask, mask, np.ones(6, np.float32), square, line, one,
        vectors.copy(), vectors.copy(), image.copy(),
    )  # fmt: skip
    pair, number, numbers = np.ones((2, 2, 2), np.float32), np.zeros((1, 1), np.int32), np.zeros(1, np.intp)
    numba_kernels.consistent_flow(
        pair, pair, pair[..., 0].copy(), one, one, np.ones((2, 2), bool), pair[..., 0].copy()
    )  # fmt: skip
    numba_kernels.scene_flow(
        image, number, mask, numbers, numbers, np.ones((1, 3, 4), np.float32), np.zeros(0, np.float32), one, True,
        flow.copy(), image.copy(), image.copy(), mask.copy(),
    )  # fmt: skip
    numba_kernels.mark_seams(mask, image, one, np.ones((1, 1), np.uint8))
    numba_kernels.road_surface(image, line, image.copy(), mask.copy())
    numba_kernels.fit_plane(np.ones((3, 3)), np.ones(3), np.zeros((1, 3), np.int64), np.ones(4), np.ones(3))
    place = np.zeros(1, np.float32)
    numba_kernels.sampled_disparity(
        image, np.ones((1, 1), np.uint8), numbers, numbers, place, place, one, image.copy()
    )  # fmt: skip
    codes = np.zeros((2, 1 << 16), np.uint16)
    numba_kernels.walk_jpeg_scan(
        np.zeros(9, np.uint8), codes, codes[:, :1024].copy(), np.zeros((1, 2), np.int64), 1
    )  # fmt: skip
    row = np.ones((1, 1, 10), np.float32)
    numba_kernels.pixel_cloud(
        vectors, np.ones((1, 1, 3), np.uint8), vectors, image, np.ones((1, 1), np.uint8), row, row.view(np.uint32)
    )  # fmt: skip
