# SPDX-License-Identifier: Apache-2.0
"""Health of a node: counters, latencies and current issues. Independent of ROS."""

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

import numpy as np

from zeroflow_ros.lidar.sweep import DropReason, SkipReason

PARTS = ('input', 'ego_motion', 'inference', 'model')
SEEN, EXAMPLE = 'seen.', 'first.'  # keys of the diagnostics: warnings since the start; first text on dropped sweeps
HOLD_S = 5.0  # an issue counts as present this long after it was last seen: five diagnostic messages show it
LOG_EVERY_S = 5.0
_EGO_FAILURES = 10  # in a row: 1 s at 10 Hz, no longer a hiccup of the localisation
_FREQUENT_SHARE = 0.05


class Level(IntEnum):
    """Severity, with the numbers of diagnostic_msgs."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Status:
    """State of one part of the node.

    part: one of PARTS. message: what is wrong, or in short that it works. values: facts to show beside it.
    """

    part: str
    level: Level
    message: str
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Severity:
    """Severity of a dropped sweep: the part of the node, its level, and the log call (debug, info, warning, error)."""

    part: str
    level: Level
    log: str


DROPS = {
    DropReason.FIRST: Severity('input', Level.OK, 'debug'),
    DropReason.MALFORMED: Severity('input', Level.ERROR, 'error'),
    DropReason.EMPTY: Severity('input', Level.WARN, 'warning'),
    DropReason.TOO_LARGE: Severity('input', Level.WARN, 'warning'),
    DropReason.ZERO_STAMP: Severity('input', Level.ERROR, 'warning'),
    DropReason.DUPLICATE: Severity('input', Level.OK, 'debug'),  # a warning when frequent
    DropReason.OUT_OF_ORDER: Severity('input', Level.WARN, 'debug'),
    DropReason.TIME_RESET: Severity('input', Level.OK, 'info'),
    DropReason.FRAME_CHANGED: Severity('input', Level.WARN, 'warning'),
    DropReason.GAP: Severity('input', Level.WARN, 'warning'),
    DropReason.TOO_CLOSE: Severity('input', Level.OK, 'debug'),
    DropReason.EGO_MOTION: Severity('ego_motion', Level.WARN, 'warning'),  # an error when it does not end
    DropReason.PART: Severity('input', Level.WARN, 'warning'),
    DropReason.INCOMPLETE: Severity('input', Level.WARN, 'warning'),
    DropReason.OVERTAKEN: Severity('inference', Level.OK, 'debug'),  # a warning when frequent
    DropReason.ENGINE: Severity('inference', Level.ERROR, 'error'),
}
_LOG_LEVELS = {'warning': Level.WARN, 'error': Level.ERROR}
_FREQUENT = {
    DropReason.DUPLICATE: 'repeat the stamp of the one before: two publishers, or a driver that stamps coarsely',
    DropReason.OVERTAKEN: 'were overtaken: the model is slower than the sensor, give it more threads or a smaller '
    'model',
}


@dataclass(frozen=True)
class InputKind:
    """What a node takes in: the reasons to drop it, and the words for it.

    drops: severity by reason. frequent: sentences on reasons that are harmless unless frequent. words: (pattern,
    replacement) for texts that are written for clouds and sweeps.
    """

    drops: Mapping[Enum, Severity]
    frequent: Mapping[Enum, str]
    words: tuple[tuple[re.Pattern, str], ...] = ()

    def text(self, text: str) -> str:
        """Return a text in the words of this input."""
        for pattern, replacement in self.words:
            text = pattern.sub(replacement, text)
        return text


CLOUDS = InputKind(DROPS, _FREQUENT)


@dataclass(frozen=True)
class Finding:
    """An issue that was seen since the start, for the summary of a run.

    kind: names the rule that was broken. level: the worst one seen. text: of the first report. count: of reports.
    """

    kind: str
    part: str
    level: Level
    text: str
    count: int


@dataclass(frozen=True)
class _Issue:
    part: str
    level: Level
    text: str
    seen: float


class Health:
    """Counters, latencies and current issues; thread-safe.

    log: called with ('debug' | 'info' | 'warning' | 'error', sentence), at most once in LOG_EVERY_S per kind.
    clock: steady seconds. kind: what the node takes in.
    """

    def __init__(self, log: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic,
                 kind: InputKind = CLOUDS):  # fmt: skip
        self._log, self._clock, self.kind = log, clock, kind
        self._drop_kinds = frozenset(reason.value for reason in kind.drops)
        self._lock = threading.RLock()
        self.received = self.published = self.short_history = 0
        self.skips: Counter[SkipReason] = Counter()
        self.drops: Counter[Enum] = Counter()
        self._outcomes: deque[Enum | None] = deque(maxlen=200)
        self._arrivals: deque[float] = deque(maxlen=50)
        self._stages: dict[str, deque[float]] = {}
        self._issues: dict[str, _Issue] = {}
        self._logged: dict[str, tuple[float, int]] = {}  # kind -> last log time, repeats suppressed since
        self._logged_once: set[str] = set()
        self._findings: dict[str, Finding] = {}
        self._drop_examples: dict[Enum, str] = {}
        self._ego_failures = 0
        self._slow_since: float | None = None
        self._started = clock()
        self._timeout_level = Level.OK

    def start_input_timeout(self) -> None:
        """Expect input from now on; see `check_input_timeout`."""
        self._started = self._clock()

    def record_received(self) -> None:
        """Count an input that came in."""
        with self._lock:
            self.received += 1
            self._arrivals.append(self._clock())

    def record_dropped(self, reason: Enum, text: str) -> None:
        """Count a sweep that yields no flow; `text` says what was found and what to do about it."""
        severity, text = self.kind.drops[reason], self.kind.text(text)
        with self._lock:
            self.drops[reason] += 1
            self._drop_examples.setdefault(reason, text)
            self._outcomes.append(reason)
            level = severity.level
            if reason.name == DropReason.EGO_MOTION.name:
                self._ego_failures += 1
                level = Level.ERROR if self._ego_failures >= _EGO_FAILURES else level
            self.report_issue(reason.value, severity.part, level, text, log=severity.log)

    def record_published(
        self, stages_ms: Mapping[str, float], *, max_ms: float, max_consecutive_ms: float, short_history: bool = False
    ) -> None:
        """Count a sweep whose flow was published; 'total' of stages_ms [ms] is the input-to-output latency.

        max_ms: a longer total is a warning. max_consecutive_ms: an error if every total is longer for this long.
        short_history: the model saw fewer sweeps than it takes, as after a start or a gap.
        """
        with self._lock:
            self.published += 1
            self.short_history += short_history
            self._outcomes.append(None)
            self._ego_failures = 0
            for stage, ms in stages_ms.items():
                self._stages.setdefault(stage, deque(maxlen=300)).append(ms)
            total, now = stages_ms.get('total', 0.0), self._clock()
            if total <= max_ms:
                self._slow_since = None
                return
            self._slow_since = now if self._slow_since is None else self._slow_since
            slow_ms = (now - self._slow_since) * 1e3
            level = Level.ERROR if slow_ms >= max_consecutive_ms else Level.WARN
            text = f'The input-to-output latency is {total:.0f} ms, more than max_processing_time_ms ({max_ms:.0f} ms).'
            self.report_issue('slow', 'inference', level, text)

    def record_skipped(self, reason: SkipReason) -> None:
        """Count a sweep that gets no flow and is kept only to pair with the next."""
        with self._lock:
            self.skips[reason] += 1
            self._outcomes.append(None)

    def report_issue(self, kind: str, part: str, level: Level, text: str, log: str = 'warning') -> None:
        """Show `text` in the diagnostics for HOLD_S, and log it unless this kind was logged just now.

        kind: names the rule that was broken; there are a few dozen at most.
        """
        text = self.kind.text(text)
        with self._lock:
            now = self._clock()
            if level > Level.OK:
                self._issues[kind] = _Issue(part, level, text, now)
                self._find(kind, part, level, text)
            last, held_back = self._logged.get(kind, (-LOG_EVERY_S, 0))
            if kind in self._logged and now - last < LOG_EVERY_S:
                self._logged[kind] = (last, held_back + 1)
                return
            self._logged[kind] = (now, 0)
        self._log(log, f'{text} ({held_back} more since the last such line.)' if held_back else text)

    def log_once(self, kind: str, text: str, log: str = 'warning') -> None:
        """Log a text of this kind the first time only."""
        text = self.kind.text(text)
        with self._lock:
            if kind in self._logged_once:
                return
            self._logged_once.add(kind)
            if log in _LOG_LEVELS:
                self._findings.setdefault(kind, Finding(kind, 'input', _LOG_LEVELS[log], text, 0))
        self._log(log, text)

    def _find(self, kind: str, part: str, level: Level, text: str) -> None:
        found = self._findings.get(kind) or Finding(kind, part, level, text, 0)
        self._findings[kind] = replace(found, level=max(level, found.level), count=found.count + 1)

    def findings(self) -> list[Finding]:
        """Return every warning and error since the start, the worst first; dropped sweeps are in `dropped`."""
        with self._lock:
            found = [f for kind, f in self._findings.items() if kind not in self._drop_kinds]
            frequent = list(self._frequent_drops(self.drops, sum(self.drops.values()) + self.published))
        found += [Finding(f'frequent {reason.value}', part, Level.WARN, text, 1) for reason, part, text in frequent]
        return sorted(found, key=lambda finding: -finding.level)

    def dropped(self) -> dict[Enum, tuple[int, str]]:
        """Return the number of dropped sweeps and the first sentence about them, by reason, the most frequent first."""
        with self._lock:
            return {reason: (count, self._drop_examples[reason]) for reason, count in self.drops.most_common()}

    def check_input_timeout(self, timeout: float, describe: Callable[[], str]) -> None:
        """Report missing input: a warning after timeout seconds, an error after five times that.

        describe: returns the topic and its publishers; called only on a timeout. Logs when the level changes.
        """
        with self._lock:
            silent = self._clock() - (self._arrivals[-1] if self._arrivals else self._started)
            level = Level.ERROR if silent > 5 * timeout else Level.WARN if silent > timeout else Level.OK
            was, self._timeout_level = self._timeout_level, level
            if level == Level.OK:
                self._issues.pop('silence', None)
                if was != Level.OK:
                    self._log('info', self.kind.text('Clouds come in again.'))
                return
            text = self.kind.text(f'No cloud for {silent:.0f} s. {describe()}')
            self._issues['silence'] = _Issue('input', level, text, self._clock())
            self._find('silence', 'input', level, text)
        if level != was:
            self._log('warning' if level == Level.WARN else 'error', text)

    def rate(self) -> float:
        """Return the inputs per second over the last 50; 0 after HOLD_S without one."""
        with self._lock:
            if len(self._arrivals) < 2 or self._clock() - self._arrivals[-1] > HOLD_S:
                return 0.0
            return (len(self._arrivals) - 1) / max(self._arrivals[-1] - self._arrivals[0], 1e-9)

    def jitter_ms(self) -> float:
        """Return the standard deviation of the times between the last inputs [ms]; 0 for fewer than three."""
        with self._lock:
            return float(np.std(np.diff(self._arrivals))) * 1e3 if len(self._arrivals) > 2 else 0.0

    def percentiles(self) -> dict[str, tuple[float, float, float]]:
        """Return (p50, p95, p99) [ms] of each stage over the last 300 sweeps."""
        with self._lock:
            stages = {stage: list(values) for stage, values in self._stages.items()}
        return {stage: tuple(np.percentile(values, (50, 95, 99)).tolist()) for stage, values in stages.items()}

    def statuses(self, values: Mapping[str, Mapping] = {}) -> list[Status]:
        """Return the state of every part now. values: facts of the caller to add, by part."""
        facts = {part: dict(values.get(part, {})) for part in PARTS}
        with self._lock:
            now = self._clock()
            self._issues = {kind: t for kind, t in self._issues.items() if now - t.seen <= HOLD_S}
            issues = list(self._issues.values())
            outcomes = Counter(self._outcomes)
            facts['input'] |= {'received': self.received, 'rate_hz': f'{self.rate():.1f}'}
            facts['input']['jitter_ms'] = f'{self.jitter_ms():.1f}'
            facts['inference'] |= {'published': self.published, 'short_history': self.short_history}
            facts['inference'] |= {reason.value: self.skips[reason] for reason in SkipReason}
            for reason, severity in self.kind.drops.items():
                facts[severity.part][f'dropped.{reason.value}'] = self.drops[reason]
            for reason, text in self._drop_examples.items():
                facts[self.kind.drops[reason].part][f'{EXAMPLE}{reason.value}'] = text
            for finding in self._findings.values():
                if finding.kind not in self._drop_kinds:
                    text = f'{finding.level.name} {finding.count}: {finding.text}'
                    facts[finding.part][f'{SEEN}{finding.kind}'] = text
        for stage, (p50, p95, p99) in self.percentiles().items():
            part = stage if stage in PARTS else 'inference'
            facts[part][f'{stage}_ms.p50_p95_p99'] = f'{p50:.1f} {p95:.1f} {p99:.1f}'
        for _, part, sentence in self._frequent_drops(outcomes, outcomes.total(), 'the last '):
            issues.append(_Issue(part, Level.WARN, sentence, now))
        statuses = []
        for part in PARTS:
            own = sorted((t for t in issues if t.part == part), key=lambda t: (-t.level, -t.seen))
            level = own[0].level if own else Level.OK
            message = ' '.join(t.text for t in own) if own else self._ok_message(part)
            statuses.append(Status(part, level, message, {key: str(value) for key, value in facts[part].items()}))
        return statuses

    def _ok_message(self, part: str) -> str:
        if part == 'input':
            return self.kind.text(f'{self.rate():.1f} clouds per second')
        if part == 'inference':
            text = f'{self.published} sweeps with flow' if self.published else 'waiting for a pair of sweeps'
            return self.kind.text(text)
        return 'ready'

    def _frequent_drops(self, counts: Mapping, total: int, which: str = '') -> Iterator[tuple[Enum, str, str]]:
        """Yield (reason, part, sentence) of drops that are harmless unless frequent; counts: by reason, of total."""
        kind = self.kind
        for reason, text in kind.frequent.items():
            if counts[reason] > _FREQUENT_SHARE * total:
                text = kind.text(f'{counts[reason]} of {which}{total} clouds {text}.')
                yield reason, kind.drops[reason].part, text
