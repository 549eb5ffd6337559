# SPDX-License-Identifier: Apache-2.0
import os
import signal
import threading
import time

import pytest

from zeroflow_ros.runtime.subprocesses import ProcessGroup, ProgramError, StoppedError, resident_megabytes

SCRIPTS = {
    'good': 'print("all is well")',
    'bad': 'import sys; print("the disk is full"); sys.exit(3)',
    'slow': 'import time; print("ready"); time.sleep(60)',
    'deaf': 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print("ready"); time.sleep(60)',
    'parent': 'import subprocess, sys\n'
    'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
    'print(child.pid)\nchild.wait()',
}


@pytest.fixture
def start(tmp_path):
    """Return a function that gives ProcessGroup, which find the scripts above as modules."""
    for name, text in SCRIPTS.items():
        (tmp_path / f'zf_{name}.py').write_text(text)

    def make(timeout=20.0, stop=None):
        environment = {'PYTHONPATH': str(tmp_path)}
        return ProcessGroup(tmp_path / 'log', environment, time.monotonic() + timeout, stop or threading.Event())

    return make


def is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def said(programs, name):
    return programs.log(name).read_text()


def test_a_good_program_is_waited_for(start):
    with start() as programs:
        programs.start('one', 'zf_good')
        programs.wait_for_exit('one', 'one')
        assert said(programs, 'one') == 'all is well\n'
        assert not programs.is_running('one')
        programs.interrupt('one')  # has no effect any more


def test_the_failure_of_any_program_ends_the_wait_with_its_log(start):
    with start() as programs:
        slow = programs.start('one', 'zf_slow')
        programs.start('two', 'zf_bad')
        with pytest.raises(
            ProgramError, match=r'(?s)The two ended with status 3.*two\.log ends with:.*the disk is full'
        ):
            programs.wait_for_exit('one', 'one')
    assert slow.poll() is not None


def test_time_is_up(start):
    with start() as programs:
        programs.start('one', 'zf_slow')
        with pytest.raises(ProgramError, match='Time is up while waiting for a sign'):
            programs.wait_until(lambda: False, 'a sign', timeout=0.3)
    with start(timeout=0.3) as programs:
        programs.start('one', 'zf_slow')
        with pytest.raises(ProgramError, match='Time is up'):
            programs.wait_for_exit('one', 'one', timeout=100.0)


def test_a_wait_ends_when_told_to_stop(start):
    stop = threading.Event()
    with start(stop=stop) as programs:
        programs.start('one', 'zf_slow')
        stop.set()
        with pytest.raises(StoppedError):
            programs.wait_for_exit('one', 'one')


def test_nothing_outlives_the_block(start):
    with start() as programs:
        deaf, parent = programs.start('deaf', 'zf_deaf'), programs.start('parent', 'zf_parent')
        programs.wait_until(lambda: said(programs, 'deaf') and said(programs, 'parent'), 'both')
        child = int(said(programs, 'parent'))
        assert is_alive(child)
    assert deaf.poll() == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child) and parent.poll() is not None


def test_memory_of_a_process():
    assert resident_megabytes(os.getpid()) > 1
    assert resident_megabytes(2**22 + 1) is None
