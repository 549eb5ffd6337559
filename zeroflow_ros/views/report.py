# SPDX-License-Identifier: Apache-2.0
"""Statistics of a run: percentiles, tables, and JSON files written atomically."""

import contextlib
import json
import os
import platform
from pathlib import Path

import numpy as np


def percentiles(values) -> dict[str, float]:
    """Return p50, p95, p99, max and count of numbers; only the count if there are none."""
    values = np.asarray(values, np.float64)
    if values.size == 0:
        return {'count': 0}
    p50, p95, p99 = (round(float(value), 3) for value in np.percentile(values, [50, 95, 99]))
    return {'count': int(values.size), 'p50': p50, 'p95': p95, 'p99': p99, 'max': round(float(values.max()), 3)}


def latency_table(latency_ms: dict[str, dict]) -> str:
    """Return percentiles by stage as a text table in milliseconds."""
    lines = [f'{"":12}{"median":>9}{"p95":>9}{"p99":>9}{"max":>9}  [ms]']
    for stage, values in latency_ms.items():
        if values['count']:
            lines.append(f'{stage:12}' + ''.join(f'{values[key]:9.1f}' for key in ('p50', 'p95', 'p99', 'max')))
    return '\n'.join(lines)


def write_json(path: str | Path, content: dict) -> None:
    """Write a JSON file atomically (temporary file and rename)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.partial')
    temporary.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(temporary, path)


def hardware() -> dict:
    """Return the hardware that a measurement runs on: processor, usable cores, memory, current load."""
    model = 'unknown'
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return {
        'cpu': model,
        'cores': cores,
        'memory_gb': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'load_average': round(os.getloadavg()[0], 2),
        'python': platform.python_version(),
        'system': platform.platform(),
    }
