# SPDX-License-Identifier: Apache-2.0
"""Bags whose clouds say when each point was measured, offline and as data sets."""

import pickle
import re

import numpy as np
import pytest
from tiny_bag import CLOUD_TOPIC, EGO_SPEED, street, write_bag

from training.datasets import open_dataset
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.replay import main
from zeroflow_ros.runtime.offline import FLOW_TOPIC, OfflineFlow, estimate_flow

FLOAT = DEFAULT_MODELS['tensorrt']  # in 8 bits, what is nearly the same rounds to something else now and then


@pytest.fixture(scope='module')
def engine():
    return load_engine(FLOAT)


def clouds_of(path, topic):
    with Bag(path) as bag:
        return [decode_message(m.cdr, POINT_CLOUD) for m in bag.messages([topic])]


def velocities_of(path, engine, first=0):
    """Velocities of the pairs from number `first` on; the first of them has no history."""
    with Bag(path) as bag:
        return [estimate.velocity for _, estimate in estimate_flow(bag, engine, start=max(0.0, 0.1 * first - 0.02))]


def scaled(number, cloud):
    if number == 2:
        cloud.data.view(np.int32).reshape(-1, 5)[:, 4] *= 10  # a sweep of 1 s


def without(number, cloud):
    if number == 2:
        cloud.fields[4].name = 'ring'


@pytest.mark.parametrize('stamped', [0.0, 0.5, 1.0])
def test_deskewed_sweeps_give_the_flow_of_sweeps_seen_at_once(engine, tmp_path, stamped):
    path, out = write_bag(tmp_path / 'timed', num_sweeps=6, stamped=stamped), tmp_path / 'flow'
    assert main([str(path), '--offline', '--deskew', '--model', str(FLOAT), '--out', str(out)]) == 0
    recorded, flows = clouds_of(path, CLOUD_TOPIC), clouds_of(out, FLOW_TOPIC)
    # Odometry reaches from the first stamp to the last and 0.05 s beyond: not over one half of the first or last sweep.
    first, errors = 0 if stamped == 0 else 1, []
    expected = velocities_of(write_bag(tmp_path / 'whole', num_sweeps=6), engine, first)
    skewed = velocities_of(path, engine, first)
    assert len(flows) == 4
    for k, cloud in enumerate(flows, first):
        rows, seen = np.frombuffer(cloud.data, np.uint8).reshape(4000, -1), recorded[k + 1].data.reshape(4000, -1)
        np.testing.assert_array_equal(rows[:, :20], seen)  # what came in goes out, where the LiDAR saw it
        velocity = rows[:, 20:32].copy().view(np.float32)
        errors.append([np.nanmean(np.abs(v - expected[k - first])) for v in (velocity, skewed[k - first])])
    with_deskew, without_deskew = np.mean(errors, axis=0)
    # m/s; half a bin is 0.5 mm at 5 m/s, and the network makes more of what then falls into another pillar.
    assert with_deskew < 0.005 and with_deskew < 0.1 * without_deskew, (with_deskew, without_deskew)


def test_clouds_without_times_are_taken_as_they_are_and_that_is_said(tmp_path, capsys):
    path = write_bag(tmp_path / 'bag', num_sweeps=3)
    assert main([str(path), '--offline', '--deskew', '--out', str(tmp_path / 'flow')]) == 0
    said = capsys.readouterr()
    assert 'have no field t, time,' in said.err and 'used without deskewing' in said.err
    assert 'sweeps 3, flow 2' in said.out


def test_nobody_can_deskew_without_motion(tmp_path, capsys):
    path = write_bag(tmp_path / 'bag', num_sweeps=3, stamped=0.0)
    options = ['--offline', '--deskew', '--ego-motion', 'none', '--out', str(tmp_path / 'flow')]
    assert main([str(path), *options]) == 1 and 'choose an --ego-motion other than none' in capsys.readouterr().err
    assert not (tmp_path / 'flow').exists()


def test_times_without_sense_drop_the_sweep(engine, tmp_path):
    with Bag(write_bag(tmp_path / 'bag', num_sweeps=5, stamped=0.0, spoil=scaled)) as bag:
        results = list(OfflineFlow(bag, engine, deskew=True))
        assert [r.drop for r in results] == [DropReason.FIRST, None, DropReason.MALFORMED, None, DropReason.EGO_MOTION]
        assert "'t' (uint32) goes from 0 to" in results[2].reason
        assert [r.drop for r in OfflineFlow(bag, engine)] == [DropReason.FIRST, None, None, None, None]  # nobody looks


def test_pairs_carry_the_times_of_their_points(tmp_path):
    plain = open_dataset(f'bag:{write_bag(tmp_path / "plain", num_sweeps=3)}')
    assert plain[0].times is None and not plain.has_times
    dataset = open_dataset(f'bag:{write_bag(tmp_path / "timed", num_sweeps=3, stamped=1.0)}')
    item = dataset[1]
    for times in item.times:
        assert times.dtype == np.float32 and times.min() == pytest.approx(-0.1) and times.max() == pytest.approx(-1e-4)
    x = street(1)[:, 0] - EGO_SPEED * item.times[0]
    np.testing.assert_allclose(item.pair.points0[:, 0], x, atol=1e-5)  # m; as the LiDAR saw it


@pytest.mark.parametrize('stamped', [0.5, 1.0])
@pytest.mark.parametrize('source', ['odometry', 'tf'])
def test_deskewed_pairs_are_where_they_are_at_the_stamps(tmp_path, source, stamped):
    path = write_bag(tmp_path / 'bag', num_sweeps=6, stamped=stamped, num_points=20_000)
    dataset = open_dataset(f'bag:{path}?deskew=true&ego_motion={source}')
    # The poses begin at the first stamp, of which a part of the first sweep comes more than 0.05 s before.
    assert (len(dataset), dict(dataset.skipped)) == (4, {'no_ego_motion': 1})
    for k, item in enumerate((dataset[index] for index in range(4)), 1):
        for number, points in ((k, item.pair.points0), (k + 1, item.pair.points1)):
            expected = street(number, num_points=20_000)[:, :3]
            np.testing.assert_allclose(points, expected, atol=1e-3)  # m: half a bin at 5 m/s is 0.5 mm
        np.testing.assert_allclose(item.pair.ego0_T_ego1[:3, 3], [EGO_SPEED * 0.1, 0, 0], atol=1e-9)
        assert item.times is not None
    again = pickle.loads(pickle.dumps(dataset))[2]
    np.testing.assert_array_equal(again.pair.points1, dataset[2].pair.points1)


@pytest.mark.parametrize('spoil, said', [(scaled, r'int32\) goes from'), (without, 'have no field t, time')])
def test_a_data_set_never_uses_times_without_sense(tmp_path, spoil, said):
    path = write_bag(tmp_path / 'bag', num_sweeps=6, stamped=1.0, spoil=spoil)
    dataset = open_dataset(f'bag:{path}')
    assert [dataset[k].times is None for k in range(5)] == [False, True, True, False, False]  # not of the whole bag
    assert dataset.has_times and 'of 1 clouds are not used' in dataset.times_note
    assert re.search(said, dataset.times_note)
    deskewed = open_dataset(f'bag:{path}?deskew=true')  # nobody can tell where the points of that sweep were
    assert dict(deskewed.skipped) == {'malformed_cloud': 1, 'no_ego_motion': 1} and len(deskewed) == 3
    assert deskewed[0].times is not None


@pytest.mark.parametrize('stamped, options, said', [(None, '', 'have no field t'), (0.0, '&ego_motion=none', 'no ego')])
def test_what_cannot_be_deskewed_is_refused(tmp_path, stamped, options, said):
    path = write_bag(tmp_path / 'bag', num_sweeps=3, stamped=stamped)
    with pytest.raises(DataError, match=f'cannot be deskewed.*{said}'):
        open_dataset(f'bag:{path}?deskew=true{options}')


def test_a_real_bag_says_when_its_points_were_measured(shared_data):
    dataset = open_dataset(f'bag:{shared_data}/bags/apollo_columbia_park')
    item = dataset[3]
    assert len(dataset) == 29 and not dataset.times_note
    for times, points in zip(item.times, (item.pair.points0, item.pair.points1), strict=True):
        assert times.shape == (len(points),) and -1e-4 < times.min() and times.max() == pytest.approx(0.1, abs=1e-3)
