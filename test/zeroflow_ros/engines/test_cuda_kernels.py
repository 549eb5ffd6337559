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


class Pillars:
    """The memory of the pillar encoder, and its steps; it keeps its image from sweep to sweep."""

    def __init__(self, kernels, grid=GRID, max_points=5000, encoder=None):
        num_cells, num_channels = grid.cells**2, len(encoder.bias) if encoder else 1
        self.kernels, self.grid, self.encoder = kernels, grid, encoder
        self.line, self.z_centre = np.ascontiguousarray(grid.centres[: grid.cells, 0]), float(grid.centres[0, 2])
        max_pillars = min(max_points, num_cells)
        self.sums, self.num_pillars = np.full((num_cells, 4), np.nan, np.float32), np.full(1, 77, np.int32)
        self.pillar_of_cell, self.cell_of_pillar = (
            np.full(num_cells, -77, np.int32),
            np.full(max_pillars, -77, np.int32),
        )
        self.table = np.full((max_pillars, num_channels), np.nan, np.float32)
        self.written = np.full(max_pillars, -1, np.int32)
        self.image = np.zeros((num_channels, grid.cells, grid.cells), np.float32)

    def assign(self, cloud, num_points):
        """Return the cells of a cloud."""
        grid, cell_index = self.grid, np.full(num_points, 99, np.int32)
        self.sums[:], self.num_pillars[:] = 0, 0
        call(self.kernels.assign_points, cloud, grid.cells, 1 / grid.cell, grid.z_min, grid.z_max, self.z_centre,
             self.line, self.table.shape[1], cell_index, self.sums, self.num_pillars, self.pillar_of_cell,
             self.cell_of_pillar, self.table)  # fmt: skip
        return cell_index

    def draw(self, cloud, num_points):
        """Make the image that of a cloud; return its cells."""
        cell_index, cells = self.assign(cloud, num_points), self.grid.cells
        call(self.kernels.pool_pillars, cloud, cells, self.z_centre, self.line, cell_index, self.sums,
             self.pillar_of_cell, self.table.shape[1], self.encoder.weight, self.encoder.bias, self.table)  # fmt: skip
        call(self.kernels.write_image, cells, self.table.shape[1], len(self.written), self.sums, self.num_pillars,
             self.cell_of_pillar, self.table, self.written, self.image)  # fmt: skip
        return cell_index


def assigned(kernels, cloud, num_points, grid=GRID):
    pillars = Pillars(kernels, grid)
    return pillars.assign(cloud, num_points), pillars.sums


def some_encoder(num_channels):
    rng = np.random.default_rng(1)
    return PillarEncoder(
        GRID, rng.normal(size=(num_channels, 9)).astype(np.float32), rng.normal(size=num_channels).astype(np.float32)
    )


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
    encoder = some_encoder(num_channels)
    pillars, (points, cloud) = Pillars(kernels, encoder=encoder), sweep(5000)
    cell_index = pillars.draw(cloud, len(points))
    inside = cell_index >= 0
    expected = encoder.encode_plain(apply(NETWORK_T_POINTS, points)[inside], cell_index[inside])
    np.testing.assert_allclose(pillars.image, expected, atol=2e-5)


def test_pillars_are_numbered_once_each(kernels):
    pillars, (points, cloud) = Pillars(kernels), sweep(5000)
    occupied = np.unique(cells := pillars.assign(cloud, len(points)))[1:]
    assert (cells < 0).any() and pillars.num_pillars[0] == len(occupied) > 300
    numbered = pillars.cell_of_pillar[: len(occupied)]
    np.testing.assert_array_equal(np.sort(numbered), occupied)
    np.testing.assert_array_equal(pillars.pillar_of_cell[numbered], np.arange(len(occupied)))
    assert (pillars.cell_of_pillar[len(occupied) :] == -77).all()


def test_nothing_of_earlier_sweeps_stays_in_the_image(kernels):
    pillars = Pillars(kernels, encoder=some_encoder(16))
    for num_points in (5000, 40, 3000, 0, 7, 5000, 0):
        _, cloud = sweep(num_points or 10, seed=num_points)
        if not num_points:
            cloud[:1].view(np.int32)[0] = 0
        pillars.draw(cloud, num_points)
        fresh = Pillars(kernels, encoder=pillars.encoder)
        fresh.draw(cloud, num_points)
        np.testing.assert_array_equal(pillars.image, fresh.image)
        assert pillars.image.any() == bool(num_points)
        written = pillars.written[pillars.written >= 0]
        assert len(written) == pillars.num_pillars[0] == len(np.unique(written))


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
