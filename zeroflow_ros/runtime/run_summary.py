# SPDX-License-Identifier: Apache-2.0
"""The summary at the end of a run: what was dropped and why, which points got velocities, what was wrong."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from zeroflow_ros.camera.stereo_pairing import FrameDrop
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.runtime.health import CLOUDS, EXAMPLE, SEEN, Finding, Health, InputKind, Level

_FIRST = (DropReason.FIRST.value, FrameDrop.FIRST.value)  # which cannot have flow
_PHRASES = {'set deskew to true': 'give --deskew'}  # `deskew` alone may be an ordinary word


@dataclass(frozen=True)
class Dropped:
    """Dropped sweeps of one reason: their number, and the first sentence about them."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True)
class RunSummary:
    """What became of the sweeps of a bag.

    name: of the topic or bag, for messages. num_sweeps, num_flow: sweeps read, and those that got flow. num_points,
    num_valid: points with a return in the sweeps with flow, and those of them that got a velocity.
    dropped: the most frequent reason first. findings: warnings and errors, the worst first. kind: what comes in, for
    the words.
    """

    name: str
    num_sweeps: int
    num_flow: int
    num_points: int
    num_valid: int
    dropped: list[Dropped] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    kind: InputKind = CLOUDS

    @classmethod
    def of(cls, health: Health, name: str, *, num_points: int, num_valid: int,
           notes: Iterable[str] = ()) -> 'RunSummary':  # fmt: skip
        """Return the summary of what a health has counted. notes: of the recording, see `Bag`."""
        dropped = [Dropped(reason.value, count, text) for reason, (count, text) in health.dropped().items()]
        of_recording = [Finding('recording', 'input', Level.WARN, note, 1) for note in notes]
        findings = sorted([*of_recording, *health.findings()], key=lambda finding: -finding.level)
        return cls(name, health.received, health.published, num_points, num_valid, dropped, findings, health.kind)

    @classmethod
    def of_diagnostics(
        cls, values: Mapping[str, str], name: str, dropped: Mapping[str, int], *, num_points: int, num_valid: int,
        kind: InputKind = CLOUDS,
    ) -> 'RunSummary':  # fmt: skip
        """Return the summary of a node that ran as another process.

        values: of its last diagnostics, all parts together. dropped: the number of sweeps by reason, also those lost
        between processes.
        """
        findings = []
        for key, text in values.items():
            if key.startswith(SEEN) and (found := re.fullmatch(r'(\w+) (\d+): (.*)', text, re.DOTALL)):
                level = Level[found[1]]
                findings.append(Finding(key.removeprefix(SEEN), 'input', level, found[3], int(found[2])))
        counts = sorted(dropped.items(), key=lambda item: -item[1])
        reasons = [Dropped(reason, count, values.get(EXAMPLE + reason, '')) for reason, count in counts]
        num_sweeps, num_flow = (int(values.get(key, 0)) for key in ('received', 'published'))
        findings.sort(key=lambda finding: -finding.level)
        return cls(name, num_sweeps, num_flow, num_points, num_valid, reasons, findings, kind)

    def with_names(self, names: Mapping[str, str]) -> 'RunSummary':
        """Return the summary with the node's parameters called by the names of another program; see `renamed`."""
        dropped = [replace(one, example=renamed(one.example, names)) for one in self.dropped]
        return replace(self, dropped=dropped, findings=[replace(f, text=renamed(f.text, names)) for f in self.findings])

    @property
    def valid_share(self) -> float:
        """Share of the points that got a velocity; 0 where there are none."""
        return self.num_valid / self.num_points if self.num_points else 0.0

    def report(self) -> dict:
        """Return all facts for a JSON report."""
        return {
            'sweeps_played': self.num_sweeps,
            'flow_published': self.num_flow,
            'dropped': {one.reason: one.count for one in self.dropped},
            'dropped_because': {one.reason: one.example for one in self.dropped},
            'points': self.num_points,
            'points_with_velocity': self.num_valid,
            'share_with_velocity': round(self.valid_share, 4),
            'warnings': [warning_fields(finding) for finding in self.findings],
        }

    def dataset_report(self) -> dict:
        """Return what is known of a bag that is only read in sweep pairs, for a JSON report."""
        report = self.report()
        names = ('dropped', 'dropped_because', 'warnings')
        return {'sweeps': self.num_sweeps, 'pairs': self.num_flow} | {name: report[name] for name in names}

    def dataset_lines(self) -> list[str]:
        """Return the same as lines of text."""
        dropped = ', '.join(f'{one.count} {one.reason}' for one in self.dropped) or 'none'
        counts = f'{self.name}: {self.num_sweeps} sweeps, {self.num_flow} pairs, dropped: {dropped}'
        return [counts, *drop_lines(self.dropped), *self.warnings()]

    def lines(self) -> list[str]:
        """Return the counts as lines of text."""
        dropped = ', '.join(f'{one.count} {one.reason}' for one in self.dropped) or 'none'
        return [
            self.kind.text(f'sweeps {self.num_sweeps}, flow {self.num_flow}') + f', dropped: {dropped}',
            *drop_lines(self.dropped),
            f'velocities for {100 * self.valid_share:.1f} % of {self.num_points:,} points',
        ]

    def warnings(self) -> list[str]:
        """Return one line for each warning and error."""
        return [warning_line(finding) for finding in self.findings]

    def check(self) -> None:
        """Raises: DataError, with the reasons, when no sweep got flow or no point a velocity."""
        if self.num_flow and self.num_valid:
            return
        counts = ', '.join(f'{one.count} {one.reason}' for one in self.dropped) or 'none in that time'
        what = self.kind.text(
            f'No sweep of {self.name} got flow ({counts}).'
            if not self.num_flow
            else f'Not one of {self.num_points:,} points in {self.num_flow} sweeps of {self.name} got a velocity.'
        )
        reasons = [one.example for one in self.dropped if one.example and one.reason not in _FIRST]
        reasons += [finding.text for finding in self.findings]
        raise DataError(' '.join([what, *dict.fromkeys(reasons)]))


def drop_lines(dropped: Iterable[Dropped]) -> list[str]:
    """Return a line with an example for each reason; none for the first sweep, which can have no flow."""
    shown = (one for one in dropped if one.example and one.reason not in _FIRST)
    return [f'  {one.reason}: {one.example}' for one in shown]


def warning_line(finding: Finding) -> str:
    """Return a warning as a line: WARN or ERROR, how often, and the sentences."""
    times = f' ({finding.count} times)' if finding.count > 1 else ''
    return f'{finding.level.name}{times}: {finding.text}'


def warning_fields(finding: Finding) -> dict:
    """Return a warning for a JSON report."""
    return {'kind': finding.kind, 'part': finding.part, 'level': finding.level.name, 'count': finding.count,
            'text': finding.text}  # fmt: skip


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Return a message with the names of parameters replaced, so that its advice fits the program at hand.

    names: for each parameter of the node, the option of the program, as in {'sensor_height': '--sensor-height'}.
    'the parameter base_frame' becomes '--base-frame', 'ego_motion: odometry' '--ego-motion odometry', and a list
    'base_T_lidar to [0, 0]' '--base-T-lidar to 0 0'.
    """
    if not names:
        return text
    for phrase, instead in _PHRASES.items():
        text = text.replace(phrase, instead)
    one_of = '|'.join(map(re.escape, sorted(names, key=len, reverse=True)))
    if all(name.startswith('--') for name in names.values()):
        unlisted = rf'(?<![\w-])({one_of}) to \[([^\]]*)\]'
        text = re.sub(unlisted, lambda match: f'{names[match[1]]} to {match[2].replace(",", "")}', text)
    pattern = rf'(?<![\w-])(?:(?:the )?parameter )?({one_of})(?!:=):?(?![\w=-])'
    return re.sub(pattern, lambda match: names[match[1]], text)


def option_names(options: Iterable[str]) -> dict[str, str]:
    """Return the names for `renamed` of a command line; options: those of the parsed arguments, as in vars(args).

    Parameters of one word are left out: they are ordinary words, too.
    """
    names = {option: '--' + option.replace('_', '-') for option in options if '_' in option}
    return names | {'model_path': '--model', 'num_threads': '--threads'}
