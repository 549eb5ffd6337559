# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.lidar import point_head
from zeroflow_ros.lidar.pillars import PillarGrid
from zeroflow_ros.lidar.point_head import PointHead

GRID = PillarGrid(8, 0.5, -1.0, 3.0)
NUM_HIDDEN = 5


def random_head(block, activation):
    rng = np.random.default_rng(3)
    weights = (rng.normal(size=shape).astype(np.float32) for shape in ((NUM_HIDDEN, 3), (3, NUM_HIDDEN), 3))
    hidden = rng.normal(size=(8 // block, 8 // block, block, block, NUM_HIDDEN)).astype(np.float32)
    return PointHead(GRID, block, *weights, activation), hidden


def by_hand(head, point, hidden):
    """The formula of the class, one number at a time."""
    column, row = (int(np.floor(v / GRID.cell + GRID.cells / 2)) for v in point[:2])
    block = head.block
    gathered = hidden[row // block, column // block, row % block, column % block]
    centre = [(column + 0.5 - 4) * 0.5, (row + 0.5 - 4) * 0.5, 1.0]
    layer = [h + sum(w * (p - c) for w, p, c in zip(ws, point, centre, strict=True))
             for h, ws in zip(gathered, head.offset_weight, strict=True)]  # fmt: skip
    if head.activation == 'gelu':
        layer = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in layer]
    else:
        layer = [v if v > 0 else 0.1 * v for v in layer]
    return [sum(w * v for w, v in zip(ws, layer, strict=True)) + b
            for ws, b in zip(head.weight, head.bias, strict=True)]  # fmt: skip


@pytest.mark.parametrize('activation', point_head.ACTIVATIONS)
@pytest.mark.parametrize('block', [1, 2, 4])
def test_flow_is_what_the_formula_says(compiled_or_not, block, activation):
    head, hidden = random_head(block, activation)
    points = np.random.default_rng(1).uniform([-2, -2, -1], [2, 2, 3], (3000, 3)).astype(np.float32)
    flow = np.zeros_like(points)
    head.flow(points, np.eye(4), GRID.assign(points), hidden, flow)
    np.testing.assert_allclose(flow[::60], [by_hand(head, point, hidden) for point in points[::60]], atol=1e-4)


def test_points_without_a_cell_get_nan(compiled_or_not):
    head, hidden = random_head(2, 'leaky_relu')
    points = np.float32([[0, 0, 0], [9, 0, 0], [np.nan] * 3, [1, 1, 1]])
    flow = np.zeros_like(points)
    head.flow(points, np.eye(4), GRID.assign(points), hidden, flow)
    assert np.isnan(flow).all(1).tolist() == [False, True, True, False]


def test_offsets_are_those_of_the_moved_points(compiled_or_not):
    head, hidden = random_head(2, 'leaky_relu')
    points = np.random.default_rng(1).uniform(-1, 1, (100, 3)).astype(np.float32)
    network_T_points = transforms.yaw_translation(0.5, 0.3, -0.2, 0.1)
    moved = transforms.apply(network_T_points, points)
    cells = GRID.assign(moved)
    flow, expected = np.zeros_like(points), np.zeros_like(points)
    head.flow(points, network_T_points, cells, hidden, flow)
    head.flow(moved, np.eye(4), cells, hidden, expected)
    np.testing.assert_allclose(flow, expected, atol=1e-5)


@pytest.mark.parametrize(
    'label, wrong, says',
    [
        ('no hidden layer', {'offset_weight': np.zeros((0, 3)), 'weight': np.zeros((3, 0))}, 'shape'),
        ('two sizes', {'weight': np.zeros((3, 4))}, 'shape'),
        ('bias of four', {'bias': np.zeros(4)}, 'shape'),
        ('blocks of three', {'block': 3}, 'blocks of 3'),
        ('unknown activation', {'activation': 'tanh'}, 'leaky_relu'),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(label, wrong, says):
    fits = {'offset_weight': np.zeros((5, 3)), 'weight': np.zeros((3, 5)), 'bias': np.zeros(3), 'block': 2}
    with pytest.raises(ValueError, match=says):
        PointHead(**{'grid': GRID, 'activation': 'gelu', **fits, **wrong})
