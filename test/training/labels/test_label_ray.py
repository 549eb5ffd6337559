# SPDX-License-Identifier: Apache-2.0
"""A label job over a ray cluster does what it does in one process."""

import dataclasses
import os
from collections import Counter

import pytest
from label_world import WallConfig, WorldJob
from processes import ROOT

from training.labels.label_job import run
from training.labels.label_store import LabelStore

pytest.importorskip('torch', reason='training needs torch')
ray = pytest.importorskip('ray', reason='needs ray')
PLACES = os.pathsep.join([str(ROOT), str(ROOT / 'test' / 'support')])


def states(outcomes) -> list[str]:
    return [outcome.state for outcome in sorted(outcomes, key=lambda outcome: outcome.key)]


@pytest.fixture(scope='module')
def cluster():
    """A ray cluster on this computer, of one node with one processor; tests add others."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [PLACES, os.environ.get('PYTHONPATH')])))
        cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False})
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_a_job_over_ray(cluster, tmp_path):
    diary = tmp_path / 'diary'
    job = WorldJob(('world',), 'wall', tmp_path / 'labels', wall=WallConfig(diary=str(diary)))
    broken = run(dataclasses.replace(job, broken=(2,)), on_ray=True)
    assert states(broken) == ['done', 'done', 'failed', 'done', 'done', 'done']
    assert [o.reason for o in broken if o.state == 'failed'] == ['DataError: sweep 2 is cut short']
    assert states(run(job, on_ray=True)) == ['kept', 'kept', 'done', 'kept', 'kept', 'kept']
    assert sorted(map(int, diary.read_text().split())) == list(range(6))


def test_a_job_on_two_nodes_of_which_one_dies_labels_every_pair(cluster, tmp_path):
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    diary = tmp_path / 'diary'
    job = WorldJob(('world',), 'wall', tmp_path / 'labels', num_pairs=24,
                   wall=WallConfig(seconds=0.2, diary=str(diary), notes_process=True))  # fmt: skip
    kills = []

    def kill_the_second(outcome, total):
        processes = {line.split()[1] for line in diary.read_text().splitlines()} if diary.exists() else set()
        if len(processes) > 1 and not kills:
            cluster.remove_node(second, allow_graceful=False)
            kills.append(outcome)

    outcomes = run(job, on_ray=True, progress=kill_the_second)
    assert kills, 'both nodes labelled'
    assert len(outcomes) == 24 and set(states(outcomes)) <= {'done', 'kept'}
    store = LabelStore(job.out)
    assert len(store.keys()) == 24 and all(store.is_intact(key) for key in store.keys())
    asked = Counter(line.split()[0] for line in diary.read_text().splitlines())
    assert len(asked) == 24
    assert sum(asked.values()) <= 24 + 2, 'only what the dead node had begun is labelled again'


def test_a_pair_that_ends_its_process_each_time_fails_alone(cluster, tmp_path):
    job = WorldJob(('world',), 'wall', tmp_path / 'labels', num_pairs=3, wall=WallConfig(die_at=1))
    outcomes = run(job, on_ray=True)
    assert states(outcomes) == ['done', 'failed', 'done']
    [reason] = [outcome.reason for outcome in outcomes if outcome.state == 'failed']
    assert 'its process ended each time it was tried (WorkerCrashedError); is memory short?' in reason
