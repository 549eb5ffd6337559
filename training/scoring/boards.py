# SPDX-License-Identifier: Apache-2.0
"""Submission formats of the Argoverse 2 scene flow boards: pairs, rows, columns, file names; check of the archive.

| board | file                      | pairs                | rows        | columns                              |
|-------|---------------------------|----------------------|-------------|--------------------------------------|
| v1    | <log>/<stamp>.feather     | those with a mask    | in the mask | flow_t{x,y,z}_m of total, is_dynamic |
| v2    | <log>/<number>.feather    | every fifth of a log | all         | is_valid, flow_t{x,y,z}_m, residual  |
| v3    | <scene>/<stamp>.feather   | all, or those listed | all         | flow_t{x,y,z}_m, residual            |

Flow is float16, the other columns are bool. <number> is the index of the sweep in its log, ten digits.
Total flow goes from sweep 0 in ego0 to sweep 1 in ego1, ego motion included; residual flow is in ego0.
Source: av2 0.3.6 (make_submission_archive, utils) for v1; OpenSceneFlow's writer for columns and names of v2 and v3.
"""

import io
import json
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets.pairs import DatasetPair, PairDataset
from training.datasets.total_flow import residual_to_total
from training.scoring.metrics import DYNAMIC
from zeroflow_ros.errors import DataError

BOARDS = ('v1', 'v2', 'v3')
METADATA = 'metadata.json'
_FLOW = {f'flow_t{axis}_m': np.dtype(np.float16) for axis in 'xyz'}
COLUMNS = {
    'v1': _FLOW | {'is_dynamic': np.dtype(bool)},
    'v2': {'is_valid': np.dtype(bool)} | _FLOW,
    'v3': _FLOW,
}
_EVERY = 5  # v2 scores every fifth sweep of a log, starting at the first


@dataclass(frozen=True)
class SubmissionEntry:
    """A file of a submission. name: in our archive and in the archive of masks. index: of its pair in the dataset."""

    name: str
    index: int


def submission_entries(board: str, dataset: PairDataset, *, masks: Path | None = None,
               only: tuple[str, ...] = ()) -> list[SubmissionEntry]:  # fmt: skip
    """Return the files that a board expects for a dataset.

    masks: the official archive of v1. only: keys of the pairs that v3 scores; empty means all.
    Raises: DataError when expected pairs are missing, or pairs are not named SCENE/STAMP.
    """
    index_of = {dataset.key(index): index for index in range(len(dataset))}
    unnamed = next((key for key in index_of if not _is_named(key)), None)
    if unnamed is not None or len(index_of) < len(dataset):
        raise DataError(
            f'{dataset.name} has pairs named {unnamed or "twice"}, boards expect <log>/<stamp>. Submit Argoverse 2 '
            'logs (av2:FOLDER) or scenes (osf:FOLDER).'
        )
    if board == 'v1':
        return _masked_entries(dataset, index_of, masks)
    if board == 'v2':
        return _every_fifth_entry(dataset, index_of)
    _check_all_present(dataset, only, index_of)
    return [SubmissionEntry(f'{key}.feather', index_of[key]) for key in only or index_of]


def submission_columns(
    board: str, item: DatasetPair, residual: np.ndarray, mask: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the columns of a submission file by name.

    residual: (N, 3) [m], residual flow of sweep 0 in ego0; rows that are not finite count as static.
    mask: (N,) bool, rows to submit; None: all.
    Raises: DataError when flow or mask does not match the sweep.
    """
    points = item.pair.points0
    if residual.shape != points.shape:
        raise DataError(f'{item.key} has {len(points)} points, its flow has the shape {residual.shape}.')
    if mask is not None and mask.shape != (len(points),):
        raise DataError(f'{item.key} has {len(points)} points, its mask {len(mask)} rows: it belongs to other data.')
    residual = np.where(np.isfinite(residual).all(1)[:, None], residual, 0)
    flow = residual
    if board == 'v1':
        points = np.where(np.isfinite(points), points, 0)
        flow = residual_to_total(residual, points, item.pair.ego0_T_ego1)
    with np.errstate(over='ignore'):
        flow16 = flow.astype(np.float16)
    if not np.isfinite(flow16).all():
        raise DataError(f'{item.key} has a flow of {np.abs(flow).max():.3g} m, more than float16 can hold.')
    columns = {
        'is_valid': np.ones(len(flow), bool),  # points without flow are submitted as static, not left out
        **{name: flow16[:, k] for k, name in enumerate(_FLOW)},
        'is_dynamic': np.linalg.norm(residual, axis=1) >= DYNAMIC,
    }
    return {name: columns[name] if mask is None else columns[name][mask] for name in COLUMNS[board]}


def read_mask(masks: Path, entry: SubmissionEntry) -> np.ndarray:
    """Return the rows of a sweep that v1 scores, (N,) bool. Raises: DataError when the file is not a mask."""
    with _open_masks(masks) as archive:
        columns = decode(archive.read(entry.name), f'{masks}: {entry.name}')
    if list(columns) != ['mask'] or columns['mask'].dtype != bool:
        raise DataError(f'{masks}: {entry.name} should have one column, mask, of bool; got {list(columns)}.')
    return columns['mask']


def encode(columns: dict[str, np.ndarray]) -> bytes:
    """Encode columns as a feather file."""
    import pyarrow
    from pyarrow import feather

    buffer = io.BytesIO()
    feather.write_feather(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def check_archive(path: Path, board: str, num_rows: dict[str, int], about: dict | None) -> None:
    """Read a finished submission and compare it with the board's format.

    num_rows: number of rows by file name. about: expected content of metadata.json; None: no such file.
    Raises: DataError that names the first file that is missing, unexpected, or wrong.
    """
    with zipfile.ZipFile(path) as archive:
        names, wanted = archive.namelist(), [*num_rows, *([METADATA] if about is not None else [])]
        if sorted(names) != sorted(wanted):
            odd = sorted(set(names) ^ set(wanted)) or sorted(names)
            raise DataError(f'{path} holds {len(names)} files, expected {len(wanted)}; one that differs is {odd[0]}.')
        if about is not None and json.loads(archive.read(METADATA)) != about:
            raise DataError(f'{path}: {METADATA} should be {about}, got {archive.read(METADATA)!r}.')
        for name, rows in num_rows.items():
            columns = decode(archive.read(name), f'{path}: {name}')
            found = {column: values.dtype for column, values in columns.items()}
            if list(found.items()) != list(COLUMNS[board].items()):
                raise DataError(f'{path}: {name} should have the columns {COLUMNS[board]}, got {found}.')
            for column, values in columns.items():
                if len(values) != rows:
                    raise DataError(f'{path}: {name} should have {rows} rows, got {len(values)}.')
                if values.dtype == np.float16 and not np.isfinite(values).all():
                    raise DataError(f'{path}: {name} has flow in {column} that is not finite as float16.')


def decode(content: bytes, name: str) -> dict[str, np.ndarray]:
    """Decode the columns of a feather file. Raises: DataError when it is not one."""
    from pyarrow import ArrowException, feather

    try:
        table = feather.read_table(io.BytesIO(content))
    except (ArrowException, ValueError, OSError) as error:
        raise DataError(f'{name} should be a feather file: {error}') from error
    return {column: table[column].to_numpy() for column in table.column_names}


def _is_named(key: str) -> bool:
    scene, slash, stamp = key.rpartition('/')
    return bool(scene and slash and stamp.isdigit())


def _check_all_present(dataset: PairDataset, wanted, index_of: dict[str, int]) -> None:
    missing = [key for key in wanted if key not in index_of]
    if missing:
        raise DataError(
            f'{dataset.name} lacks {len(missing)} of {len(wanted)} expected pairs, for example {missing[0]}. '
            'A board accepts only a whole split.'
        )


def _masked_entries(dataset: PairDataset, index_of: dict[str, int], masks: Path | None) -> list[SubmissionEntry]:
    if masks is None:
        raise DataError(
            'Board v1 scores the points of its mask files. Give the official archive as --masks test-masks.zip (or '
            'val-masks.zip), s3://argoverse/tasks/3d_scene_flow/zips. Masks of your own can differ by a point, '
            'and then the board rejects the whole submission.'
        )
    if not getattr(dataset, 'in_vehicle_frame', True):
        raise DataError(
            f'Board v1 expects total flow in the vehicle frame, and {dataset.name} may be in a LiDAR frame. Give the '
            'mounting pose, osf:FOLDER?calibration=LOGS, or submit av2:LOGS.'
        )
    with _open_masks(masks) as archive:
        keys = [name.removesuffix('.feather') for name in archive.namelist() if name.endswith('.feather')]
    if not keys:
        raise DataError(f'{masks} contains no masks. Give the official archive, test-masks.zip or val-masks.zip.')
    _check_all_present(dataset, keys, index_of)
    return [SubmissionEntry(f'{key}.feather', index_of[key]) for key in keys]


@contextmanager
def _open_masks(masks: Path):
    try:
        with zipfile.ZipFile(masks) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f'{masks} should be the archive of masks: {error}') from error


def _every_fifth_entry(dataset: PairDataset, index_of: dict[str, int]) -> list[SubmissionEntry]:
    if getattr(dataset, 'skipped', None):
        counts = ', '.join(f'{count} {name}' for name, count in dataset.skipped.items())
        raise DataError(f'Board v2 numbers the sweeps of a log, and {dataset.name} lacks some ({counts}).')
    of_scene: dict[str, list[str]] = {}
    for key in sorted(index_of, key=lambda key: int(key.rpartition('/')[2])):
        of_scene.setdefault(key.rpartition('/')[0], []).append(key)
    return [
        SubmissionEntry(f'{scene}/{number:010d}.feather', index_of[keys[number]])
        for scene, keys in of_scene.items()
        for number in range(0, len(keys), _EVERY)
    ]
