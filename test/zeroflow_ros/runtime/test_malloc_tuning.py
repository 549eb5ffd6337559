# SPDX-License-Identifier: Apache-2.0
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from zeroflow_ros.runtime.malloc_tuning import keep_freed_memory
if sys.argv[1] == 'keep':
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def sweep():
    buffers = [np.ones(500_000 + 100_000 * i, np.float32) for i in range(10)]
for _ in range(3):
    sweep()
before = faults()
for _ in range(20):
    sweep()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has mallopt')
def test_the_buffers_of_a_sweep_are_not_mapped_anew():
    def faults(what: str) -> int:
        done = subprocess.run([sys.executable, '-c', PROGRAM, what], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults('keep') < 1_000 < 50_000 < faults('leave')  # 20 times 9,300 pages
