# SPDX-License-Identifier: Apache-2.0
"""Run the flow node for a long time, or overload it, and check that memory and latency stay constant.

usage:
  make soak                                                             one hour at 10 Hz in small clouds, with no pause
  make soak ARGS='--real-time --points 120000 --sweeps 6000'            ten minutes of large clouds at 10 Hz
  make soak ARGS='--overload --points 450000 --seconds 120'             three times what the node can process

It sends sweeps to a node process over DDS, prints a report, and writes it to OUT. The exit status is 1 when a limit is
exceeded. Limits: resident memory of the last tenth within 2 % of the second tenth; median latency within 20 %, after
correction for slowdown of the machine; a diagnostic message every second; flow for every sweep (95 % with --real-time).
With --overload: age of the output within two processing times, and every received sweep accounted for.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flow_node import NodeProcess, Vehicle, cloud, column, scene
from processes import ROOT

from zeroflow_ros.views.report import hardware, percentiles, write_json

S = 1_000_000_000
DT_NS = S // 10
SHORTEST_DT = 0.05  # s: the model takes pairs from 0.04 s on
LATENCY, AGE_MS = 'processing_time/total_ms', 'pipeline_latency_ms'
MEMORY, LATENCY_GROWTH, REAL_TIME_SHARE, REPORT_S, AGE = 1.02, 1.2, 0.95, 2.5, 2.0
_WARM_UP = 30  # sweeps
_PATIENCE_S = 5.0  # after this, a sweep counts as one without flow


@dataclass
class Record:
    """Measurements of a node.

    memory: (share of the run, resident MB). latency_ms: input-to-output latency. age_s: time from a sweep's stamp to
    its flow. reports: times of diagnostic messages [s]. pace: (share of the run, milliseconds for a fixed piece of
    work); the speed of a virtual machine varies by itself.
    """

    sent: int = 0
    served: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    reports: list[float] = field(default_factory=list)
    pace: list[tuple[float, float]] = field(default_factory=list)

    def latency_of_tenth(self, n: int) -> np.ndarray:
        """Return the latencies [ms] of the n-th tenth of the sweeps, from 0."""
        return np.array_split(np.asarray(self.latency_ms), 10)[n]

    def memory_of_tenth(self, n: int) -> float:
        """Return the median of the resident megabytes in the n-th tenth of the run, from 0."""
        return float(np.median([mb for share, mb in self.memory if n <= share * 10 <= n + 1]))

    def pace_of_tenth(self, n: int) -> float:
        """Return the median time [ms] of the fixed piece of work in the n-th tenth; 1 where there is none."""
        times = [ms for share, ms in self.pace if n <= share * 10 <= n + 1]
        return float(np.median(times)) if times else 1.0

    def longest_silence(self) -> float:
        """Return the longest time between diagnostic messages [s]."""
        return float(np.diff(self.reports).max()) if len(self.reports) > 1 else float('inf')


class Driver:
    """Sends sweeps of a street with a moving car, and records the node's output.

    processing_ms: processing time of a sweep without load.
    """

    processing_ms = 0.0

    def __init__(self, node: NodeProcess, vehicle: Vehicle, num_points: int):
        self.node, self.vehicle, self.record = node, vehicle, Record()
        self._clouds = [cloud(scene(num_points=num_points, box_x=8 + k, seed=k), 0) for k in range(8)]
        self._stamp_ns, self._is_first = time.time_ns(), True
        self._sampled = 0.0
        vehicle.report_times.clear()

    def send(self, stamp_ns: int) -> None:
        self.vehicle.drive(stamp_ns)
        msg = self._clouds[self.record.sent % len(self._clouds)]
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, S)
        self.vehicle.send(msg)
        self.record.sent += 1

    def look(self, share: float) -> None:
        """Record the received output. share: elapsed share of the run, 0 to 1."""
        record, vehicle, now = self.record, self.vehicle, time.monotonic()
        record.reports += vehicle.report_times
        vehicle.report_times.clear()
        for flow in vehicle.flows:
            assert column(flow, 'flow_valid').any(), self.node.log
            record.served += 1
        vehicle.flows.clear()
        record.latency_ms += vehicle.values[LATENCY]
        record.age_s += [ms / 1e3 for ms in vehicle.values[AGE_MS]]
        for values in vehicle.values.values():
            values.clear()
        if now - self._sampled > 0.2:
            self._sampled = now
            record.memory.append((share, self.node.resident_mb()))
            record.pace.append((share, _time_of_fixed_work()))
        assert self.node.process.poll() is None, self.node.log

    def one_by_one(self, sweeps: int) -> None:
        """Send each sweep after the flow of the previous one; stamps are 0.1 s apart."""
        for k in range(sweeps):
            self._stamp_ns += DT_NS
            self.send(self._stamp_ns)
            if self._is_first:
                self._is_first = False
                self.vehicle.spin(0.3)  # it has no flow, and the next one must not overtake it
            else:
                self.vehicle.wait_for(lambda: self.vehicle.flows, _PATIENCE_S)
            self.look(k / sweeps)

    def at_intervals(self, sweeps: int, interval: float) -> None:
        """Send sweeps at a fixed interval, independent of the output."""
        start_ns, start = time.time_ns(), time.monotonic()
        for k in range(sweeps):
            while (left := start + k * interval - time.monotonic()) > 0:
                self.vehicle.spin(min(left, 0.005))
                self.look(k / sweeps)
            self.send(start_ns + round(k * interval * S))
        self.vehicle.spin(2.0)
        self.look(1.0)


_WORK = np.random.default_rng(0).uniform(size=20_000)


def _time_of_fixed_work() -> float:
    """Return the machine's time for a fixed piece of work, about 1 ms."""
    start = time.perf_counter()
    np.sort(_WORK)
    return (time.perf_counter() - start) * 1e3


def soak(num_points: int, sweeps: int, *, real_time: bool) -> dict:
    """Run a node on a number of sweeps; return the report, whose `trouble` lists exceeded limits as sentences."""
    with running(num_points) as driver:
        driver.at_intervals(sweeps, 0.1) if real_time else driver.one_by_one(sweeps)
        record = driver.record
    return {
        'points': num_points, 'sweeps': record.sent, 'with_flow': record.served, 'real_time': real_time,
        'memory_mb_by_tenth': [round(record.memory_of_tenth(n), 1) for n in range(10)],
        'latency_ms_by_tenth': [percentiles(record.latency_of_tenth(n)) for n in range(10)],
        'pace_ms_by_tenth': [round(record.pace_of_tenth(n), 3) for n in range(10)],
        'longest_silence_of_diagnostics_s': round(record.longest_silence(), 2),
        'trouble': trouble_of(record, wanted=REAL_TIME_SHARE if real_time else 1.0),
    }  # fmt: skip


def trouble_of(record: Record, *, wanted: float) -> list[str]:
    """Return the exceeded limits as sentences. wanted: share of sweeps that must have flow."""
    trouble = []
    second, last = record.memory_of_tenth(1), record.memory_of_tenth(9)
    if last > MEMORY * second:
        trouble.append(f'Resident memory grew from {second:.1f} MB in the second tenth to {last:.1f} MB in the last.')
    before, after = (np.median(record.latency_of_tenth(n)) for n in (1, 9))
    slower = record.pace_of_tenth(9) / record.pace_of_tenth(1)
    if after > LATENCY_GROWTH * before * slower:
        trouble.append(
            f'The median latency grew from {before:.1f} ms in the second tenth to {after:.1f} in the last, and the '
            f'machine takes {slower:.2f} times as long for other things.'
        )
    if record.longest_silence() > REPORT_S:
        trouble.append(f'No diagnostics for {record.longest_silence():.1f} s.')
    if record.served < wanted * record.sent:
        trouble.append(f'{record.served} of {record.sent} sweeps had flow.')
    return trouble


def overload(num_points: int, seconds: float, *, warm_up: int = _WARM_UP) -> dict:
    """Send three times what the node can process; return the report, as `soak` does.

    warm_up: sweeps without load before that, from which the processing time is known.
    """
    with running(num_points, warm_up) as driver:
        interval = max(driver.processing_ms / 3e3, SHORTEST_DT)
        driver.at_intervals(round(seconds / interval), interval)
        record, vehicle = driver.record, driver.vehicle
        vehicle.spin(2.5)  # the last diagnostics
        values = {v.key: v.value for status in vehicle.statuses.values() for v in status.values}
    busy = float(np.median(record.latency_ms)) / 1e3
    age = percentiles(record.age_s)
    counted = {name: int(value) for name, value in values.items() if name.startswith('dropped.') and int(value)}
    received, published = int(values['received']), int(values['published'])
    trouble = []
    if age['p99'] > AGE * busy:
        trouble.append(f'The age of flow was {age["p99"]:.2f} s, over twice the {busy:.2f} s of a sweep.')
    if received - published != sum(counted.values()):
        trouble.append(f'{received} came in, {published} went out, but {sum(counted.values())} are counted as dropped.')
    return {
        'points': num_points, 'sweeps': record.sent, 'with_flow': record.served, 'interval_s': round(interval, 3),
        'processing_s': round(busy, 3), 'overload': round(busy / interval, 2), 'age_s': age,
        'received': received, 'dropped': counted,
        'pace_ms_by_tenth': [round(record.pace_of_tenth(n), 3) for n in range(10)],
        'longest_silence_of_diagnostics_s': round(record.longest_silence(), 2),  # as seen by a busy driver
        'trouble': trouble,
    }  # fmt: skip


@contextmanager
def running(num_points: int, warm_up: int = _WARM_UP) -> Iterator[Driver]:
    """Start a node, and yield a driver after its warm-up."""
    arguments = '-p', 'ego_motion_timeout_s:=1.0', '-p', 'num_threads:=1'
    with NodeProcess(*arguments) as node, Vehicle(markers=False, debug=[LATENCY, AGE_MS]) as vehicle:
        vehicle.connect(node)
        driver = Driver(node, vehicle, num_points)
        driver.one_by_one(warm_up)
        vehicle.spin(0.5)
        driver.look(0.0)
        driver.processing_ms = float(np.median(driver.record.latency_ms))
        driver.record = Record()
        yield driver


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'soak.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--points', type=int, default=2000, help='points per sweep (default: %(default)s)')
    parser.add_argument('--sweeps', type=int, default=36_000, help='number of sweeps to send (default: %(default)s)')
    parser.add_argument(
        '--real-time', action='store_true', help='send a sweep every 0.1 s instead of as fast as possible'
    )
    parser.add_argument('--overload', action='store_true', help='send three times what the node can process')
    parser.add_argument(
        '--seconds', type=float, default=120, help='with --overload: duration [s] (default: %(default)s)'
    )
    parser.add_argument('--out', type=Path, default=Path('out/soak.json'))
    given = parser.parse_args()
    for variable in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        os.environ.setdefault(variable, str(ROOT / 'config/fastdds_shm.xml'))  # as the launch files do
    if given.overload:
        report = overload(given.points, given.seconds)
    else:
        report = soak(given.points, given.sweeps, real_time=given.real_time)
    write_json(given.out, report | {'hardware': hardware()})
    for name, value in report.items():
        print(f'{name}: {value}')
    print(f'Written to {given.out}')
    return 1 if report['trouble'] else 0


if __name__ == '__main__':
    sys.exit(main())
