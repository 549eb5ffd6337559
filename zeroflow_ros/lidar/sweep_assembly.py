# SPDX-License-Identifier: Apache-2.0
"""Join messages that hold part of a revolution each into whole sweeps.

Simulators whose frame rate is above the rotation rate (CARLA), SICK's segments and some Velodyne drivers publish a
sector per message. Two such messages in a row show different directions, so they make no sweep pair.

The sectors are found from a sample of the azimuths. Messages are joined only where this is certain: over two
revolutions each sector begins where the last one ended, and together they make full circles. A sensor of a limited
field of view always covers the same sector, so its clouds pass unchanged, as whole revolutions do. What seems to be
parts but does not tile the circle is dropped with the reason.
"""

import contextlib
from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from zeroflow_ros.errors import CloudError, ConfigError
from zeroflow_ros.lidar.azimuth_sector import (
    Sector,
    advance,
    azimuth_sector,
    joins_on,
    overlap,
    sample_returns,
    sector_of,
)
from zeroflow_ros.lidar.joined_cloud import Cut, Piece, join, message_stamp_ns
from zeroflow_ros.lidar.spin_axis import SpinAxis, azimuth_about
from zeroflow_ros.lidar.sweep import DropReason

ASSEMBLE_SWEEPS = ('auto', 'off')
_TURN = 2 * np.pi
_WHOLE = np.radians(345)  # a sector this wide is a revolution
_EDGE = np.radians(15)  # both edges of a sector that moved by less stayed where they were
_LIMITED = np.radians(140)  # widest field of view of solid-state sensors
_ALIKE = 0.5  # share of the union of two sectors that is common, above which they are the same sector
_MIN_FILL = 0.6  # share of a sector in which there are points, below which it is no contiguous part
_MISSING = 0.05  # share of a revolution that may be missing
_CHECK_ALL = 10  # messages at the start, and after a change, that are looked at; then two of ten are
_MAX_WAIT_NS, _MAX_WAITING = 1_500_000_000, 600  # two revolutions at 2 Hz take 1 s; packets are 150 a revolution
_LATE_NS = 1_000_000_000  # a stamp older by this much is a bag loop; as in SweepBuffer


@dataclass(frozen=True)
class Outcome:
    """What becomes of messages.

    message: the PointCloud2 to use: as it came, or a `JoinedCloud`. tags: those given with its messages. cuts: of each
    message, None where all its rows are used. stamp_ns: of a joined cloud.
    drop, text: why messages are not used; a text alone is to be logged once.
    """

    message: object = None
    tags: tuple = ()
    cuts: tuple[Cut | None, ...] = ()
    drop: DropReason | None = None
    text: str = ''
    stamp_ns: int = 0


@dataclass(frozen=True, eq=False)
class _Part:
    message: object
    tag: object
    sector: Sector | None
    stamp_ns: int


class SweepAssembly:
    """Takes every message in the order of arrival, and gives whole sweeps.

    mode: 'auto', or 'off': every message is a sweep. time_name, time_unit: of the point times; see `with_times`.
    can_wait: hold the first message until the second shows whether it is a part; else it passes at once, on its own.
    Raises: ConfigError for another mode.
    """

    def __init__(self, mode: str = 'auto', time_name: str = '', time_unit: str = 'auto', *, can_wait: bool = False):
        if mode not in ASSEMBLE_SWEEPS:
            raise ConfigError(f'assemble_sweeps must be one of {", ".join(ASSEMBLE_SWEEPS)}, got {mode!r}.')
        self._is_off, self._times, self._can_wait = mode == 'off', (time_name, time_unit), can_wait
        self._reset()

    def _reset(self) -> None:
        self._num_seen, self._alert = 0, _CHECK_ALL
        self._last: _Part | None = None  # the last one looked at, which was passed on
        self._held: _Part | None = None  # the first one, while it is held
        self._waiting: deque[_Part] = deque()  # seem to be parts
        self._revolutions: _Revolutions | None = None
        self._frame_id = None
        self._spin = SpinAxis()

    def push(self, message, tag=None) -> list[Outcome]:
        """Add a message; return what can be used or is dropped now, in order."""
        if self._is_off:
            return [Outcome(message, (tag,), (None,))]
        outcomes = []
        if self._frame_id != message.header.frame_id:
            outcomes = self.flush()
            self._reset()
            self._frame_id = message.header.frame_id
        if not (self._waiting or self._revolutions):
            self._num_seen += 1
            self._alert = max(self._alert - 1, 0)
            if not self._alert and self._num_seen % 10 > 1:
                return [*outcomes, Outcome(message, (tag,), (None,))]
        part = self._look_at(message, tag)
        if self._revolutions:
            return outcomes + self._join(part)
        return outcomes + (self._wait(part) if self._waiting else self._pass(part))

    def _look_at(self, message, tag) -> _Part:
        """Return a message with its sector; where it shows another axis of rotation, look at all others again."""
        part, returns = _Part(message, tag, None, message_stamp_ns(message)), None
        with contextlib.suppress(CloudError):  # reported where it is decoded
            returns = sample_returns(message)
        if returns is None:
            return part
        if self._revolutions is None and self._spin.look(returns):
            self._last, self._held = (None if one is None else self._seen_again(one)
                                      for one in (self._last, self._held))  # fmt: skip
            self._waiting = deque(map(self._seen_again, self._waiting))
        return replace(part, sector=sector_of(azimuth_about(returns, self._spin.axis)))

    def _seen_again(self, part: _Part) -> _Part:
        return part if part.sector is None else replace(part, sector=azimuth_sector(part.message, self._spin.axis))

    def flush(self) -> list[Outcome]:
        """Return what is left at the end of the messages."""
        if self._revolutions:
            return self._revolutions.close(at_end=True)
        waiting, self._waiting = self._waiting, deque()
        return self._release() + [_dropped(part) for part in waiting]

    def _release(self) -> list[Outcome]:
        held, self._held = self._held, None
        return [] if held is None else [_unchanged(held)]

    def _pass(self, part: _Part) -> list[Outcome]:
        """Pass a message on, unless its sector shows that it is a part."""
        if part.sector is None:
            return [*self._release(), _unchanged(part)]
        last = self._last
        if last is None and self._can_wait and part.sector.width < _WHOLE:
            self._last = self._held = part
            return []
        has_moved = last is not None and _moved(last.sector, part.sector)
        has_narrowed = last is not None and part.sector.width < _WHOLE <= last.sector.width
        in_a_row = self._alert or self._num_seen % 10 == 1  # else others lie between the two
        if has_moved or has_narrowed:
            self._alert = _CHECK_ALL
        if has_moved and in_a_row:
            self._waiting.append(part)
            return []
        self._last = part
        return [*self._release(), _unchanged(part)]

    def _wait(self, part: _Part) -> list[Outcome]:
        """Add a message to those that seem to be parts, and decide what they are as soon as it is certain."""
        self._waiting.append(part)
        parts = [self._last, *(one for one in self._waiting if one.sector is not None)]
        if part.sector is not None and _is_no_part(parts):
            released, self._waiting, self._last = self._waiting, deque(), part
            self._alert = _CHECK_ALL
            return self._release() + [_unchanged(one) for one in released]
        pattern = find_pattern(parts)
        if pattern is not None:
            # The first part may have passed as a sweep of its own; it is part of the first revolution all the same.
            parts, self._held = [self._last, *self._waiting], None
            self._waiting.clear()
            self._revolutions = _Revolutions(pattern, self._times, self._spin.axis)
            outcomes = [Outcome(text=self._revolutions.describe())]
            for one in parts:
                outcomes += self._revolutions.push(one)
            return outcomes
        outcomes = []
        while len(self._waiting) > _MAX_WAITING or part.stamp_ns - self._waiting[0].stamp_ns > _MAX_WAIT_NS:
            outcomes += self._release()
            self._last = self._waiting.popleft()
            outcomes.append(_dropped(self._last))
            while self._waiting and self._waiting[0].sector is None:
                outcomes.append(_dropped(self._waiting.popleft()))
            if self._last.sector is None or not self._waiting:
                break
        return outcomes

    def _join(self, part: _Part) -> list[Outcome]:
        outcomes = self._revolutions.push(part)
        if not self._revolutions.is_lost:
            return outcomes
        outcomes += self._revolutions.close()
        self._reset()
        self._frame_id = part.message.header.frame_id
        return outcomes


def _unchanged(part: _Part) -> Outcome:
    return Outcome(part.message, (part.tag,), (None,))


def _dropped(part: _Part) -> Outcome:
    width = '' if part.sector is None else f' covers about {np.degrees(part.sector.width):.0f} degrees of a revolution'
    return Outcome(
        part.message, (part.tag,), (None,), DropReason.PART,
        f'A message{width or " has no return"}, and the sector changes from message to message, but the sectors do '
        'not add up to full circles. Such parts cannot be compared with each other. Publish one whole revolution per '
        'message (simulator: one frame per rotation; driver: its setting of cut angle or scan size), or set '
        'assemble_sweeps to off if these are whole sweeps.',
    )  # fmt: skip


def _moved(sector0: Sector, sector1: Sector) -> bool:
    """Return whether two sectors of consecutive messages are different parts of a circle."""
    width = min(sector0.width, sector1.width)
    if max(sector0.width, sector1.width) >= _WHOLE:
        return False
    if (sector0.bins & sector1.bins).sum() < 0.2 * min(sector0.bins.sum(), sector1.bins.sum()):
        return True
    edges = [abs(advance(a, b)) for a, b in ((sector0.start, sector1.start), (sector0.end, sector1.end))]
    is_elsewhere = min(edges) > min(_EDGE, 0.3 * width)
    return is_elsewhere and (joins_on(sector0, sector1, 1) or joins_on(sector0, sector1, -1))


def _is_no_part(parts: list[_Part]) -> bool:
    """Return whether the last messages show that sectors are no parts: whole, or changed once, or to and fro."""
    if parts[-1].sector.width >= _WHOLE:
        return True
    if len(parts) > 3 and not any(_moved(a.sector, b.sector) for a, b in pairwise(parts[-3:])):
        return True
    # A non-repetitive pattern moves to and fro in a limited field of view.
    steps = [advance(a.sector.centre, b.sector.centre) for a, b in pairwise(parts)]
    covered = np.logical_or.reduce([part.sector.bins for part in parts]).mean() * _TURN
    return len(parts) > 4 and covered < _LIMITED and min(steps) < 0 < max(steps)


@dataclass(frozen=True)
class Pattern:
    """How parts make up revolutions.

    direction: 1 counter-clockwise, -1 clockwise. seam: azimuth at which a revolution begins [rad]. num_parts: of a
    revolution; 0 where the parts begin elsewhere in every revolution, so that parts are cut at the seam.
    period_ns: of a revolution. width: of a part [rad], the median. centres, widths: (num_parts,) of the parts [rad],
    from the seam on.
    """

    direction: int
    seam: float
    num_parts: int
    period_ns: float
    width: float
    centres: tuple[float, ...] = ()
    widths: tuple[float, ...] = ()


def find_pattern(parts: list) -> Pattern | None:
    """Return how parts make up revolutions, once two revolutions show it; None where it is not certain.

    parts: with `sector` and `stamp_ns`, in order.
    """
    sectors = [part.sector for part in parts]
    for num_parts in range(2, len(parts) // 2 + 1):
        if all(_is_same(a, b) for a, b in zip(sectors[-num_parts:], sectors[-2 * num_parts :], strict=False)):
            found = _recurring(parts, num_parts)
            if found is not None:
                return found
    return _drifting(parts)


def _is_same(sector0: Sector, sector1: Sector) -> bool:
    near = np.radians(8)  # parts that move on by more in a revolution are cut at the seam
    return abs(advance(sector0.centre, sector1.centre)) < near and overlap(sector0, sector1) > _ALIKE


def _recurring(parts: list, num_parts: int) -> Pattern | None:
    """Return the pattern of parts that recur after num_parts messages, if they make one turn of a circle."""
    last = parts[-2 * num_parts :]
    sectors = [part.sector for part in last[: num_parts + 1]]
    if sum(sector.width for sector in sectors[:-1]) > 1.7 * _TURN or not _are_contiguous(sectors):
        return None
    for direction in (1, -1):
        steps = [direction * advance(a.centre, b.centre) % _TURN for a, b in pairwise(sectors)]
        if abs(sum(steps) - _TURN) > _EDGE:
            continue
        apart = [k for k, (a, b) in enumerate(pairwise(sectors)) if not joins_on(a, b, direction)]
        covered = np.zeros_like(sectors[0].bins)
        for sector in sectors[:-1]:
            covered |= sector.bins
        covered = covered.mean() * _TURN
        # Of three or more parts one step may be longer: the sensor sees less than the circle.
        if len(apart) > (num_parts > 2) or covered < (_TURN / 2 if apart else _WHOLE):
            continue
        begin = apart[0] + 1 if apart else _first_of(parts, last, num_parts)
        begin = sectors[begin % num_parts]
        seam = begin.start if direction > 0 else begin.end
        placed = sorted((direction * advance(seam, s.centre) % _TURN, s.width) for s in sectors[:-1])
        centres, widths = zip(*placed, strict=True)
        period_ns = max(last[num_parts].stamp_ns - last[0].stamp_ns, 1)
        return Pattern(direction, seam, num_parts, period_ns, float(np.median(widths)), centres, widths)
    return None


def _are_contiguous(sectors: list[Sector]) -> bool:
    return min(sector.fill for sector in sectors) >= _MIN_FILL


def _first_of(parts: list, last: list, num_parts: int) -> int:
    """Return which of the recurring parts the first message of all was: a recording begins with a revolution."""
    return (len(last) - len(parts)) % num_parts


def _drifting(parts: list) -> Pattern | None:
    """Return the pattern of parts that join on, but begin elsewhere in each revolution."""
    sectors = [part.sector for part in parts]
    if len(parts) < 5 or not _are_contiguous(sectors):
        return None
    found = []
    for direction in (1, -1):
        if all(joins_on(a, b, direction) for a, b in pairwise(sectors)):
            steps = [direction * advance(a.centre, b.centre) % _TURN for a, b in pairwise(sectors)]
            error = sum(abs(step - (a.width + b.width) / 2) for step, (a, b) in
                        zip(steps, pairwise(sectors), strict=True))  # fmt: skip
            found.append((error, direction, sum(steps)))
    if not found:
        return None
    _, direction, turned = min(found)
    width = float(np.median([sector.width for sector in sectors]))
    if turned < 2 * _TURN + width:
        return None
    seam = sectors[0].start if direction > 0 else sectors[0].end
    period_ns = (parts[-1].stamp_ns - parts[0].stamp_ns) * _TURN / turned
    return Pattern(direction, seam, 0, max(period_ns, 1), width)


class _Revolutions:
    """Collects the parts of one revolution after the other."""

    def __init__(self, pattern: Pattern, times: tuple[str, str], axis: int):
        self._pattern, self._seam, self._times, self._axis = pattern, pattern.seam, times, axis
        self._pieces: list[_Placed] = []
        self._stamp_ns = 0  # of the revolution
        self._num_strange = 0  # parts in a row that are none of the pattern
        self._is_first = True  # no revolution has ended yet

    @property
    def is_lost(self) -> bool:
        """Whether the parts are no longer what they were: the driver has other settings now."""
        return self._num_strange > max(self._pattern.num_parts, 4)

    def describe(self) -> str:
        """Say what is joined."""
        p = self._pattern
        number = f'{p.num_parts} messages' if p.num_parts else f'about {_TURN / p.width:.1f} messages'
        return (
            f'Each message holds about {np.degrees(p.width):.0f} degrees of a revolution; {number} are joined into one '
            'sweep, stamped as its first part. Set assemble_sweeps to off if these are whole sweeps.'
        )

    def push(self, part: _Part) -> list[Outcome]:
        """Add a part; return the revolution that it completes or ends."""
        first, newest = (self._pieces[0].part, self._pieces[-1].part) if self._pieces else (part, part)
        if part.stamp_ns < newest.stamp_ns - _LATE_NS:  # time went back
            return [*self.close(), *self.push(part)]
        if part.stamp_ns < first.stamp_ns:
            text = 'A part of an earlier revolution came late; it is dropped.'
            return [Outcome(part.message, (part.tag,), (None,), DropReason.OUT_OF_ORDER, text)]
        if part.sector is None:  # no return in this part
            if not self._pieces:
                return [_dropped(part)]
            self._pieces.append(_Placed(part, self._pieces[-1].place, self._pieces[-1].index))
            return []
        return self._push_whole(part) if self._pattern.num_parts else self._push_cut(part)

    def _place(self, azimuth: float) -> float:
        """Return an azimuth after the seam, in [0, 2 pi)."""
        return self._pattern.direction * advance(self._seam, azimuth) % _TURN

    def _push_whole(self, part: _Part) -> list[Outcome]:
        """Add a part of a pattern that recurs in every revolution."""
        p, place, outcomes = self._pattern, self._place(part.sector.centre), []
        distances = [abs(advance(place, centre)) for centre in p.centres]
        index = int(np.argmin(distances))
        share = part.sector.width / p.widths[index]
        is_strange = distances[index] > 0.35 * p.widths[index] + np.radians(3) or not 0.55 < share < 1.8
        self._num_strange = self._num_strange + 1 if is_strange else 0
        if any(one.part.stamp_ns == part.stamp_ns and one.index == index for one in self._pieces):
            text = f'Two parts of a revolution have the stamp {part.stamp_ns * 1e-9:.6f} s; the second is dropped.'
            return [Outcome(part.message, (part.tag,), (None,), DropReason.DUPLICATE, text)]
        if self._pieces:
            is_late = part.stamp_ns < self._pieces[-1].part.stamp_ns
            is_next = not is_late and index <= self._pieces[-1].index
            if is_next or part.stamp_ns - self._stamp_ns >= 1.02 * p.period_ns:
                outcomes += self.close()
        if not self._pieces:
            self._stamp_ns = part.stamp_ns
        self._pieces.append(_Placed(part, place, -1 if is_strange else index))
        self._pieces.sort(key=lambda piece: piece.part.stamp_ns)
        return outcomes + (self.close() if index == p.num_parts - 1 else [])

    def _push_cut(self, part: _Part) -> list[Outcome]:
        """Add a part of a pattern that moves on from revolution to revolution: it is cut at the seam."""
        p, sector, outcomes = self._pattern, part.sector, []
        slack = min(np.radians(2), 0.25 * p.width)
        edge = sector.start if p.direction > 0 else sector.end
        start = self._place(edge)
        start = start - _TURN if start > _TURN - slack else start
        self._num_strange = self._num_strange + 1 if sector.width >= _WHOLE and p.width < _WHOLE - _EDGE else 0
        if self._pieces and (start <= self._pieces[-1].place or part.stamp_ns - self._stamp_ns >= 1.02 * p.period_ns):
            outcomes += self.close()
        if not self._pieces:
            self._stamp_ns = part.stamp_ns
        at = _TURN - start  # the seam, from the edge of the part
        if sector.width < at + max(slack, 0.05 * sector.width):
            self._pieces.append(_Placed(part, start))
            return outcomes + (self.close() if sector.width > at - slack else [])
        self._pieces.append(_Placed(part, start, cut=Cut(edge, p.direction, sector.width, at, False, self._axis)))
        outcomes += self.close()
        # The seam was passed within this part, so the new revolution does not begin at its stamp.
        self._stamp_ns = part.stamp_ns + round(at / _TURN * p.period_ns)
        self._pieces.append(_Placed(part, 0.0, cut=Cut(edge, p.direction, sector.width, at, True, self._axis)))
        return outcomes

    def close(self, at_end: bool = False) -> list[Outcome]:
        """Return the revolution collected so far, or why it is dropped; at_end: no message follows."""
        pieces, self._pieces = self._pieces, []
        is_first, self._is_first = self._is_first, False
        if not pieces:
            return []
        tags, cuts = tuple(piece.part.tag for piece in pieces), tuple(piece.cut for piece in pieces)
        message, missing = pieces[0].part.message, self._missing(pieces)
        if missing > _MISSING:
            drop, text = (
                DropReason.INCOMPLETE,
                (
                    f'{missing * 100:.0f} % of a revolution are missing: {len(pieces)} of '
                    f'{self._pattern.num_parts or "its"} messages came. It is dropped. Messages are lost between the '
                    'driver and the node (QoS, shared memory), or the sensor loses packets.'
                ),
            )
            if is_first:
                drop, text = DropReason.FIRST, 'The first message is not the first part of a revolution.'
            elif at_end:
                text = 'The recording ends within a revolution.'
            return [Outcome(message, tags, cuts, drop, text)]
        self._follow(pieces)
        try:
            joined = join([Piece(piece.part.message, piece.cut) for piece in pieces], self._stamp_ns, *self._times)
        except CloudError as error:
            return [Outcome(message, tags, cuts, DropReason.MALFORMED, str(error))]
        return [Outcome(joined, tags, cuts, stamp_ns=self._stamp_ns)]

    def _missing(self, pieces: list['_Placed']) -> float:
        """Return the share of the revolution that no part covers; parts without a return count as if they had some."""
        p = self._pattern
        if p.num_parts:
            came = {piece.index for piece in pieces if piece.part.sector is not None} - {-1}
            num_empty = sum(piece.part.sector is None for piece in pieces)
            lost = sorted((p.widths[k] for k in range(p.num_parts) if k not in came), reverse=True)[num_empty:]
            return sum(lost) / sum(p.widths)
        covered = sum(piece.part.sector.width if piece.part.sector is not None else p.width for piece in pieces)
        for piece in pieces:
            if piece.cut is not None:
                covered -= piece.cut.at if piece.cut.after else piece.cut.width - piece.cut.at
        return 1 - covered / _TURN

    def _follow(self, pieces: list['_Placed']) -> None:
        """Move the seam with parts that move on slowly from revolution to revolution."""
        if self._pattern.num_parts:
            moved = [advance(self._pattern.centres[piece.index], piece.place) for piece in pieces
                     if piece.index >= 0 and piece.part.sector is not None]  # fmt: skip
            if moved:
                self._seam += self._pattern.direction * 0.5 * float(np.median(moved))


@dataclass(frozen=True, eq=False)
class _Placed:
    """A part in a revolution.

    place: of its centre, or for parts that are cut its beginning, after the seam [rad]. index: which part of the
    pattern it is; -1: none. cut: its rows in this revolution.
    """

    part: _Part
    place: float
    index: int = -1
    cut: Cut | None = None
