# SPDX-License-Identifier: Apache-2.0
"""Figures and pictures tell a good pseudo-label from a bad one."""

import json

import numpy as np
import pytest

pytest.importorskip('scipy', reason='needs scipy')
image = pytest.importorskip('matplotlib.image', reason='needs matplotlib')

from training import inspect_labels  # noqa: E402
from training.labels.label_quality import label_residuals  # noqa: E402
from training.labels.label_store import LabelStore, PseudoLabel  # noqa: E402
from training.zeroflow_labels import REGION  # noqa: E402

MOVE = np.float32([1.0, 0, 0])  # m, of a box 20 m ahead in 0.1 s


def label(key: str, flow_of_box, flow_of_wall=(0, 0, 0), hidden: bool = False) -> PseudoLabel:
    """A wall of 900 points, a box of 300 which moves 1 m ahead, and ground; a few unlabelled points far away.

    hidden: whether the newer sweep does not see the box.
    """
    rng = np.random.default_rng(0)
    wall = np.stack(np.meshgrid(np.arange(-15, 15, 0.1), [10.0], [0.5, 1.0, 1.5]), -1).reshape(-1, 3)
    box = rng.uniform([20, -1, 0.5], [22, 1, 1.5], (300, 3))
    ground = np.column_stack([rng.uniform(-30, 30, (500, 2)), np.zeros(500)])
    far = rng.uniform(60, 70, (10, 3))
    points0 = np.concatenate([wall, box, ground, far]).astype(np.float32)
    points1 = np.concatenate([wall, box[:0] if hidden else box + MOVE, ground, far]).astype(np.float32)
    flows = []
    for points, num_box, sign in ((points0, 300, 1), (points1, 0 if hidden else 300, -1)):
        flow = np.zeros(points.shape, np.float32)
        flow[:900], flow[900 : 900 + num_box] = sign * np.float32(flow_of_wall), sign * np.float32(flow_of_box)
        flow[~REGION.contains(points)] = np.nan
        flows.append(flow)
    grounds = [np.arange(len(points)) // 1 >= len(points) - 510 for points in (points0, points1)]
    for is_ground in grounds:
        is_ground[-10:] = False
    return PseudoLabel(key, points0, points1, *flows, *grounds, 0.1)


def test_a_good_label():
    figures = label_residuals(label('good', MOVE)).quality()
    assert figures.num_points == 1200 and figures.moving_share == 0.25 and figures.median_speed == pytest.approx(10)
    assert figures.misfit_after == pytest.approx(0, abs=1e-5) and figures.moving_misfit_before > 0.2
    assert figures.round_trip == pytest.approx(0, abs=1e-6) and figures.worse_share == figures.missed_share == 0


@pytest.mark.parametrize('name, expected, arguments', [
    ('missed_share', 0.1, (-MOVE,)),  # the wrong way
    ('worse_share', 0.5, (-MOVE,)),
    ('missed_share', 0.05, ((0, 0, 0),)),  # nothing moves
    ('moving_share', 0.99, (MOVE, (0, 0.3, 0))),  # wrong ego motion
    ('moving_misfit_after', 0.2, (MOVE, (0, 0.3, 0))),
])  # fmt: skip
def test_a_bad_label_stands_out(name, expected, arguments):
    good, bad = label_residuals(label('good', MOVE)).quality(), label_residuals(label('bad', *arguments)).quality()
    assert getattr(bad, name) > expected > getattr(good, name)
    assert bad.suspicion > good.suspicion


def test_what_the_newer_sweep_does_not_see_is_not_missed():
    figures = label_residuals(label('hidden', MOVE, hidden=True)).quality()
    assert figures.moving_misfit_after > 5 and figures.missed_share == 0


def test_flows_that_do_not_agree_have_a_long_round_trip():
    forward, backward = label('a', MOVE), label('a', 0.5 * MOVE)
    mixed = PseudoLabel('a', forward.points0, forward.points1, forward.flow0, backward.flow1, forward.is_ground0,
                        forward.is_ground1, 0.1)  # fmt: skip
    assert label_residuals(mixed).quality().round_trip == pytest.approx(0.5)


def empty(n: int = 0) -> PseudoLabel:
    """A label of n points of ground, or of nothing."""
    points, flow = np.ones((n, 3), np.float32), np.zeros((n, 3), np.float32)
    return PseudoLabel('b/empty', points, points[:0], flow, flow[:0], np.ones(n, bool), np.ones(0, bool), 0.1)


def test_pictures_and_a_table_of_a_store(tmp_path, capsys):
    store = LabelStore.create(tmp_path / 'store', {'teacher': 'wall'}, {})
    for made in (label('a/good', MOVE), label('a/bad', -MOVE), empty(5)):
        store.write(made)
    assert inspect_labels.main([str(store.folder), '--out', str(tmp_path / 'pictures')]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in said[1:4]] == ['a/bad', 'a/good', 'b/empty']
    assert said[-1] == f'{tmp_path / "pictures"}: 3 pictures, measures of 3 labels'
    names = sorted(path.name for path in (tmp_path / 'pictures').iterdir())
    assert names == ['a_bad.png', 'a_good.png', 'b_empty.png', 'figures.json']
    good, bad, nothing = (
        misfit_pixels(tmp_path / 'pictures' / f'{name}.png') for name in ('a_good', 'a_bad', 'b_empty')
    )
    assert good == nothing == 0 and bad > 30  # pixels
    figures = json.loads((tmp_path / 'pictures' / 'figures.json').read_text())
    assert figures['b/empty']['misfit_after'] is None and figures['a/good']['num_points'] == 1200


def misfit_pixels(path) -> int:
    """Return how many pixels of the middle panel are orange or red."""
    pixels = image.imread(path)[250:840, 730:1420, :3]
    return int(((pixels[..., 0] > 0.8) & (pixels[..., 2] < 0.4)).sum())


def test_the_worst_of_all_labels(tmp_path, capsys):
    store = LabelStore.create(tmp_path / 'store', {'teacher': 'wall'}, {})
    for k in range(5):
        store.write(label(f'{k}', -MOVE if k == 3 else MOVE))
    assert inspect_labels.main([str(store.folder), '--out', str(tmp_path / 'p'), '--worst', '--count', '1']) == 0
    assert sorted(path.name for path in (tmp_path / 'p').iterdir()) == ['3.png', 'figures.json']
    assert capsys.readouterr().out.splitlines()[-1].endswith('1 pictures, measures of 5 labels')


def test_damaged_labels_are_named_and_fail(tmp_path, capsys):
    out = ['--out', str(tmp_path / 'p')]
    assert inspect_labels.main([str(tmp_path / 'none'), *out]) == 1
    store = LabelStore.create(tmp_path / 'store', {'teacher': 'wall'}, {})
    assert inspect_labels.main([str(store.folder), *out]) == 1
    assert 'has no labels yet' in capsys.readouterr().err
    store.write(empty()).write_bytes(b'half')
    assert inspect_labels.main([str(store.folder), *out]) == 1
    assert 'empty.label is damaged' in capsys.readouterr().err
