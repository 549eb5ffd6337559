# SPDX-License-Identifier: Apache-2.0
"""The tables of nuScenes: LiDAR sweeps with poses and annotated boxes, by scene.

A version folder holds one JSON array of rows per table; rows refer to each other by tokens. The tables of the full data
set take gigabytes, so they are read row by row, and only what concerns the LiDAR and the wanted scenes is kept.
Quaternions are w, x, y, z; sizes are width, length, height; timestamps are microseconds since 1970.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.datasets.drive_pairs import NO_ROW, DropLog, unit_quaternion_pose
from zeroflow_ros.errors import DataError

CHANNEL = 'LIDAR_TOP'
_CHUNK = 1 << 20  # characters
_LONGEST_ROW = 1 << 24
_TEXTS = ('token', 'name', 'channel')  # ends of the names of columns that hold text
_STAMPS_US = (10**15, 10**16)  # September 2001 to 2286


@dataclass(frozen=True)
class SweepRow:
    """A LiDAR sweep. file: its path within the data set. world_T_ego, ego_T_lidar: (4, 4)."""

    stamp_us: int
    file: str
    world_T_ego: np.ndarray
    ego_T_lidar: np.ndarray


@dataclass(frozen=True)
class AnnotatedBox:
    """A box of a keyframe. world_T_box: (4, 4). half_size: (3,) [m], half of length, width and height."""

    world_T_box: np.ndarray
    half_size: np.ndarray
    category: str


@dataclass
class SceneTables:
    """One scene. sweeps: in order of time. keyframes: stamp [us] -> boxes by instance; of all samples, empty too.

    dropped: sweeps that the tables name, but do not describe.
    """

    name: str
    sweeps: list[SweepRow] = field(default_factory=list)
    keyframes: dict[int, dict[str, AnnotatedBox]] = field(default_factory=dict)
    dropped: DropLog = field(default_factory=DropLog)


def read_tables(folder: Path, scene: str = '') -> list[SceneTables]:
    """Return the scenes of a version folder, or the one named `scene`, by name.

    Raises: DataError when a table is missing, cut or malformed, a box refers to nothing, or there is no such scene.
    """
    names = {row['token']: row['name'] for row in read_rows(folder / 'scene.json', 'token name')}
    wanted = {token: SceneTables(name) for token, name in names.items() if scene in ('', name)}
    if not wanted:
        listed = ', '.join(sorted(names.values())[:20])
        raise DataError(f'{folder} has no scene {scene!r}. It has {len(names)}: {listed or "none"}.')
    sample_scene, sample_stamp = {}, {}
    for row in read_rows(folder / 'sample.json', 'token scene_token timestamp'):
        sample_scene[row['token']] = row['scene_token']
        if row['scene_token'] in wanted:
            sample_stamp[row['token']] = _stamp(row, folder / 'sample.json')
    _add_sweeps(folder, wanted, sample_scene)
    _add_boxes(folder, wanted, sample_scene, sample_stamp)
    return sorted(wanted.values(), key=lambda tables: tables.name)


def read_rows(path: Path, names: str) -> Iterator[dict]:
    """Yield the rows of a table one by one. names: of the columns that each row needs, separated by spaces.

    Raises: DataError when the file is missing, cut or no array of objects, or a row lacks a column
    or has another type in it.
    """
    if not path.is_file():
        raise DataError(f'{path.parent} lacks the table {path.name}.')
    decoder, needed = json.JSONDecoder(), set(names.split())
    texts = [name for name in needed if name.endswith(_TEXTS)]
    with open(path, encoding='utf-8', errors='replace') as file:
        text, number = file.read(_CHUNK).lstrip(), 0
        if not text.startswith('['):
            raise DataError(f'{path} should be a JSON array of rows, it starts with {text[:20]!r}.')
        text = text[1:]
        while True:
            start = 0
            while (row := _row_at(decoder, text, start)) is not None:
                values, start = row
                if not isinstance(values, dict) or needed - values.keys():
                    lacking = ', '.join(sorted(needed - set(values))) if isinstance(values, dict) else 'all columns'
                    raise DataError(f'{path}: row {number} lacks {lacking}.')
                if wrong := [name for name in texts if not isinstance(values[name], str)]:
                    raise DataError(
                        f'{path}: {wrong[0]} of row {number} should be a text, got {values[wrong[0]]!r:.80}.'
                    )
                yield values
                number += 1
            text = text[start:].lstrip(' \r\n\t,')
            if text.startswith(']'):
                return
            more = file.read(_CHUNK)
            if not more or len(text) > _LONGEST_ROW:
                raise DataError(f'{path} is cut or damaged after row {number}: {text[:40]!r}. Copy it again.')
            text += more


def _row_at(decoder: json.JSONDecoder, text: str, start: int) -> tuple[object, int] | None:
    """Return the next row and where it ends; None when the text holds no complete one."""
    while start < len(text) and text[start] in ' \r\n\t,':
        start += 1
    if start == len(text) or text[start] == ']':
        return None
    try:
        return decoder.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None


def _add_sweeps(folder: Path, wanted: dict[str, SceneTables], sample_scene: dict[str, str]) -> None:
    lidars = {row['token'] for row in read_rows(folder / 'sensor.json', 'token channel') if row['channel'] == CHANNEL}
    mounts, others = {}, set()
    for row in read_rows(folder / 'calibrated_sensor.json', 'token sensor_token translation rotation'):
        if row['sensor_token'] in lidars:
            mounts[row['token']] = _pose(row, folder / 'calibrated_sensor.json')
        else:
            others.add(row['token'])
    if not mounts:
        raise DataError(f'{folder} has no calibrated_sensor of the channel {CHANNEL} in sensor.json.')
    found, columns = [], 'token sample_token ego_pose_token calibrated_sensor_token timestamp filename'
    for row in read_rows(folder / 'sample_data.json', columns):
        if row['calibrated_sensor_token'] in others or f'/{CHANNEL}/' not in f'/{row["filename"]}':
            continue
        scene = wanted.get(sample_scene.get(row['sample_token'], ''))
        if scene is None:
            if row['sample_token'] not in sample_scene:  # of no scene: told with the first one
                _no_row(next(iter(wanted.values())), row, 'sample')
            continue
        if row['calibrated_sensor_token'] not in mounts:
            _no_row(scene, row, 'calibrated_sensor')
            continue
        found.append((scene, {name: row[name] for name in columns.split()}))  # of 330,000 rows
    tokens, poses = {row['ego_pose_token'] for _, row in found}, {}
    for row in read_rows(folder / 'ego_pose.json', 'token translation rotation'):
        if row['token'] in tokens:
            poses[row['token']] = _pose(row, folder / 'ego_pose.json')
    for scene, row in found:
        if row['ego_pose_token'] not in poses:
            _no_row(scene, row, 'ego_pose')
            continue
        stamp = _stamp(row, folder / 'sample_data.json')
        pose, mount = poses[row['ego_pose_token']], mounts[row['calibrated_sensor_token']]
        scene.sweeps.append(SweepRow(stamp, row['filename'], pose, mount))
    for scene in wanted.values():
        scene.sweeps.sort(key=lambda sweep: sweep.stamp_us)


def _no_row(scene: SceneTables, row: dict, table: str) -> None:
    token = row[f'{table}_token']
    scene.dropped.add(NO_ROW, f'{row["filename"]} refers to {table} {token!r}, which {table}.json lacks')


def _add_boxes(folder: Path, wanted: dict, sample_scene: dict[str, str], sample_stamp: dict[str, int]) -> None:
    category_of = {row['token']: row['name'] for row in read_rows(folder / 'category.json', 'token name')}
    instances = {
        row['token']: row['category_token'] for row in read_rows(folder / 'instance.json', 'token category_token')
    }
    for token, stamp in sample_stamp.items():
        wanted[sample_scene[token]].keyframes[stamp] = {}
    path = folder / 'sample_annotation.json'
    for row in read_rows(path, 'token sample_token instance_token translation size rotation'):
        if row['sample_token'] not in sample_stamp:
            if row['sample_token'] not in sample_scene:
                raise DataError(f'{path}: box {row["token"]} is of sample {row["sample_token"]}, which does not exist.')
            continue
        category = category_of.get(instances.get(row['instance_token'], ''))
        if category is None:
            raise DataError(
                f'{path}: box {row["token"]} is of instance {row["instance_token"]}, which instance.json and '
                'category.json do not describe. Copy the tables again.'
            )
        width, length, height = _numbers(row, 'size', 3, path)
        half_size = np.array([length, width, height]) / 2
        if not (half_size > 0).all():
            raise DataError(f'{path}: box {row["token"]} has the size {row["size"]}, expected three lengths above 0.')
        scene = wanted[sample_scene[row['sample_token']]]
        box = AnnotatedBox(_pose(row, path), half_size, category)
        scene.keyframes[sample_stamp[row['sample_token']]][row['instance_token']] = box


def _stamp(row: dict, path: Path) -> int:
    stamp = row['timestamp']
    if not isinstance(stamp, int) or not _STAMPS_US[0] <= stamp < _STAMPS_US[1]:
        raise DataError(
            f'{path}: the timestamp of {row["token"]} should be microseconds since 1970, such as 1531883530449377, got '
            f'{stamp!r}.'
        )
    return stamp


def _pose(row: dict, path: Path) -> np.ndarray:
    """Return the (4, 4) pose of a row."""
    w, x, y, z = _numbers(row, 'rotation', 4, path)
    return unit_quaternion_pose(_numbers(row, 'translation', 3, path), [x, y, z, w], f'{path}: {row["token"]}')


def _numbers(row: dict, name: str, count: int, path: Path) -> list[float]:
    try:
        numbers = [float(number) for number in row[name]]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise DataError(f'{path}: {name} of {row["token"]} should be {count} numbers, got {str(row[name])[:100]}.')
    return numbers
