# SPDX-License-Identifier: Apache-2.0
"""The ways in which a student learns: what each needs of a pair, and that SeFlow learns without being told the flow."""

import dataclasses

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch', reason='training needs torch')

pytest.importorskip('pytorch_lightning', reason='training needs pytorch-lightning')

from train_world import GRID, TINY, Labels, source  # noqa: E402

from training.config import load_config  # noqa: E402
from training.datasets.clip_store import ClipStore, TrainingPair  # noqa: E402
from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.lightning_module import collate  # noqa: E402
from training.learning.pair_sources import split_labels  # noqa: E402
from training.learning.samples import PairSamples  # noqa: E402
from training.learning.strategies import STRATEGIES, build_strategy  # noqa: E402
from training.learning.train_config import TrainConfig  # noqa: E402
from training.scoring.label_metrics import score_against_labels  # noqa: E402
from training.students import build_student  # noqa: E402
from training.teachers.dynamic_labels import FIRST_CLUSTER, GROUND, NOT_LABELLED, STATIC  # noqa: E402
from training.train import train  # noqa: E402
from zeroflow_ros.errors import ConfigError, DataError  # noqa: E402

SEFLOW = dataclasses.replace(TINY, strategy='seflow')
MOVE = np.float32([0.8, 0.0, 0.0])  # m over the pair


def yard(seed=0, move=MOVE, with_flow=False):
    """Return a pair: ground, a wall that stands, a box of 400 points that moves, and a point nobody was asked about."""
    rng = np.random.default_rng(seed)
    ground = np.column_stack([rng.uniform(-6, 6, (300, 2)), np.zeros(300)])
    wall = rng.uniform([-6, 5, 0.2], [6, 5.2, 2], (300, 3))
    box = rng.uniform([-1, -1, 0.3], [1, 0, 1.5], (400, 3))
    clouds = [np.concatenate([ground, wall, box + k * move, [[5, -5, 1]]]).astype(np.float32) for k in (0, 1)]
    dynamic = np.repeat([GROUND, STATIC, FIRST_CLUSTER, NOT_LABELLED], [300, 300, 400, 1]).astype(np.int32)
    flow = np.where(dynamic[:, None] >= FIRST_CLUSTER, np.nan, np.float32(0) * move).astype(np.float32)
    if with_flow:
        flow[300:][:700] = np.repeat([0 * move, move], [300, 400], axis=0)
        flow[-1] = np.nan
        return TrainingPair(*clouds, flow, -flow, 0.1, dynamic == GROUND, dynamic == GROUND)
    return TrainingPair(*clouds, flow, flow, 0.1, dynamic == GROUND, dynamic == GROUND, dynamic, dynamic)


def test_every_strategy_can_be_built_and_says_what_it_learns_from():
    said = {build_strategy(dataclasses.replace(TINY, strategy=name)).supervision('the labels') for name in STRATEGIES}
    assert len(said) == len(STRATEGIES) and all('the labels' in text for text in said)
    with pytest.raises(ConfigError, match='strategy should be one of distillation, seflow'):
        build_strategy(dataclasses.replace(TINY, strategy='selfflow'))


def test_the_recipe_of_seflow_loads(tmp_path):
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump({'strategy': 'seflow'}))
    assert load_config(TrainConfig, tmp_path / 'c.yaml').strategy == 'seflow'


def test_of_labels_that_hold_flow_seflow_keeps_what_moves():
    prepared = build_strategy(SEFLOW).prepare(yard(with_flow=True))
    given = yard()
    np.testing.assert_array_equal(prepared.dynamic0, given.dynamic0)
    np.testing.assert_array_equal(prepared.dynamic1, given.dynamic1)
    assert build_strategy(SEFLOW).prepare(given) is given


def test_labels_without_flow_cannot_be_distilled():
    with pytest.raises(DataError, match='strategy: seflow'):
        build_strategy(TINY).prepare(yard())


@pytest.mark.parametrize('step', [0, 2, 3])
def test_dynamic_labels_stay_with_their_points(step):
    """A point is known by its height, which nothing but `height` and `scale` changes."""
    exact = dataclasses.replace(TINY.augmentation, height=0.0, scale=0.0, jitter=0.0, ego_translation=0.0, thin=0.9)
    config = dataclasses.replace(SEFLOW, augmentation=exact, held_out=0.0)
    labels = Labels({f'drive/{k}': yard() for k in range(4)})
    samples = PairSamples(config, split_labels(labels, 0.0)[0], GRID)
    pair = yard()
    for i in range(3):
        sample = samples[step, i]
        for points, rows, dynamic, whole, expected in zip(
            sample.clouds, sample.rows, sample.dynamic, (pair.points0, pair.points1), (pair.dynamic0, pair.dynamic1),
            strict=True,
        ):  # fmt: skip
            assert rows.tolist() == list(range(len(points))) and len(dynamic) == len(points)
            above = points[:, 2] > 0.01  # the ground is all at one height
            nearest = np.abs(points[above, 2][:, None] - whole[:, 2]).argmin(1)
            np.testing.assert_array_equal(dynamic[above], expected[nearest])
            assert (dynamic[~above] == GROUND).all()


def test_crops_lie_around_what_moves():
    labels = Labels({'drive/0': yard()})
    samples = PairSamples(SEFLOW, split_labels(labels, 0.0)[0], GRID)
    assert all((samples[0, i].dynamic[0] >= FIRST_CLUSTER).sum() > 50 for i in range(4))


def test_a_student_learns_the_flow_of_a_box_without_being_told():
    torch.manual_seed(0)
    student = build_student('fastflow3d_lite').train()
    student.grid = dataclasses.replace(GRID, cells=32)
    strategy = build_strategy(SEFLOW)
    pair = yard()
    clouds = (torch.from_numpy(pair.points0), torch.from_numpy(pair.points1))
    rows = tuple(torch.arange(len(points)) for points in clouds)
    sample = PairSamples(SEFLOW, split_labels(Labels({'drive/0': pair}), 0.0)[0], GRID)[0, 0]
    dynamic = (torch.from_numpy(pair.dynamic0), torch.from_numpy(pair.dynamic1))
    batch = collate([sample])._replace(clouds=[clouds], rows=[rows], dynamic=[dynamic])
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(16):
        predicted = student.forward_both(batch.clouds, batch.rows)
        loss = strategy.loss(predicted, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    flow0, flow1 = (flow.detach().numpy() for flow in predicted[0])
    box, wall = pair.dynamic0 == FIRST_CLUSTER, pair.dynamic0 == STATIC
    for flow, sign in ((flow0, 1), (flow1, -1)):  # m; zero flow is wrong by 0.8
        assert np.linalg.norm(flow[box] - sign * MOVE, axis=1).mean() < 0.4
        assert np.linalg.norm(flow[wall], axis=1).mean() < 0.2


def test_a_flow_that_diverged_has_no_finite_loss():
    sample = PairSamples(SEFLOW, split_labels(Labels({'drive/0': yard()}), 0.0)[0], GRID)[0, 0]
    batch = collate([sample])
    for value in (torch.nan, torch.inf):
        predicted = [tuple(torch.full_like(points, value) for points in batch.clouds[0])]
        assert torch.isnan(build_strategy(SEFLOW).loss(predicted, batch))


@pytest.mark.parametrize('kind', ['pseudo-labels', 'labels of what moves', 'exact flow'])
def test_seflow_trains_a_student(kind, clips, labels, tmp_path):
    config = dataclasses.replace(SEFLOW, accumulate=1, precision='bf16-mixed' if kind == 'exact flow' else '32-true')
    still = Labels({f'drive/{k}': yard(k) for k in range(3)})
    of = {'pseudo-labels': labels, 'labels of what moves': still}
    data = source(clips) if kind == 'exact flow' else split_labels(of[kind], 0.0)[0]
    checkpoint = load_checkpoint(train(config, tmp_path, data))
    assert checkpoint.provenance['step'] == 4 and checkpoint.provenance['loss'] == 'seflow'
    assert checkpoint.provenance['supervision'].startswith("SeFlow's losses on the sweeps themselves; which points")
    assert all(torch.isfinite(value).all() for value in checkpoint.state_dict.values())


@pytest.mark.parametrize('label', [GROUND, STATIC, NOT_LABELLED])
def test_drives_in_which_nothing_moves_train_all_the_same(label, tmp_path):
    pair = yard(move=0 * MOVE)
    flat = np.full_like(pair.dynamic0, label)
    pair = dataclasses.replace(pair, dynamic0=flat, dynamic1=flat)
    checkpoint = load_checkpoint(train(SEFLOW, tmp_path, split_labels(Labels({'drive/0': pair}), 0.0)[0]))
    assert all(torch.isfinite(value).all() for value in checkpoint.state_dict.values())


def test_clips_know_their_ground(clips):
    pair = ClipStore(clips, 2).window(0, 0)
    assert 0.2 < pair.is_ground0.mean() < 0.95 and np.median(np.abs(pair.points0[pair.is_ground0, 2])) < 0.2
    assert not pair.flow0[pair.is_ground0].any() and len(pair.is_ground1) == len(pair.points1)


def test_held_out_pairs_without_flow_say_how_well_what_moves_meets_the_other_sweep():
    student = build_student('fastflow3d_lite').eval()
    _, last = student.head_layers()
    last.weight.data.zero_()
    last.bias.data.copy_(torch.from_numpy(MOVE))
    moved = split_labels(Labels({'drive/0': yard()}), 0.0)[0]
    report = score_against_labels(student, moved)
    assert report['moving']['points'] == 800 and report['still']['epe'] == pytest.approx(0.8, abs=1e-4)
    assert report['moving']['gap'] != report['moving']['gap_at_rest'] > 0.05
    last.bias.data.zero_()
    at_rest = score_against_labels(student, moved)['moving']
    assert at_rest['gap'] == pytest.approx(at_rest['gap_at_rest'], abs=1e-4)


def test_static_points_beside_moving_ones_are_scored_as_often_as_the_configuration_says():
    rng = np.random.default_rng(0)
    street = np.column_stack([rng.uniform(-40, 40, (60000, 2)), np.zeros(60000)])
    car = rng.uniform([10, 5, 0.3], [14, 7, 1.5], (500, 3))
    points = np.concatenate([street, car]).astype(np.float32)
    flow = np.zeros_like(points)
    flow[60000:] = MOVE
    outside = np.linalg.norm(np.maximum(np.abs(points[:, :2] - (12, 6)) - (2, 1), 0), axis=1)  # m from the car

    def scored(share):
        config = dataclasses.replace(TINY, scored_points=400, beside_movers=share)
        rows = build_strategy(config).loss_rows(points, flow, 0.1, np.random.default_rng(1))
        static = rows[rows < 60000]
        assert len(static) == 400 and len(np.unique(rows)) == len(rows) == 800
        return (outside[static] < 1.0).mean(), (outside[static] < 2.0).mean()

    assert scored(0.0)[1] < 0.02
    near, at_most_two_metres = scored(0.25)
    assert at_most_two_metres == pytest.approx(0.25, abs=0.002) and near > 0.15
    flow[60000:] = 0  # nothing moves
    assert len(build_strategy(dataclasses.replace(TINY, scored_points=400, beside_movers=0.25)).loss_rows(
        points, flow, 0.1, np.random.default_rng(1))) == 400  # fmt: skip
