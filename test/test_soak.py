# SPDX-License-Identifier: Apache-2.0
"""Short runs of the programs behind `make soak`; what they need hours for is in docs/reliability.md."""

import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

from soak import Record, overload, soak, trouble_of


def test_a_record_knows_its_tenths_and_silences():
    record = Record(memory=[(k / 100, 100.0 + k) for k in range(101)], reports=[0.0, 1.0, 4.5, 5.0])
    assert record.memory_of_tenth(1) == 115 and record.memory_of_tenth(9) == 195
    assert record.longest_silence() == 3.5
    assert Record().longest_silence() == float('inf')


@pytest.mark.parametrize(
    'changes, said',
    [
        ({}, []),
        ({'memory': [(k / 100, 300 + 0.1 * k) for k in range(101)]}, ['grew from 301.5 MB']),
        ({'reports': [0.0, 3.0, 4.0]}, ['No diagnostics for 3.0 s']),
        ({'latency_ms': [20.0] * 90 + [30.0] * 10}, ['grew from 20.0 ms']),
        ({'latency_ms': [20.0] * 90 + [30.0] * 10, 'pace': [(0.15, 1.0), (0.95, 1.5)]}, []),
        ({'served': 99}, ['99 of 100 sweeps']),
    ],
)
def test_a_limit_that_is_not_kept_is_said(changes, said):
    memory = [(k / 100, 300.0) for k in range(101)]
    good = {'sent': 100, 'served': 100, 'memory': memory, 'latency_ms': [20.0] * 100, 'reports': [0.0, 1.0, 2.0]}
    trouble = trouble_of(Record(**good | changes), wanted=1.0)
    assert len(trouble) == len(said) and all(part in text for part, text in zip(said, trouble, strict=True)), trouble


def test_every_sweep_is_served_and_nothing_grows():
    report = soak(1500, 300, real_time=False)
    assert report['with_flow'] == report['sweeps'] == 300
    first, last = report['memory_mb_by_tenth'][1], report['memory_mb_by_tenth'][9]
    assert last < 1.04 * first, report  # 50 kB lost in each sweep would be 12 MB; the full run is stricter


def test_overloaded_it_serves_the_newest_and_counts_the_rest():
    """How old flow may get is measured by `make soak`: here other tests run beside it."""
    report = overload(200_000, 4, warm_up=6)
    assert report['with_flow'] >= 3, report
    assert report['dropped']['dropped.overtaken_by_newer_sweep'] > 0
    assert not [line for line in report['trouble'] if 'counted as dropped' in line]
