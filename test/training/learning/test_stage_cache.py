# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT

from training.learning.stage_cache import Checksums, lock_work_folder, run_cached_stage, run_program
from zeroflow_ros.errors import DataError


@pytest.fixture
def made(tmp_path):
    """Return a function that runs a stage with two results, and the list of what it wrote."""
    written = []

    def run(inputs, fail_after=2):
        def make(folder):
            for number, name in enumerate(('a.txt', 'b.txt')):
                if number == fail_after:
                    raise InterruptedError
                if not (folder / name).exists():
                    (folder / name).write_text(name)
                    written.append(name)

        return run_cached_stage(tmp_path, 'copy', inputs, make, results=('*.txt',))

    return run, written


def test_a_stage_is_made_once(made):
    run, written = made
    first, again = run({'x': 1}), run({'x': 1})
    assert first == again and written == ['a.txt', 'b.txt']
    other = run({'x': 2})
    assert other.folder != first.folder and other.checksum == first.checksum and len(written) == 4


def test_an_interrupted_stage_goes_on(made):
    run, written = made
    with pytest.raises(InterruptedError):
        run({}, fail_after=1)
    run({})
    assert written == ['a.txt', 'b.txt']


@pytest.mark.parametrize(
    'label, damage, expected',
    [
        ('a changed result', lambda folder: (folder / 'b.txt').write_text('c'), ['b.txt']),
        ('a missing result', lambda folder: (folder / 'a.txt').unlink(), ['a.txt']),
        ('half a manifest', lambda folder: (folder / 'manifest.json').write_text('{"files'), []),
    ],
)
def test_only_what_is_damaged_is_made_again(made, label, damage, expected):
    run, written = made
    first = run({})
    damage(first.folder)
    assert run({}) == first and written == ['a.txt', 'b.txt', *expected]


def test_a_stage_without_a_result_is_an_error(tmp_path):
    with pytest.raises(DataError, match='left none of'):
        run_cached_stage(tmp_path, 'idle', {}, lambda folder: None, results=('*',))


def test_checksums_follow_the_content(tmp_path):
    folder = tmp_path / 'bag'
    folder.mkdir()
    (folder / 'data').write_bytes(b'one')
    before = Checksums(tmp_path / 'sums.json')(folder)
    assert Checksums(tmp_path / 'sums.json')(folder) == before
    (folder / 'data').write_bytes(b'three')
    assert Checksums(tmp_path / 'sums.json')(folder) != before


def test_one_at_a_time(tmp_path):
    with lock_work_folder(tmp_path), pytest.raises(DataError, match='another distillation'), lock_work_folder(tmp_path):
        pass
    with lock_work_folder(tmp_path):
        pass


def test_a_program_ends_with_the_one_that_started_it(tmp_path):
    (tmp_path / 'zf_sleep.py').write_text(
        'import os, sys, time; open(sys.argv[1], "w").write(str(os.getpid())); time.sleep(60)'
    )
    mark = tmp_path / 'pid'
    code = f'from training.learning.stage_cache import run_program; run_program("zf_sleep", {str(mark)!r})'
    parent = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, env=os.environ | {'PYTHONPATH': str(tmp_path)})
    deadline = time.monotonic() + 20
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(mark.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=10)

    def is_alive():
        status = Path(f'/proc/{child}/stat')
        return status.exists() and status.read_text().rsplit(')', 1)[1].split()[0] != 'Z'

    while is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive()


def test_the_status_of_a_program_comes_back(tmp_path, monkeypatch):
    (tmp_path / 'zf_fail.py').write_text('import sys; sys.exit(3)')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert run_program('zf_fail') == 3
