# SPDX-License-Identifier: Apache-2.0
"""Whether clouds and poses are stamped by one clock, seen from when they were recorded; without ROS."""

from collections import deque

import numpy as np

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.errors import DataError, EgoMotionError

MAX_OFFSET = 100.0  # s, of the node's parameter: leap seconds, not a time since the sensor's start
OTHER_CLOCK = 0.8  # s: more than a message is late
_NEAR_NS = 500_000_000  # between the recording times of two messages that are compared
_NUM_CLOUDS = 10
_MAX_MESSAGES = 3000
_MIN_LOOKS = 5  # clouds, live


def recorded_stamps(bag: Bag, cloud_topic: str, other_topic: str = '') -> tuple[list, list]:
    """Return (recorded, stamp) [ns] of some clouds and of the messages of another topic that were recorded with them.

    Only for messages that start with a header; stamps of 0 are left out.
    """
    clouds, others = [], []
    topics = [cloud_topic] + ([other_topic] if other_topic else [])
    for number, recorded in enumerate(bag.messages(topics)):
        try:
            item = recorded.time_ns, recorded.stamp_ns
        except DataError:
            continue
        if item[1]:
            (others if recorded.topic == other_topic else clouds).append(item)
        has_both = len(others) >= _NUM_CLOUDS or not other_topic
        if number >= _MAX_MESSAGES or (has_both and len(clouds) >= _NUM_CLOUDS and _near(clouds, others, other_topic)):
            break
    return clouds, others


def _near(clouds: list, others: list, other_topic: str) -> bool:
    return not other_topic or sum(recorded >= others[0][0] for recorded, _ in clouds) >= _NUM_CLOUDS


def clock_difference(clouds: list, others: list) -> float | None:
    """Return by how many seconds the stamps of clouds are ahead of those of other messages, recorded at the same time.

    clouds, others: (recorded, stamp) [ns]. None where too few were recorded together to tell, or where they disagree.
    """
    if not clouds or not others:
        return None
    recorded_ns, stamps_ns = np.array(sorted(others), np.int64).T
    if recorded_ns[-1] - recorded_ns[0] < _NEAR_NS // 10 and len(others) > 2:
        return None  # all written at once: the recording times mean nothing
    found = []
    for cloud_recorded_ns, cloud_stamp_ns in clouds:
        k = int(np.abs(recorded_ns - cloud_recorded_ns).argmin())
        if abs(int(recorded_ns[k]) - cloud_recorded_ns) <= _NEAR_NS:
            lag_ns = (cloud_stamp_ns - cloud_recorded_ns) - (int(stamps_ns[k]) - int(recorded_ns[k]))
            found.append(lag_ns * 1e-9)
    if len(found) < 3 or np.ptp(found) > 2 * OTHER_CLOCK:
        return None
    return float(np.median(found))


def check_clocks(clouds: list, sources: list[list], other: str) -> None:
    """Compare the clock of clouds with that of others, all (recorded, stamp) [ns].

    sources: messages of each of several sources, of which the nearest counts. other: a noun for all of them.
    Raises: EgoMotionError when the clocks differ.
    """
    found = [clock_difference(clouds, source) for source in sources]
    difference = min((one for one in found if one is not None), key=abs, default=0.0)
    if abs(difference) > OTHER_CLOCK:
        cloud_ns = clouds[-1][1]
        text = describe_difference(difference, cloud_ns, cloud_ns - round(difference * 1e9), other)
        raise EgoMotionError(f'{text} If the clouds were only recorded late: --stamp-offset 0.')


def describe_difference(difference: float, cloud_ns: int, other_ns: int, other: str) -> str:
    """Return a sentence on the two clocks. difference: of the clouds' stamps minus the others' [s]. other: a noun."""
    uptime = next((name for name, ns in (('the clouds', cloud_ns), (other, other_ns)) if ns < 10**9 * 10**8), '')
    hint = f' The stamps of {uptime} look like seconds since a start, not like the time of day.' if uptime else ''
    add = f'add {-difference:.3f} s to the stamps of the clouds'
    if abs(difference) <= MAX_OFFSET:
        offset = f'{add} (stamp_offset_s, offline --stamp-offset)'
    else:
        offset = f'offline {add} (--stamp-offset)'
    return (
        f'Clouds and {other} have different clocks: at one moment a cloud is stamped {cloud_ns * 1e-9:.3f} s, {other} '
        f'{other_ns * 1e-9:.3f} s, a difference of {abs(difference):.3f} s.{hint} Make the driver of the LiDAR stamp '
        'with the time of the computer (its setting for time synchronisation: PTP, NTP or host time), '
        f'{offset}, or use registration.'
    )


class ClockWatch:
    """Compares, live, the stamps of clouds with the newest stamp of another source, when each cloud is looked up.

    other: a noun for that source.
    """

    def __init__(self, other: str):
        self._other = other
        self._seen: deque[tuple[int, int]] = deque(maxlen=_NUM_CLOUDS)

    def look(self, cloud_ns: int, newest_ns: int | None) -> str:
        """Return a sentence on two clocks, '' where they agree or it is too early to tell.

        The difference must last while both go on: a source that has stopped only falls behind.
        """
        if newest_ns is None:
            return ''
        if self._seen and cloud_ns < self._seen[-1][0] - OTHER_CLOCK * 1e9:
            self.reset()
        if not self._seen or cloud_ns > self._seen[-1][0]:
            self._seen.append((cloud_ns, newest_ns))
        return self._text()

    def reset(self) -> None:
        """Forget all stamps, as when time goes back."""
        self._seen.clear()

    def _text(self) -> str:
        clouds_ns, newest_ns = np.array(self._seen, np.int64).T
        differences = (clouds_ns - newest_ns) * 1e-9
        goes_on = len(self._seen) >= _MIN_LOOKS and newest_ns[-1] > newest_ns[0]
        lasts = np.abs(differences).min() > OTHER_CLOCK and np.ptp(differences) < OTHER_CLOCK / 2
        if not (goes_on and lasts):
            return ''
        return describe_difference(float(np.median(differences)), *map(int, self._seen[-1]), self._other)
