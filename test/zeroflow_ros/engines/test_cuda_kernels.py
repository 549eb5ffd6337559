# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels against the numpy code that they are on the GPU; the same source, compiled as C++."""

import ctypes

import numpy as np
import pytest
from simulated_gpu import compile_for_cpu

from zeroflow_ros.engines.cuda_device import KERNELS
from zeroflow_ros.lidar.pillars import PillarEncoder, PillarGrid
from zeroflow_ros.lidar.point_head import LEAK, PointHead
from zeroflow_ros.transforms import apply, from_quaternion

GRID = PillarGrid(32, 0.4, -2.0, 4.0)
NETWORK_T_POINTS = from_quaternion((0.3, -0.2, 1.7), (0.0, 0.0, 0.28, 0.96))


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    path = tmp_path_factory.mktemp('kernels') / 'pillars.so'
    path.write_bytes(compile_for_cpu(KERNELS.read_text()))
    return ctypes.CDLL(str(path))


def call(kernel, *arguments):
    """Call a kernel with numpy arrays, integers and floats."""
    kernel(*(
        ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray)
        else ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int(value)
        for value in arguments
    ))  # fmt: skip


def sweep(num_points, seed=0):
    """Return points (N, 3) around the grid, some on borders of cells, some outside, one NaN; and as a kernel has it."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-8, -8, -5], [8, 8, 5], (num_points, 3)).astype(np.float32)
    points[::7] = np.round(points[::7] / 0.4) * np.float32(0.4)
    points[5] = np.nan
    cloud = np.zeros(16 + 3 * num_points, np.float32)
    cloud[:1].view(np.int32)[0] = num_points
    cloud[4:16] = NETWORK_T_POINTS[:3].reshape(-1)
    cloud[16:] = points.reshape(-1)
    return points, cloud


def assigned(kernels, cloud, num_points):
    cell_index, sums = np.full(num_points, 99, np.int32), np.zeros((GRID.cells**2, 4), np.float32)
    call(kernels.assign_points, cloud, GRID.cells, 1 / GRID.cell, GRID.z_min, GRID.z_max, cell_index, sums)
    return cell_index, sums


def test_every_point_is_in_the_cell_that_numpy_gives_it(kernels):
    points, cloud = sweep(5000)
    cell_index, sums = assigned(kernels, cloud, len(points))
    moved = apply(NETWORK_T_POINTS, points)
    expected = GRID.assign(moved)
    np.testing.assert_array_equal(cell_index, expected)
    assert (expected < 0).any() and len(np.unique(expected)) > 300
    np.testing.assert_array_equal(sums[:, 3], np.bincount(expected[expected >= 0], minlength=GRID.cells**2))


@pytest.mark.parametrize('num_channels', [1, 16, 32])
def test_the_image_is_that_of_the_encoder(kernels, num_channels):
    rng = np.random.default_rng(1)
    encoder = PillarEncoder(
        GRID, rng.normal(size=(num_channels, 9)).astype(np.float32), rng.normal(size=num_channels).astype(np.float32)
    )
    points, cloud = sweep(5000)
    cell_index, sums = assigned(kernels, cloud, len(points))
    image = np.zeros((num_channels, GRID.cells, GRID.cells), np.float32)
    centres, z_centre = np.ascontiguousarray(GRID.centres[: GRID.cells, 0]), float(GRID.centres[0, 2])
    call(kernels.pool_pillars, cloud, GRID.cells, z_centre, centres, cell_index, sums, num_channels, encoder.weight,
         encoder.bias, image)  # fmt: skip
    inside = cell_index >= 0
    expected = encoder.encode_plain(apply(NETWORK_T_POINTS, points)[inside], cell_index[inside])
    np.testing.assert_allclose(image, expected, atol=2e-5)


@pytest.mark.parametrize('activation', ['leaky_relu', 'gelu'])
@pytest.mark.parametrize('block', [1, 2, 4])
def test_flow_is_that_of_the_point_head(kernels, block, activation):
    rng = np.random.default_rng(2)
    num_hidden = 24
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((num_hidden, 3), (3, num_hidden), (3,))]
    head = PointHead(GRID, block, *weights, activation)
    blocks = GRID.cells // block
    hidden = rng.normal(size=(blocks, blocks, block, block, num_hidden)).astype(np.float32)
    points, cloud = sweep(4000)
    cell_index, _ = assigned(kernels, cloud, len(points))
    flow, expected = np.zeros((len(points), 3), np.float32), np.zeros((len(points), 3), np.float32)
    centres, z_centre = np.ascontiguousarray(GRID.centres[: GRID.cells, 0]), float(GRID.centres[0, 2])
    leak = float('nan') if activation == 'gelu' else LEAK
    call(kernels.flow_points, cloud, GRID.cells, z_centre, centres, cell_index, block, num_hidden, hidden,
         *weights, leak, flow)  # fmt: skip
    head.flow_numpy(points, NETWORK_T_POINTS, cell_index, hidden, expected)
    assert np.isnan(flow[cell_index < 0]).all()
    np.testing.assert_allclose(flow, expected, atol=5e-5)


def test_a_cloud_without_points_writes_nothing(kernels):
    cell_index, sums = assigned(kernels, sweep(10)[1] * 0, 0)
    assert not len(cell_index) and not sums.any()
