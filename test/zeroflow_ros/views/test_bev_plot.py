# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import numpy as np
import pytest
from processes import ROOT

from zeroflow_ros.views.bev_plot import draw_sweep, plot_sweep, speed_scale, speed_ticks

image = pytest.importorskip('matplotlib.image', reason='needs matplotlib')


def scene(speed=5.0):
    """A flat 60 m square that stands still, and a block of points 15 m ahead and 10 m left that drives left."""
    rng = np.random.default_rng(0)
    ground = np.c_[rng.uniform(-30, 30, (5000, 2)), np.full(5000, -1.7)]
    block = rng.uniform([14, 9, -1.5], [18, 11, 0], (500, 3))
    velocity = np.zeros((5500, 3))
    velocity[5000:, 1] = speed
    return np.concatenate([ground, block]).astype(np.float32), velocity.astype(np.float32)


def colorful(path):
    """Return which pixels have a strong colour, outside the legends at the edges; (rows, columns)."""
    pixels = image.imread(path)[..., :3]
    assert pixels.shape == (1200, 1920, 3)
    found = np.ptp(pixels, axis=2) > 0.4
    found[:150], found[1000:] = False, False
    return found


def place(x, y, reach=44.0):
    """Return (row, column) of a point on the ground."""
    return round(600 - y * 960 / reach), round(960 + x * 960 / reach)


def test_only_what_moves_has_a_colour_and_it_is_where_it_belongs(tmp_path):
    points, velocity = scene()
    plot_sweep(points, velocity, tmp_path / 'a.png', title='A block')
    rows, columns = np.nonzero(colorful(tmp_path / 'a.png'))
    (top, right), (bottom, left) = place(18, 11 + 0.5 * 5), place(14, 9)  # 0.5 s of arrow
    assert len(rows) > 500
    assert (top - 10 <= rows).all() and (rows <= bottom + 10).all()
    assert (left - 10 <= columns).all() and (columns <= right + 10).all()
    assert rows.min() < place(16, 12)[0], 'arrows lead out of the block, to the left of the vehicle'


@pytest.mark.parametrize(
    ('label', 'change'),
    [
        ('no points', lambda p, v: (p[:0], v[:0])),
        ('one point', lambda p, v: (p[:1], v[:1])),
        ('nothing moves', lambda p, v: (p, v * 0)),
        ('no velocity', lambda p, v: (p, v * np.nan)),
        ('no returns', lambda p, v: (p * np.nan, v * np.nan)),
        ('out of sight', lambda p, v: (p + np.float32(1000), v)),
    ],
)
def test_without_motion_there_is_no_colour(tmp_path, label, change):
    plot_sweep(*change(*scene()), tmp_path / 'a.png')
    assert not colorful(tmp_path / 'a.png').any()


def test_the_scale_can_be_chosen(tmp_path):
    for name, max_speed in (('slow', 5.0), ('fast', 30.0)):
        plot_sweep(*scene(), tmp_path / f'{name}.png', max_speed=max_speed)
    red = {name: image.imread(tmp_path / f'{name}.png')[colorful(tmp_path / f'{name}.png')][:, 0].mean()
           for name in ('slow', 'fast')}  # fmt: skip
    assert red['slow'] > red['fast'] + 0.3  # 5 m/s is the red end of one and near the blue end of the other


def test_several_views_share_a_picture(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    options = {'reach': 40.0, 'min_speed': 0.5, 'max_speed': 10.0, 'arrow_seconds': 0.5}
    points, velocity = scene()
    counts = [draw_sweep(axes, points, velocity * k, **options) for k, axes in enumerate(figure.subplots(1, 2))]
    assert counts == [0, 500]
    figure.savefig(tmp_path / 'two.svg')
    assert (tmp_path / 'two.svg').stat().st_size > 0


def test_matplotlib_is_loaded_only_to_draw():
    program = "import sys, zeroflow_ros.views.bev_plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', program], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize('min_speed, max_speed', [(0.5, 5.0), (0.5, 15.0), (0.5, 40.0), (2.0, 8.0)])
def test_speeds_below_the_first_tick_of_the_legend_look_static(min_speed, max_speed):
    ticks = speed_ticks(min_speed, max_speed)
    assert ticks[0] == min_speed and ticks == sorted(ticks) and ticks[-1] <= max_speed and len(ticks) >= 3
    scale = speed_scale(min_speed, max_speed)
    slow = scale.to_rgba(np.array([0.0, 0.5 * min_speed, 0.99 * min_speed]))[:, :3]
    dynamic = scale.to_rgba(np.array([min_speed, 0.5 * max_speed, max_speed]))[:, :3]
    assert np.ptp(slow, axis=1).max() < 0.2  # a grey: red, green and blue are near to each other
    assert np.ptp(dynamic, axis=1).min() > 0.5
