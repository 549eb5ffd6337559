# SPDX-License-Identifier: Apache-2.0
"""Walk through the compressed data of a JPEG file and find whether some of it is missing.

Decoders of images only warn where compressed data is lost: they go on with whatever follows. The data is therefore
counted here: all blocks of the image must be there, and nothing may be left over.

Source: ITU-T T.81, annexes B (markers), C (Huffman tables) and F (order of the codes of a block).
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from zeroflow_ros.camera import numba_support

_SEQUENTIAL = (0xC0, 0xC1)  # start of frame of Huffman-coded files with one pass
_TABLES, _START_OF_SCAN, _RESTART_INTERVAL = 0xC4, 0xDA, 0xDD
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_MIN_SPARE = 4  # bytes that may follow the last block: some encoders fill up words


@dataclass(frozen=True)
class _Header:
    """What is needed to count: size [px], components {id: (horizontal, vertical) sampling}, and the rest of the file.

    order: of the components in the scan, (id, number of the DC table, number of the AC table). tables: content of the
    segments with Huffman tables. interval: MCUs between restart markers, 0: none. start: of the compressed data.
    """

    size: tuple[int, int]
    components: dict[int, tuple[int, int]]
    order: tuple[tuple[int, int, int], ...]
    tables: bytes
    interval: int
    start: int


def lacks_data(data: bytes) -> bool:
    """Return whether compressed data of a JPEG file is missing, damaged, or left over.

    Looks at sequential files with all components in one scan, as cameras and image_transport write them; of others,
    and without numba, the answer is False.
    """
    header = _read_header(data) if numba_support.numba_kernels is not None else None
    if header is None:
        return False
    tables = _lookup_tables(header.tables)
    if tables is None or not all(16 * kind + number in tables for _, *numbers in header.order
                                 for kind, number in enumerate(numbers)):  # fmt: skip
        return False
    num_units, blocks = _units(header)
    parts = _parts(data, header)
    expected = [num_units] if not header.interval else [
        min(header.interval, num_units - first) for first in range(0, num_units, header.interval)
    ]  # fmt: skip
    if parts is None or len(parts) != len(expected):
        return True
    numbers = sorted({16 * kind + number for _, *pair in header.order for kind, number in enumerate(pair)})
    codes = _stacked_tables(header.tables, tuple(numbers))
    pattern = np.array([[numbers.index(dc), numbers.index(16 + ac)] for dc, ac in blocks], np.int64)
    return any(_is_damaged(part, *codes, pattern, num) for part, num in zip(parts, expected, strict=True))


def _is_damaged(part: bytes, codes: np.ndarray, short_codes: np.ndarray, pattern: np.ndarray, num_units: int) -> bool:
    scan = np.frombuffer(part.replace(b'\xff\x00', b'\xff') + bytes(8), np.uint8)
    used = numba_support.numba_kernels.walk_jpeg_scan(scan, codes, short_codes, pattern, num_units)
    if used < 0:
        return True
    spare = scan[-(-used // 8) : -8]
    return len(spare) >= _MIN_SPARE and len(np.unique(spare)) > 1


def _parts(data: bytes, header: _Header) -> list[bytes] | None:
    """Return the compressed data between restart markers; None where these are not in order."""
    parts, start, place = [], header.start, header.start
    while (place := data.find(b'\xff', place)) >= 0 and place + 1 < len(data):
        marker = data[place + 1]
        if marker == 0:
            place += 2
        elif marker == 0xFF:
            place += 1
        elif 0xD0 <= marker < 0xD8:
            if not header.interval or marker - 0xD0 != len(parts) % 8:
                return None
            parts.append(data[start:place])
            start = place = place + 2
        else:
            break
    if place < 0:
        return None
    return [*parts, data[start:place]]


def _read_header(data: bytes) -> _Header | None:
    """Return what the markers before the compressed data say; None where it is of a kind that is not looked at."""
    position, size, components, tables, interval = 2, None, {}, b'', 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from('>H', data, position + 2)
        content, position = data[position + 4 : position + 2 + length], position + 2 + length
        if marker in _SEQUENTIAL and len(content) >= 6 and len(content) >= 6 + 3 * content[5]:
            precision, height, width, num = struct.unpack_from('>BHHB', content)
            if precision != 8 or not height:
                return None
            size = width, height
            for k in range(num):
                sampling = content[7 + 3 * k]
                components[content[6 + 3 * k]] = sampling >> 4, sampling & 15
        elif marker == _TABLES:
            tables += content
        elif marker == _RESTART_INTERVAL and len(content) >= 2:
            (interval,) = struct.unpack_from('>H', content)
        elif marker == _START_OF_SCAN:
            if size is None or not content or len(content) < 1 + 2 * content[0]:
                return None
            chosen = [(content[1 + 2 * k], content[2 + 2 * k]) for k in range(content[0])]
            order = tuple((one, numbers >> 4, numbers & 15) for one, numbers in chosen)
            samplings = components.values()
            if {one for one, _, _ in order} != set(components) or not all(h and v for h, v in samplings):
                return None
            return _Header(size, components, order, tables, interval, position)
    return None


def _units(header: _Header) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of MCUs, and (DC table, AC table) of the blocks of each."""
    width, height = header.size
    if len(header.order) == 1:  # then the sampling does not count
        return -(-width // 8) * -(-height // 8), [header.order[0][1:]]
    across = 8 * max(h for h, _ in header.components.values())
    down = 8 * max(v for _, v in header.components.values())
    blocks = [
        (dc, ac) for one, dc, ac in header.order
        for _ in range(header.components[one][0] * header.components[one][1])
    ]  # fmt: skip
    return -(-width // across) * -(-height // down), blocks


@lru_cache(maxsize=8)  # an encoder writes the same tables into each file
def _lookup_tables(content: bytes) -> dict[int, np.ndarray] | None:
    """Return, by 16 * (0 for DC, 1 for AC) + number, 256 * length of the code + its value for all 16 bits that follow.

    0 where no code fits. None for content that is no table.
    """
    tables, position = {}, 0
    while position + 17 <= len(content):
        name, counts = content[position], content[position + 1 : position + 17]
        values = content[position + 17 : position + 17 + sum(counts)]
        position += 17 + sum(counts)
        if len(values) < sum(counts):
            return None
        table, code, taken = np.zeros(1 << 16, np.uint16), 0, 0
        for length, count in enumerate(counts, 1):
            for value in values[taken : taken + count]:
                first = code << (16 - length)
                table[first : first + (1 << (16 - length))] = length << 8 | value
                code += 1
            taken, code = taken + count, code << 1
        tables[name] = table
    return tables if position == len(content) else None


@lru_cache(maxsize=8)
def _stacked_tables(content: bytes, numbers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tables with these numbers for 16 and for 10 bits, (T, 65536) and (T, 1024); 0 for longer codes."""
    tables = _lookup_tables(content)
    codes = np.stack([tables[number] for number in numbers])
    first = codes[:, ::64]
    return codes, np.where(first >> 8 <= 10, first, 0).astype(np.uint16)
