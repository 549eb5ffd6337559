# SPDX-License-Identifier: Apache-2.0
"""What the offline runs of LiDARs and cameras share: the other topics of the bag, progress, and latencies."""

import heapq
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from zeroflow_ros.bags.bag import STATIC_TRANSFORMS_TOPIC, Bag, BagMessage, BagWriter
from zeroflow_ros.bags.cdr import ODOMETRY, TRANSFORMS
from zeroflow_ros.runtime.command_line import stop_on_signals
from zeroflow_ros.views.report import percentiles


class Result(Protocol):
    """The result of one input.

    time_ns: when it was recorded. drop: why it has no flow, or None. stages_ms: milliseconds by stage.
    """

    time_ns: int
    drop: object | None
    stages_ms: dict


class Results(Protocol):
    """Results in the order of recording. window_ns: the part of the bag that is used, [start_ns, end_ns)."""

    window_ns: tuple[int, int]

    def __iter__(self) -> Iterator[Result]:
        """Yield each result."""


def with_other_topics(results: Results, bag_path: Path, writer: BagWriter) -> Iterator[Result]:
    """Write the odometry and transforms of a bag; yield each result when its turn comes, for the caller to write."""
    start_ns, end_ns = results.window_ns
    with Bag(bag_path) as bag:  # a second reader, so that the two do not disturb each other
        others = [topic for msgtype in (ODOMETRY, TRANSFORMS) for topic in bag.topics_of(msgtype)]
        non_static = [topic for topic in others if topic != STATIC_TRANSFORMS_TOPIC]
        other_messages = heapq.merge(
            bag.messages(non_static, start_ns=start_ns, end_ns=end_ns),
            (
                BagMessage(m.topic, m.msgtype, max(m.time_ns, start_ns), m.cdr)
                for m in list(bag.messages([STATIC_TRANSFORMS_TOPIC], end_ns=end_ns))
            ),
            key=lambda message: message.time_ns,
        )
        for item in heapq.merge(other_messages, results, key=lambda item: item.time_ns):
            if isinstance(item, BagMessage):
                writer.write(item.topic, item.msgtype, item.time_ns, item.cdr)
            else:
                yield item


def report_of_run(results: Iterable[Result], total: int, noun: str, count: Callable[[Result], None]) -> dict:
    """Iterate over all results, which computes, writes and shows them; return seconds and latencies.

    total, noun: inputs in the bag, and what they are called, for the progress. count: called with each result that has
    flow. Raises: KeyboardInterrupt after the result during which SIGINT or SIGTERM arrived.
    """
    stages_ms: dict[str, list[float]] = {}
    number, start = 0, time.perf_counter()
    with stop_on_signals() as stop:  # a KeyboardInterrupt within a compiled function would be lost
        for result in results:
            if stop.is_set():
                raise KeyboardInterrupt
            number += 1
            if result.drop is None:
                count(result)
                for stage, value in result.stages_ms.items():
                    stages_ms.setdefault(stage, []).append(value)
            if sys.stderr.isatty():
                print(f'\r{number} of {total} {noun}', end='', file=sys.stderr)
    if sys.stderr.isatty():
        print('\r', end='', file=sys.stderr)
    return {
        'seconds': round(time.perf_counter() - start, 3),
        'latency_ms': {stage: percentiles(values) for stage, values in stages_ms.items()},
    }
