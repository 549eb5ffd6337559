# SPDX-License-Identifier: Apache-2.0
"""The flow node on a computer with a simulated GPU: SIGUSR1 fills its memory, SIGUSR2 frees it, SIGRTMIN loses it."""

import signal
import sys
from itertools import islice

import pytest
from simulated_gpu import SimulatedGpu

from zeroflow_ros.engines import tensorrt_build
from zeroflow_ros.engines.parity import parity_clouds
from zeroflow_ros.node import main

if __name__ == '__main__':
    patch = pytest.MonkeyPatch()
    gpu = SimulatedGpu().install(patch)
    # The small clouds only: comparing engines is tested elsewhere, and the large ones take a minute on a busy machine.
    patch.setattr(tensorrt_build, 'parity_clouds', lambda *about: islice(parity_clouds(*about), 4, 10))
    for number, fails in ((signal.SIGUSR1, 10**9), (signal.SIGUSR2, 0)):
        signal.signal(number, lambda *_, fails=fails: setattr(gpu, 'fails', fails))
    signal.signal(signal.SIGRTMIN, lambda *_: setattr(gpu, 'breaks', True))
    sys.exit(main())
