# SPDX-License-Identifier: Apache-2.0
"""The clouds of a bag, one per sweep: as recorded, or joined from messages that hold part of a revolution."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zeroflow_ros.bags.bag import Bag, BagMessage
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.joined_cloud import Cut, JoinedCloud, Piece, join
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.lidar.sweep_assembly import Outcome, SweepAssembly


@dataclass(frozen=True)
class CloudPlace:
    """Where the cloud of a sweep is in a bag.

    number: of the cloud in its topic; of joined clouds, of the revolution. stamp_ns: of the cloud.
    messages: recording time [ns], rank among clouds of that time, and stamp [ns] of each message.
    cuts: the rows of each message, None where all are used. is_joined: whether they are parts of a revolution.
    """

    number: int
    stamp_ns: int
    messages: tuple[tuple[int, int, int], ...]
    cuts: tuple[Cut | None, ...]
    is_joined: bool = False


@dataclass(frozen=True)
class BagCloud:
    """The cloud of a sweep, or messages that are none.

    message: a PointCloud2, or a `JoinedCloud`; None with `drop`. time_ns: when its last message was recorded.
    drop, text: why it is not used; a text alone is said once.
    """

    message: object
    place: CloudPlace | None
    time_ns: int
    drop: DropReason | None = None
    text: str = ''


def clouds_in_order(recorded: Iterable[tuple[int, BagMessage, int]], assembly: SweepAssembly) -> Iterator[BagCloud]:
    """Yield the cloud of each sweep; recorded: number, message, and rank among clouds of the same recording time."""
    num_joined, time_ns = 0, 0

    def used(found: Outcome) -> BagCloud:
        nonlocal num_joined
        if found.message is None:
            return BagCloud(None, None, time_ns, None, found.text)
        numbers, messages = [tag[0] for tag in found.tags], tuple(tag[1:] for tag in found.tags)
        is_joined = isinstance(found.message, JoinedCloud)
        number = num_joined if is_joined else numbers[0]
        num_joined += is_joined or found.drop in (DropReason.INCOMPLETE, DropReason.MALFORMED)
        if found.drop is not None:
            return BagCloud(None, None, messages[-1][0], found.drop, found.text)
        place = CloudPlace(number, found.stamp_ns if is_joined else messages[0][2], messages, found.cuts, is_joined)
        return BagCloud(found.message, place, messages[-1][0])

    for number, one, ordinal in recorded:
        time_ns = one.time_ns
        try:
            message = decode_message(one.cdr, POINT_CLOUD)
        except DataError as error:
            yield BagCloud(None, None, time_ns, DropReason.MALFORMED, str(error))
            continue
        yield from map(used, assembly.push(message, (number, time_ns, ordinal, one.stamp_ns)))
    yield from map(used, assembly.flush())


def read_cloud(path: Path, topic: str, place: CloudPlace, time_name: str, time_unit: str):
    """Return the cloud at a place of a bag; time_name, time_unit: see `with_times`.

    Raises: DataError when the bag has changed since.
    """
    messages = []
    with Bag(path) as bag:  # reopened: processes must not share an open file
        for time_ns, ordinal, stamp_ns in place.messages:
            found = bag.messages([topic], start_ns=time_ns, end_ns=time_ns + 1)
            recorded = next(islice(found, ordinal, None), None)
            if recorded is None or recorded.stamp_ns != stamp_ns:
                text = f'{path} has changed since it was opened: cloud {place.number} is gone. Open it again.'
                raise DataError(text)
            messages.append(decode_message(recorded.cdr, POINT_CLOUD))
    if not place.is_joined:
        return messages[0]
    pieces = [Piece(message, cut) for message, cut in zip(messages, place.cuts, strict=True)]
    return join(pieces, place.stamp_ns, time_name, time_unit)
