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
LINE, Z_CENTRE = np.ascontiguousarray(GRID.centres[: GRID.cells, 0]), float(GRID.centres[0, 2])
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
    return points, as_cloud(points)


def as_cloud(points, network_T_points=NETWORK_T_POINTS):
    """Return points as a kernel has them."""
    cloud = np.zeros(16 + 3 * len(points), np.float32)
    cloud[:1].view(np.int32)[0] = len(points)
    cloud[4:16] = network_T_points[:3].reshape(-1)
    cloud[16:] = points.reshape(-1)
    return cloud


def assigned(kernels, cloud, num_points, grid=GRID):
    cell_index, sums = np.full(num_points, 99, np.int32), np.zeros((grid.cells**2, 4), np.float32)
    line, z_centre = np.ascontiguousarray(grid.centres[: grid.cells, 0]), float(grid.centres[0, 2])
    call(kernels.assign_points, cloud, grid.cells, 1 / grid.cell, grid.z_min, grid.z_max, z_centre, line, cell_index,
         sums)  # fmt: skip
    return cell_index, sums


def test_every_point_is_in_the_cell_that_numpy_gives_it(kernels):
    points, cloud = sweep(5000)
    cell_index, sums = assigned(kernels, cloud, len(points))
    moved = apply(NETWORK_T_POINTS, points)
    expected = GRID.assign(moved)
    np.testing.assert_array_equal(cell_index, expected)
    assert (expected < 0).any() and len(np.unique(expected)) > 300
    np.testing.assert_array_equal(sums[:, 3], np.bincount(expected[expected >= 0], minlength=GRID.cells**2))


def test_the_mean_of_a_dense_far_pillar_does_not_depend_on_the_order_of_its_points(kernels):
    grid = PillarGrid(512, 0.2, -3.0, 3.0)
    rng = np.random.default_rng(0)
    corner = grid.centres[20 * 513] - 0.5 * np.float32([0.2, 0.2, 0])
    points = (corner + rng.uniform(0.01, 0.19, (500, 3))).astype(np.float32)
    means = []
    for _ in range(20):
        cloud = as_cloud(rng.permutation(points), np.eye(4))
        cell_index, sums = assigned(kernels, cloud, len(points), grid)
        [cell] = np.unique(cell_index)
        means.append(sums[cell, :3] / sums[cell, 3])
    exact = points.astype(np.float64).mean(axis=0) - grid.centres[cell]
    assert np.ptp(means, axis=0).max() < 3e-7  # m; with sums of coordinates it is 4e-5
    np.testing.assert_allclose(means[0], exact, atol=3e-7)


@pytest.mark.parametrize('num_channels', [1, 16, 32])
def test_the_image_is_that_of_the_encoder(kernels, num_channels):
    rng = np.random.default_rng(1)
    encoder = PillarEncoder(
        GRID, rng.normal(size=(num_channels, 9)).astype(np.float32), rng.normal(size=num_channels).astype(np.float32)
    )
    points, cloud = sweep(5000)
    cell_index, sums = assigned(kernels, cloud, len(points))
    image = np.zeros((num_channels, GRID.cells, GRID.cells), np.float32)
    call(kernels.pool_pillars, cloud, GRID.cells, Z_CENTRE, LINE, cell_index, sums, num_channels, encoder.weight,
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
    leak = float('nan') if activation == 'gelu' else LEAK
    call(kernels.flow_points, cloud, GRID.cells, Z_CENTRE, LINE, cell_index, block, num_hidden, hidden,
         *weights, leak, flow)  # fmt: skip
    head.flow_numpy(points, NETWORK_T_POINTS, cell_index, hidden, expected)
    assert np.isnan(flow[cell_index < 0]).all()
    np.testing.assert_allclose(flow, expected, atol=5e-5)


def test_a_cloud_without_points_writes_nothing(kernels):
    cell_index, sums = assigned(kernels, sweep(10)[1] * 0, 0)
    assert not len(cell_index) and not sums.any()
