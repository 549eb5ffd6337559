# SPDX-License-Identifier: Apache-2.0
"""A label job over a ray cluster does what it does in one process."""

import dataclasses
import os

import pytest
from label_world import WallConfig, WorldJob
from processes import ROOT

from training.labels.label_job import run

pytest.importorskip('torch', reason='training needs torch')
ray = pytest.importorskip('ray', reason='needs ray')
PLACES = os.pathsep.join([str(ROOT), str(ROOT / 'test' / 'support')])


def states(outcomes) -> list[str]:
    return [outcome.state for outcome in sorted(outcomes, key=lambda outcome: outcome.key)]


def test_a_job_over_ray(tmp_path):
    diary = tmp_path / 'diary'
    job = WorldJob(('world',), 'wall', tmp_path / 'labels', wall=WallConfig(diary=str(diary)))
    environment = {'env_vars': {'PYTHONPATH': PLACES}}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        broken = run(dataclasses.replace(job, broken=(2,)), on_ray=True)
        assert states(broken) == ['done', 'done', 'failed', 'done', 'done', 'done']
        assert [o.reason for o in broken if o.state == 'failed'] == ['DataError: sweep 2 is cut short']
        assert states(run(job, on_ray=True)) == ['kept', 'kept', 'done', 'kept', 'kept', 'kept']
    finally:
        ray.shutdown()
    assert sorted(map(int, diary.read_text().split())) == list(range(6))
