# SPDX-License-Identifier: Apache-2.0
"""Wall time of each stage of one sweep."""

import time
from contextlib import contextmanager


class Stopwatch:
    """Add up milliseconds per stage: `with watch('pillars'): ...`."""

    def __init__(self):
        self.stages_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages_ms[stage] = self.stages_ms.get(stage, 0.0) + (time.perf_counter() - start) * 1e3
