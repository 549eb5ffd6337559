# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels on disk: one file with a checksum per label, and one description shared by all labels of a store.

A label file is the 8 bytes of its schema, the sha256 of the rest, the length of a JSON header, the header, and
six zlib blocks: both clouds, both flows, both ground masks; two more where there are dynamic labels. Coordinates are
rounded to millimetres, so the error is at most 0.5 mm; reading and writing again gives the same file. Plain floats take
3.5 times the space.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from training.datasets.training_pair import TrainingPair
from training.teachers.pseudo_label import PseudoLabel
from zeroflow_ros.errors import DataError

SCHEMA = 1
_MAGIC = b'ZFLABEL1'
_SUFFIX = '.label'
_KEY = re.compile(r'[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*')  # no part may start with a dot
_UNKNOWN = np.int32(-(2**31))  # stands for NaN among millimetres
_REACH_MM = 2**31 - 1  # 2,147 km
_ARRAYS = ('points0', 'points1', 'flow0', 'flow1', 'is_ground0', 'is_ground1')


class LabelStore:
    """The labels of one teacher, with one configuration and one crop, on one dataset.

    about: the description given to `create`. sensor: what the pairs are of, see training.datasets.
    Raises: DataError when the folder is not a store, has another schema, or is of another sensor.
    """

    sensor = 'sweeps'

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        path = self.folder / 'store.json'
        if not path.is_file():
            raise DataError(f'{self.folder} holds no pseudo-labels. Make some: python3 -m training.label --help')
        try:
            self.about = json.loads(path.read_text())
            schema = self.about['schema']
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path} is damaged ({error}). Label into another folder.') from error
        if schema != SCHEMA:
            raise DataError(f'{path} has schema {schema}, this code reads {SCHEMA}. Label into another folder.')
        found = self.about.get('sensor', 'sweeps')
        if found != self.sensor:
            held, needed = (sensor.removesuffix('s') for sensor in (found, self.sensor))
            raise DataError(f'{self.folder} holds labels of {held} pairs, and those of {needed} pairs are needed here.')

    @classmethod
    def create(cls, folder: Path, about: dict, code: dict) -> 'LabelStore':
        """Open a store for writing; create it if it does not exist.

        about: what all its labels share (teacher, config, crop, datasets), in JSON's types. code: version of the code
        that created it; a later job may have another version.
        Raises: DataError when the existing store has a different `about`.
        """
        folder = Path(folder)
        path = folder / 'store.json'
        content = json.loads(json.dumps({'schema': SCHEMA, **about, 'code': code}))
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # if two jobs start together, one creates the store
                _write(path, (json.dumps(content, indent=2) + '\n').encode(), os.link)
        store = cls(folder)
        names = (store.about.keys() | content.keys()) - {'code'}
        different = sorted(name for name in names if store.about.get(name) != content.get(name))
        if different:
            listed = '; '.join(f'{name}: {store.about.get(name)} there, {content.get(name)} now' for name in different)
            raise DataError(f'{folder} holds labels of other settings ({listed}). Label into another folder.')
        return store

    def keys(self) -> list[str]:
        """Return the keys of all labels, intact or not, in order."""
        root = self.folder / 'labels'
        found = (path.relative_to(root).as_posix() for path in root.rglob(f'*{_SUFFIX}') if path.name[0] != '.')
        return sorted(name.removesuffix(_SUFFIX) for name in found)

    def path(self, key: str) -> Path:
        """Return the file of a label. Raises: DataError for an invalid key."""
        if not _KEY.fullmatch(key):
            raise DataError(
                f"{key!r} is not a key: use letters, digits, '.', '_', '-' and '/'; no part may begin with a dot."
            )
        return self.folder / 'labels' / f'{key}{_SUFFIX}'

    def is_intact(self, key: str, input_sha256: str = '') -> bool:
        """Return whether the label is complete and intact, and, with `input_sha256`, made from that sweep pair."""
        try:
            header, _ = _parse(self.path(key), key)
        except DataError:
            return False
        return input_sha256 in ('', header['input_sha256'])

    def read(self, key: str) -> PseudoLabel:
        """Return a label. Raises: DataError when it is missing or damaged."""
        header, blocks = self._read_blocks(key)
        blocks = [zlib.decompress(block) for block in blocks]
        arrays = [_metres(block) for block in blocks[:4]]
        arrays += [
            np.unpackbits(np.frombuffer(block, np.uint8), count=len(points)).astype(bool)
            for block, points in zip(blocks[4:6], arrays, strict=False)
        ]
        dynamic = [np.frombuffer(block, np.int32) for block in blocks[6:]]
        return PseudoLabel(key, *arrays, header['dt'], header['input_sha256'], *dynamic)

    def read_clouds(self, key: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Return (points0, points1, dt) of a label: half the work of `read`. Raises: DataError as `read`."""
        header, body = _parse(self.path(key), key)
        length0, length1 = header['blocks'][:2]
        blocks = body[:length0], body[length0 : length0 + length1]
        return *(_metres(zlib.decompress(block)) for block in blocks), header['dt']

    def write(self, label: PseudoLabel) -> Path:
        """Write a label atomically, replacing an existing one.

        Raises: DataError when it cannot be written, for example on a full disk; no partial file remains.
        """
        arrays = [getattr(label, name) for name in _ARRAYS]
        blocks = [_millimetres(array) for array in arrays[:4]] + [np.packbits(array).tobytes() for array in arrays[4:]]
        if label.dynamic0 is not None:
            blocks += [label.dynamic0.tobytes(), label.dynamic1.tobytes()]
        blocks = [zlib.compress(block, 1) for block in blocks]  # level 1: 5 % more space than 6, in 60 % of its time
        return self._write_blocks({'key': label.key, 'dt': label.dt, 'input_sha256': label.input_sha256}, blocks)

    def _read_blocks(self, key: str) -> tuple[dict, list[bytes]]:
        """Return the header and the blocks of a label. Raises: DataError when it is missing or damaged."""
        header, body = _parse(self.path(key), key)
        ends = list(accumulate(header['blocks'], initial=0))
        return header, [body[start:end] for start, end in pairwise(ends)]

    def _write_blocks(self, header: dict, blocks: list[bytes]) -> Path:
        """Write a label of these blocks; its header gets their lengths. Raises: DataError as `write`."""
        text = json.dumps(header | {'blocks': [len(block) for block in blocks]}).encode()
        content = struct.pack('<I', len(text)) + text + b''.join(blocks)
        path = self.path(header['key'])
        for leftover in path.parent.glob(f'.{path.name}.*.partial'):  # of a job that was killed
            leftover.unlink(missing_ok=True)
        _write(path, _MAGIC + hashlib.sha256(content).digest() + content, os.replace)
        return path

    def training_pair(self, key: str) -> TrainingPair:
        """Return a label as a training pair, both clouds in ego0, z = 0 on the ground, without NaN rows.

        Flow is NaN where not labelled: such points are input of the student, but not part of its loss.
        """
        label = self.read(key)
        kept = [np.isfinite(points).all(axis=1) for points in (label.points0, label.points1)]
        names = ('points', 'flow', 'is_ground') + (() if label.dynamic0 is None else ('dynamic',))
        arrays = {f'{name}{side}': getattr(label, f'{name}{side}')[kept[side]] for name in names for side in (0, 1)}
        return TrainingPair(**arrays, dt=label.dt)


def _write(path: Path, content: bytes, publish: Callable) -> None:
    """Write and sync a temporary file beside `path`, then publish(temporary, path); always remove the temporary."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise DataError(
            f'{path.parent} cannot be written: {error.strerror}. Existing labels are intact; make room, then run the '
            'same command again, which resumes.'
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _parse(path: Path, key: str) -> tuple[dict, bytes]:
    """Return header and blocks of a label file. Raises: DataError when its checksum or key is wrong."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f'No label of {key} at {path}: {error.strerror}.') from error
    start = len(_MAGIC) + 32
    if content[: len(_MAGIC)] != _MAGIC or hashlib.sha256(content[start:]).digest() != content[len(_MAGIC) : start]:
        raise DataError(f'{path} is damaged or cut short. The label job that made it redoes it when run again.')
    (length,) = struct.unpack_from('<I', content, start)
    header = json.loads(content[start + 4 : start + 4 + length])
    if header['key'] != key:
        raise DataError(f'{path} is the label of {header["key"]}. The label job that made it redoes it when run again.')
    return header, content[start + 4 + length :]


def _millimetres(values: np.ndarray) -> bytes:
    """Return (N, 3) [m] as bytes that compress well: columns, the sign in the lowest bit, high bytes together."""
    scaled = np.round(values.T.astype(np.float64) * 1000)  # (3, N)
    with np.errstate(invalid='ignore'):
        whole = np.where(np.abs(scaled) <= _REACH_MM, scaled, _UNKNOWN).astype(np.int32)
    unsigned = ((whole << 1) ^ (whole >> 31)).view(np.uint32)  # 0, -1, 1, -2 .. become 0, 1, 2, 3 ..
    return np.ascontiguousarray(unsigned.reshape(-1, 1).view(np.uint8).T).tobytes()


def _metres(content: bytes) -> np.ndarray:
    """Return the values given to `_millimetres`, (N, 3) float32 [m], rounded to the millimetre."""
    planes = np.frombuffer(content, np.uint8).reshape(4, -1)
    unsigned = np.ascontiguousarray(planes.T).view(np.uint32).ravel()
    whole = (unsigned >> 1).view(np.int32) ^ -(unsigned & 1).view(np.int32)
    values = np.where(whole == _UNKNOWN, np.nan, whole / 1000).astype(np.float32)
    return np.ascontiguousarray(values.reshape(3, -1).T)
