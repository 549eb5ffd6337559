# SPDX-License-Identifier: Apache-2.0
"""The flow node on a computer with a simulated GPU: SIGUSR1 fills its memory, SIGUSR2 frees it, SIGRTMIN loses it."""

import signal
import sys

import pytest
from simulated_gpu import SimulatedGpu

from zeroflow_ros.node import main

if __name__ == '__main__':
    gpu = SimulatedGpu().install(pytest.MonkeyPatch())
    for number, fails in ((signal.SIGUSR1, 10**9), (signal.SIGUSR2, 0)):
        signal.signal(number, lambda *_, fails=fails: setattr(gpu, 'fails', fails))
    signal.signal(signal.SIGRTMIN, lambda *_: setattr(gpu, 'breaks', True))
    sys.exit(main())
