# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.views.arrows import pick_arrows

NAN = np.nan


def pick(points, velocity, **options):
    segments, colors = pick_arrows(np.float32(points).reshape(-1, 3), np.float32(velocity).reshape(-1, 3), **options)
    assert segments.shape[1:] == (2, 3) and colors.shape == (len(segments), 2, 4)
    assert segments.dtype == colors.dtype == np.float32
    assert np.isfinite(segments).all() and (colors >= 0).all() and (colors <= 1).all()
    return segments, colors


TAILS = [
    ('empty', [], [], {}, []),
    ('one moving point', [[1, 2, 3]], [[1, 0, 0]], {}, [[1, 2, 3]]),
    ('standing still', [[1, 2, 3]], [[0, 0, 0]], {}, []),
    ('just too slow', [[1, 2, 3]], [[0.49, 0, 0]], {}, []),
    ('just fast enough, upwards', [[1, 2, 3]], [[0, 0, 0.5]], {}, [[1, 2, 3]]),
    ('no velocity', [[1, 2, 3]], [[NAN, NAN, NAN]], {}, []),
    ('no point', [[NAN, NAN, NAN]], [[9, 0, 0]], {}, []),
    ('infinite velocity', [[1, 2, 3]], [[np.inf, 0, 0]], {}, []),
    ('z is inf', [[1, 2, np.inf]], [[9, 0, 0]], {}, []),
    ('too far for the cells', [[3000, 0, 0], [2000, 0, 0]], [[9, 0, 0]] * 2, {}, [[2000, 0, 0]]),
    ('one per cell: nearest to its centre', [[0.1, 0.5, 0], [0.6, 0.5, 0], [0.9, 0.5, 0]], [[9, 0, 0]] * 3, {},
     [[0.6, 0.5, 0]]),
    ('equally near: the first', [[0.5, 0.5, 1], [0.5, 0.5, 2]], [[9, 0, 0]] * 2, {}, [[0.5, 0.5, 1]]),
    ('either side of 0 are two cells', [[-0.1, 0.5, 0], [0.1, 0.5, 0]], [[9, 0, 0]] * 2, {},
     [[-0.1, 0.5, 0], [0.1, 0.5, 0]]),
    ('larger cells', [[0.1, 0.5, 0], [3.9, 0.5, 0]], [[9, 0, 0]] * 2, {'cell': 8.0}, [[3.9, 0.5, 0]]),
    ('none wanted', [[1, 2, 3]], [[9, 0, 0]], {'max_arrows': 0}, []),
    ('all speeds', [[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [NAN, NAN, NAN]], {'min_speed': 0.0}, [[1, 2, 3]]),
]  # fmt: skip


@pytest.mark.parametrize(('points', 'velocity', 'options', 'tails'), [t[1:] for t in TAILS], ids=[t[0] for t in TAILS])
def test_which_points_get_an_arrow(points, velocity, options, tails):
    segments, _ = pick(points, velocity, **options)
    np.testing.assert_allclose(segments[:, 0], np.float32(tails).reshape(-1, 3), rtol=1e-6)


def test_an_arrow_ends_where_its_point_will_be():
    segments, _ = pick([[1, 2, 3]], [[4, 0, -2]], seconds=0.25)
    np.testing.assert_array_equal(segments[0], [[1, 2, 3], [2, 2, 2.5]])


def test_colours_tell_speed_and_fade_to_the_tail():
    _, colors = pick([[0, 0, 0], [10, 0, 0], [20, 0, 0]], [[0.6, 0, 0], [15, 0, 0], [99, 0, 0]])
    slow, fast, faster = colors
    assert slow[1, 2] > slow[1, 0] and fast[1, 0] > fast[1, 2]  # blue, red
    np.testing.assert_array_equal(fast, faster)
    assert (colors[:, 0, 3] < colors[:, 1, 3]).all() and (colors[:, 0, :3] <= colors[:, 1, :3]).all()


def test_at_most_so_many_evenly_spread_and_always_the_same():
    rng = np.random.default_rng(0)
    points = rng.uniform(-60, 60, (20_000, 3))
    velocity = rng.normal(0, 5, (20_000, 3))
    segments, colors = pick(points, velocity, max_arrows=300)
    assert 150 < len(segments) <= 300
    counts = np.histogram2d(*segments[:, 0, :2].T, bins=4, range=[[-60, 60]] * 2)[0]
    assert counts.min() > 0.4 * counts.mean()
    again, colors_again = pick(points, velocity, max_arrows=300)
    np.testing.assert_array_equal(segments, again)
    np.testing.assert_array_equal(colors, colors_again)
    assert len(np.unique(colors.reshape(-1, 4), axis=0)) <= 64  # each colour becomes one message object


def test_row_order_does_not_matter():
    rng = np.random.default_rng(1)
    points, velocity = rng.uniform(-20, 20, (2000, 3)), rng.normal(0, 5, (2000, 3))
    order = rng.permutation(2000)
    first, second = pick(points, velocity)[0], pick(points[order], velocity[order])[0]
    np.testing.assert_array_equal(first, second)


def test_cell_must_have_a_side():
    with pytest.raises(ValueError, match='cell must be a positive side'):
        pick([[1, 2, 3]], [[1, 0, 0]], cell=0.0)
