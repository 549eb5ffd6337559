# SPDX-License-Identifier: Apache-2.0
"""Numbered examples of a hypothesis strategy, and seeded damage to bytes."""

import random
import struct

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

_BATCH = 200
_LENGTHS = (0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


class Examples:
    """Example number n of a strategy, reproducible by seed. Generated in batches, as hypothesis does."""

    def __init__(self, strategy, seed: int):
        self._strategy, self._seed = strategy, seed
        self._batch, self._examples = -1, []

    def __getitem__(self, number: int):
        batch, place = divmod(number, _BATCH)
        if batch != self._batch:
            self._batch, self._examples = batch, _make(self._strategy, self._seed * 1_000_003 + batch, _BATCH)
        return self._examples[place]


def _make(strategy, seed: int, count: int) -> list:
    found = []

    @seeded(seed)
    @settings(max_examples=count, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def collect(example):
        found.append(example)

    while len(found) < count:  # repeated examples make a batch shorter
        collect()
    return found[:count]


def damage(data: bytes, rng: random.Random, donor: bytes = b'') -> bytes:
    """Return data with one to four damages: bits flipped, parts cut, doubled, spliced, zeroed, or a length made huge.

    donor: source of foreign bytes; the data itself if empty.
    """
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _DAMAGES[rng.randrange(len(_DAMAGES))](changed, rng, donor or data)
    return bytes(changed)


def _flip(data, rng, _):
    for _ in range(rng.choice((1, 1, 3, 16))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data, rng, _):
    place = _place(data, rng)
    data[place : place + rng.choice((1, 2, 4, 8))] = rng.randbytes(rng.choice((1, 2, 4, 8)))


def _cut(data, rng, _):
    del data[_place(data, rng) :]


def _remove(data, rng, _):
    place = _place(data, rng)
    del data[place : place + rng.choice((1, 4, 32, 1000))]


def _double(data, rng, _):
    place = _place(data, rng)
    data[place:place] = data[place : place + rng.choice((1, 8, 100, 5000))] * rng.choice((1, 1, 20))


def _splice(data, rng, donor):
    place, source = _place(data, rng), _place(donor, rng)
    length = rng.choice((4, 32, 500))
    data[place : place + length] = donor[source : source + length]


def _zero(data, rng, _):
    place, length = _place(data, rng), rng.choice((1, 4, 64, 4096))
    data[place : place + length] = bytes(len(data[place : place + length]))


def _huge_length(data, rng, _):
    """Replace a small little-endian number, possibly a length, with a huge one."""
    width, code = rng.choice(((2, '<H'), (4, '<I'), (8, '<Q')))
    places = [p for p in (rng.randrange(max(1, len(data) - width)) for _ in range(200))
              if len(data) >= p + width and 0 < struct.unpack_from(code, data, p)[0] < 2**16]  # fmt: skip
    if places:
        length = min(rng.choice(_LENGTHS), 2 ** (8 * width) - 1)
        struct.pack_into(code, data, places[0], length)


def _place(data, rng) -> int:
    """Return a random position in data; every other time near an end, where headers and indices are."""
    if not data:
        return 0
    reach = rng.choice((len(data), len(data), 100, 400))
    place = rng.randrange(min(reach, len(data)))
    return place if rng.random() < 0.7 else len(data) - 1 - place


_DAMAGES = (_flip, _flip, _overwrite, _overwrite, _cut, _remove, _double, _splice, _zero, _huge_length, _huge_length)
