# SPDX-License-Identifier: Apache-2.0
"""Label jobs: resuming after a kill, locks, shards, failures, several processes."""

import dataclasses
import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from label_world import WALL_FLOW, WallConfig, WorldJob

pytest.importorskip('torch', reason='training needs torch')

from training import label
from training.labels.label_job import pairs_to_label, run
from training.labels.label_store import LabelStore
from training.teachers.teacher_input import Crop
from zeroflow_ros.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path):
    return WorldJob(('world',), 'wall', tmp_path / 'labels', wall=WallConfig(diary=str(tmp_path / 'diary')))


def asked(job) -> list[int]:
    """Return which pairs the teacher was asked about, by number, in order."""
    path = Path(job.wall.diary)
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def states(outcomes) -> list[str]:
    return [outcome.state for outcome in sorted(outcomes, key=lambda outcome: outcome.key)]


def start(job, then='sys.exit(label.run_job(job))', before=''):
    """Run a job in a process of its own."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / 'test' / 'support')!r})
import training.provenance
training.provenance.provenance = dict  # importing torch takes longer than the job
from pathlib import Path, PosixPath
from label_world import WallConfig, WorldJob
from training import label
from training.teachers.teacher_input import Crop
{before}
job = {job!r}
{then}
"""
    return subprocess.Popen(
        [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )  # fmt: skip


def wait_until(condition, what, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f'waited for {what}'
        time.sleep(0.01)


def test_a_job_labels_every_pair_once(job):
    assert states(run(job)) == ['done'] * 6
    store = LabelStore(job.out)
    assert store.keys() == [f'drive/{k:06d}' for k in range(6)]
    made = store.read('drive/000003')
    above = ~made.is_ground0
    assert above.sum() == 33
    np.testing.assert_allclose(made.flow0[above], np.tile(WALL_FLOW, (33, 1)), atol=1e-6)
    assert not made.flow0[~above].any() and made.dt == 0.1
    assert store.about | {'code': 0} == {
        'schema': 1, 'teacher': 'wall', 'config': dataclasses.asdict(job.wall), 'datasets': ['world'], 'code': 0,
        'crop': {'half_extent': 51.2, 'z_min': -3.0, 'z_max': 3.0},
    }  # fmt: skip
    assert states(run(job)) == ['kept'] * 6
    assert sorted(asked(job)) == list(range(6))


def test_a_few_pairs_first_and_the_others_later(job):
    assert states(run(dataclasses.replace(job, most_pairs=2))) == ['done'] * 2
    assert LabelStore(job.out).keys() == ['drive/000000', 'drive/000005']
    assert states(run(job)) == ['kept', 'done', 'done', 'done', 'done', 'kept']


@pytest.mark.parametrize('total, most, consecutive, expected', [
    (0, 0, 1, []), (0, 5, 4, []), (3, 0, 4, [0, 1, 2]), (3, 3, 2, [0, 1, 2]), (9, 3, 1, [0, 4, 8]),
    (20, 6, 3, [0, 1, 2, 17, 18, 19]), (20, 7, 3, [0, 1, 2, 17, 18, 19]), (20, 2, 3, [0, 1]),
    (5, 4, 2, [0, 1, 3, 4]), (4, 3, 3, [0, 1, 2]),
])  # fmt: skip
def test_few_pairs_come_in_runs_for_longer_windows(total, most, consecutive, expected):
    assert pairs_to_label(total, most, consecutive) == expected


def test_a_run_without_pairs_is_refused(job):
    with pytest.raises(ConfigError, match='length of 1 or more, got 0'):
        dataclasses.replace(job, consecutive=0)
    assert states(run(dataclasses.replace(job, most_pairs=4, consecutive=2))) == ['done'] * 4
    assert LabelStore(job.out).keys() == [f'drive/{k:06d}' for k in (0, 1, 4, 5)]


def test_a_damaged_label_is_redone_and_no_other(job):
    run(job)
    path = LabelStore(job.out).path('drive/000002')
    path.write_bytes(path.read_bytes()[:100])
    assert states(run(job)) == ['kept', 'kept', 'done', 'kept', 'kept', 'kept']
    assert asked(job)[6:] == [2] and LabelStore(job.out).is_intact('drive/000002')


def test_verify_redoes_labels_of_other_sweeps(job):
    run(job)
    assert states(run(dataclasses.replace(job, verify=True))) == ['kept'] * 6
    others = dataclasses.replace(job, seed=100)
    assert states(run(others)) == ['kept'] * 6  # without reading the pairs it cannot be seen
    assert states(run(dataclasses.replace(others, verify=True))) == ['done'] * 6


def test_a_killed_job_goes_on_where_it_was(job):
    """kill -9 again and again, each time at another moment; in the end no pair was asked about twice but those hit."""
    slow = dataclasses.replace(job, num_pairs=12, wall=dataclasses.replace(job.wall, seconds=0.05))
    kills = 0
    for wanted in (2, 5, 9):
        process = start(slow)
        wait_until(lambda: len(asked(job)) > wanted, 'labels')  # noqa: B023
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        kills += 1
        store = LabelStore(job.out)
        assert all(store.is_intact(key) for key in store.keys())
    assert set(states(run(slow))) == {'kept', 'done'}
    assert len(store.keys()) == 12 and all(store.is_intact(key) for key in store.keys())
    assert set(asked(job)) == set(range(12)) and len(asked(job)) <= 12 + kills


def test_a_job_that_dies_while_writing_leaves_nothing_under_the_name(job):
    dies = 'import os; os.replace = lambda *_: os.kill(os.getpid(), 9)'
    process = start(job, before=f'import training.labels.label_job\n{dies}')
    assert process.wait(60) == -signal.SIGKILL
    folder = job.out / 'labels' / 'drive'
    assert [path.name[0] for path in folder.iterdir()] == ['.']
    assert LabelStore(job.out).keys() == []
    assert states(run(job)) == ['done'] * 6
    assert not [path for path in folder.iterdir() if path.name[0] == '.']


def test_two_jobs_on_one_shard(job):
    slow = dataclasses.replace(job, shard=(1, 2), wall=dataclasses.replace(job.wall, seconds=30.0))
    process = start(slow)
    try:
        wait_until(lambda: asked(job), 'the first pair')
        with pytest.raises(DataError, match=rf'at work on shard 1/2 \(process {process.pid} on '):
            run(slow)
        with pytest.raises(DataError, match='overlaps with 1/3'):
            run(dataclasses.replace(slow, shard=(1, 3)))
        other_shard = dataclasses.replace(slow, shard=(2, 2), out=job.out, broken=tuple(range(6)))
        assert states(run(other_shard)) == ['failed'] * 3
    finally:
        process.kill()
        process.wait(10)
    quick = dataclasses.replace(slow, wall=job.wall)
    with pytest.raises(DataError, match='labels of other settings'):
        run(quick)
    with open(job.out / 'jobs' / 'shard_1_of_2.lock') as lock:  # the kernel freed it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize('num_pairs, num_shards', [(1, 1), (6, 4), (3, 5), (7, 2)])
def test_shards_are_disjoint_and_complete(job, num_pairs, num_shards):
    keys = []
    for k in range(1, num_shards + 1):
        keys += [outcome.key for outcome in run(dataclasses.replace(job, num_pairs=num_pairs, shard=(k, num_shards)))]
    assert sorted(keys) == [f'drive/{k:06d}' for k in range(num_pairs)]
    assert sorted(asked(job)) == list(range(num_pairs))


def test_failures_are_counted_and_the_job_goes_on(job, capsys):
    broken = dataclasses.replace(job, broken=(1, 4))
    assert label.run_job(broken) == 1
    said = capsys.readouterr()
    assert '1 failed, for example drive/000001: DataError: sweep 1 is cut short' in said.err
    assert said.out.splitlines()[-1].startswith(f'{job.out}: shard 1/1, 4 pairs labelled in ')
    assert '0 already there, 2 failed' in said.out
    report = json.loads((job.out / 'jobs' / 'shard_1_of_1.json').read_text())
    assert report['failures']['drive/000004'] == 'DataError: sweep 4 is cut short' and report['done'] == 4
    assert label.run_job(job) == 0
    assert '2 pairs labelled in' in capsys.readouterr().out


def test_a_full_disk_ends_the_job_with_a_clear_error(job):
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))'
    process = start(job, before=limit, then="""
try:
    label.run_job(job)
except Exception as error:
    sys.exit(str(error))
""")  # fmt: skip
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and 'cannot be written: File too large' in said, said
    assert not list((job.out / 'labels').rglob('*.*'))
    assert states(run(job)) == ['done'] * 6


def test_several_processes_do_the_same(job):
    assert states(run(job, processes=2)) == ['done'] * 6
    assert sorted(asked(job)) == list(range(6))
    assert states(run(job, processes=2)) == ['kept'] * 6


def test_a_process_that_is_killed_is_reported(job):
    deadly = dataclasses.replace(job, wall=dataclasses.replace(job.wall, die_at=3))
    with pytest.raises(DataError, match='A labelling process was killed'):
        run(deadly, processes=2)
    assert all(map(LabelStore(job.out).is_intact, LabelStore(job.out).keys()))


def test_no_process_outlives_the_job(job):
    slow = dataclasses.replace(job, wall=dataclasses.replace(job.wall, seconds=60.0))
    process = start(slow, 'label.run_job(job, processes=2)', before='if __name__ != "__main__": raise SystemExit')
    try:
        wait_until(lambda: len(asked(job)) == 2, 'both processes', 60)
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        assert len(children) >= 2
    finally:
        process.kill()
        process.wait(10)
    wait_until(lambda: not any(is_alive(child) for child in children), 'the end of its processes', 10)


def test_ctrl_c_does_not_wait_for_pairs_under_way(job):
    slow = dataclasses.replace(job, wall=dataclasses.replace(job.wall, seconds=60.0))
    process = start(slow, 'label.run_job(job, processes=2)', before='if __name__ != "__main__": raise SystemExit')
    try:
        wait_until(lambda: len(asked(job)) == 2, 'both processes', 60)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode != 0


def is_alive(pid) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def test_a_dataset_with_nothing_or_with_a_key_twice(job):
    with pytest.raises(DataError, match='are empty'):
        run(dataclasses.replace(job, num_pairs=0))
    with pytest.raises(DataError, match="share keys, such as 'drive/000000'"):
        run(dataclasses.replace(job, datasets=('world', 'world')))
    assert not job.out.exists()


@pytest.mark.parametrize('shard', [(0, 1), (3, 2)])
def test_a_shard_that_is_none(job, shard):
    with pytest.raises(ConfigError, match='A shard is K/N'):
        dataclasses.replace(job, shard=shard)


@pytest.mark.parametrize('text, said', [('a: [', 'is not YAML'), ('- a', 'should be a mapping'), (None, 'No config')])
def test_a_config_that_is_none(tmp_path, capsys, text, said):
    path = tmp_path / 'teacher.yaml'
    if text:
        path.write_text(text)
    assert label.main(['world', '--teacher', 'wall', '--config', str(path), '--out', str(tmp_path / 'o')]) == 1
    assert said in capsys.readouterr().err
    assert label.read_settings(None) == {}


def test_a_crop_is_an_option_of_the_program(monkeypatch, tmp_path):
    jobs = []
    monkeypatch.setattr(label, 'run_job', lambda job, **how: jobs.append((job, how)) or 0)
    (tmp_path / 'teacher.yaml').write_text('rate: 0.1\n')
    words = [
        'a',
        'b',
        '--teacher',
        'wall',
        '--out',
        'o',
        '--half-extent',
        '20',
        '--z-range',
        '-4',
        '4',
        '--shard',
        '2/3',
    ]
    assert label.main([*words, '--config', str(tmp_path / 'teacher.yaml'), '--processes', '2']) == 0
    job, how = jobs[0]
    assert job.crop == Crop(20.0, -4.0, 4.0) and job.shard == (2, 3) and job.datasets == ('a', 'b')
    assert json.loads(job.config) == {'rate': 0.1} and how['processes'] == 2
