# SPDX-License-Identifier: Apache-2.0
"""OpenSceneFlow's scene: one HDF5 file <scene>.h5 with a group for each sweep, named by its stamp.

| dataset in a group      | rows | type        | content                                                         |
|-------------------------|------|-------------|-----------------------------------------------------------------|
| `lidar`                 | N    | float32, 3+ | x, y, z [m], then other columns of the source                   |
| `ground_mask`           | N    | bool        | whether the point is on the ground                              |
| `pose`                  |      | 4 x 4       | world_T_ego, float32 from Argoverse 2, float64 from others      |
| `ego_motion`            |      | 4 x 4       | ego1_T_ego0 to the next sweep; only with ground-truth flow      |
| `lidar_dt`              | N    | float32     | measurement time after the stamp [s]; optional                  |
| `flow`                  | N    | float32, 3  | total flow to the next sweep [m]; optional, as the next two     |
| `flow_is_valid`         | N    | bool        | whether the flow is known                                       |
| `flow_category_indices` | N    | uint8       | 0: background, else a category of Argoverse 2, from 1           |
| `eval_mask`             | N    | bool        | whether board v1 scores the point; optional, or N x 1           |

Other datasets are results that were written back, or belong to one method. Source: OpenSceneFlow's process scripts.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets.argoverse2_truth import CATEGORIES
from zeroflow_ros.errors import DataError

FORMAT_DATASETS = frozenset((
    'lidar', 'ground_mask', 'pose', 'ego_motion', 'lidar_id', 'lidar_dt', 'lidar_center', 'flow', 'flow_is_valid',
    'flow_category_indices', 'flow_instance_id', 'eval_mask', 'dufo', 'dufocluster', 'cluster', 'nnd', 'label',
))  # fmt: skip
SOURCE = 'zeroflow_ros_source'  # attribute of scenes by training.to_h5: their source dataset
_TRUTH = (('flow', 3), ('flow_is_valid', 1), ('flow_category_indices', 1))  # name, columns
_MOST_POINTS = 10**7  # per sweep; a damaged file may claim any number


@dataclass(frozen=True)
class SceneSweep:
    """One sweep of a scene, checked.

    points: (N, 3) float32 [m], as stored. is_ground: (N,) bool. world_T_ego: (4, 4) float64.
    times: (N,) float32 seconds after the stamp, or None.
    flow: (N, 3) float32 [m] total flow to the next sweep, or None; then is_valid (N,) bool and classes (N,) uint8 are
    None as well. ego1_T_ego0: (4, 4) float64 to the next sweep, or None. eval_mask: (N,) bool, or None.
    """

    points: np.ndarray
    is_ground: np.ndarray
    world_T_ego: np.ndarray
    times: np.ndarray | None = None
    flow: np.ndarray | None = None
    is_valid: np.ndarray | None = None
    classes: np.ndarray | None = None
    ego1_T_ego0: np.ndarray | None = None
    eval_mask: np.ndarray | None = None


@contextmanager
def open_scene(path: Path, mode: str = 'r'):
    """Open a scene with h5py: 'r' to read, 'r+' to add to it, 'w' for a new one.

    Raises: DataError when h5py is not installed, or a scene to read is missing, truncated or not HDF5, on opening or
    while reading; OSError when one cannot be written.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("Scenes of OpenSceneFlow are HDF5, which needs h5py. Run 'pip install h5py'.") from error
    if mode != 'r':  # errors in the caller's block are not translated: they may be of another file
        with h5py.File(path, mode) as file:
            yield file
        return
    try:
        with h5py.File(path, 'r', locking=False) as file:  # a folder may be read-only
            yield file
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py raises any of these for a damaged file
        raise DataError(
            f'{path} cannot be read as HDF5: {error}. If it was cut short when it was made or copied, make it again.'
        ) from error


def stamps_of(file) -> list[str]:
    """Return the names of the sweeps of an open scene in order of time."""
    names = (name for name in file if isinstance(name, str) and name.isascii() and name.isdigit())
    return sorted((name for name in names if hasattr(file[name], 'keys')), key=int)  # groups


def check_sweep(file, stamp: str) -> np.ndarray:
    """Return world_T_ego (4, 4) float64 of a sweep after checking its required datasets, without reading its points.

    Raises: DataError that names what is missing.
    """
    shape = _dataset(file, stamp, 'lidar').shape
    if len(shape) != 2 or shape[1] < 3 or not 0 < shape[0] <= _MOST_POINTS:
        raise DataError(f'{_where(file, stamp, "lidar")} should be (N, 3 or more) with N from 1 to 1e7, got {shape}.')
    _rows(file, stamp, 'ground_mask', shape[0])
    return _transform(file, stamp, 'pose')


def ego_motion_between(file, stamp0: str, stamp1: str) -> np.ndarray:
    """Return ego0_T_ego1 (4, 4) float64 of two consecutive sweeps.

    It comes from the poses; from `ego_motion` where these are float32, which is off by 0.5 mm far from the origin.
    Raises: DataError when the two contradict each other, for example because a sweep between was lost.
    """
    world_T_ego0, world_T_ego1 = (_transform(file, stamp, 'pose') for stamp in (stamp0, stamp1))
    ego0_T_ego1 = np.linalg.inv(world_T_ego0) @ world_T_ego1
    if 'ego_motion' in file[stamp0]:
        of_file = np.linalg.inv(_transform(file, stamp0, 'ego_motion'))
        apart = float(np.linalg.norm((of_file - ego0_T_ego1)[:3, 3]))
        if apart > 0.02:  # m; poses in float32 are within 2 mm
            raise DataError(
                f'{_where(file, stamp0, "ego_motion")} ends {apart:.3f} m from the pose of {stamp1}, the next sweep. '
                'A sweep between them was lost, or one of the two is in another frame.'
            )
        if file[stamp0]['pose'].dtype != np.float64:
            return of_file
    return ego0_T_ego1


def read_sweep(file, stamp: str, *, with_truth: bool = True) -> SceneSweep:
    """Return a sweep of an open scene.

    Raises: DataError that names the dataset that is missing or has the wrong shape.
    """
    world_T_ego, lidar, more = check_sweep(file, stamp), file[stamp]['lidar'], {}
    n = lidar.shape[0]
    if with_truth and 'flow' in file[stamp]:
        flow, is_valid, classes = (_rows(file, stamp, name, n, columns)[:] for name, columns in _TRUTH)
        classes = classes.reshape(-1).astype(np.int64)
        if classes.min() < 0 or classes.max() > len(CATEGORIES):
            found = classes.min() if classes.min() < 0 else classes.max()
            raise DataError(f'{_where(file, stamp)} has category {found}, expected 0 to {len(CATEGORIES)}.')
        more = {
            'flow': flow.astype(np.float32),
            'is_valid': is_valid.reshape(-1).astype(bool),
            'classes': classes.astype(np.uint8),
        }
    if 'eval_mask' in file[stamp]:
        more['eval_mask'] = _rows(file, stamp, 'eval_mask', n)[:].reshape(-1).astype(bool)
    if 'lidar_dt' in file[stamp]:
        times = _rows(file, stamp, 'lidar_dt', n)[:].reshape(-1).astype(np.float32)
        more['times'] = times if (np.abs(times) <= 1).all() else None  # implausible times count as unknown
    points = read_points(file, stamp)
    is_ground = _rows(file, stamp, 'ground_mask', n)[:].reshape(-1).astype(bool)
    return SceneSweep(points, is_ground, world_T_ego, **more)


def read_points(file, stamp: str) -> np.ndarray:
    """Return the points (N, 3) float32 [m] of a sweep that passes `check_sweep`."""
    return np.ascontiguousarray(file[stamp]['lidar'][:, :3], np.float32)


def write_sweep(file, stamp: str, sweep: SceneSweep) -> None:
    """Add a sweep to a scene that is open for writing."""
    group = file.create_group(stamp)
    group.create_dataset('lidar', data=sweep.points)
    group.create_dataset('ground_mask', data=sweep.is_ground)
    group.create_dataset('pose', data=sweep.world_T_ego)
    for name, value, kind in (
        ('lidar_dt', sweep.times, np.float32),
        ('flow', sweep.flow, np.float32),
        ('flow_is_valid', sweep.is_valid, bool),
        ('flow_category_indices', sweep.classes, np.uint8),
        ('ego_motion', sweep.ego1_T_ego0, np.float32),  # OpenSceneFlow's loader expects float32
        ('eval_mask', sweep.eval_mask, bool),
    ):
        if value is not None:
            group.create_dataset(name, data=value.astype(kind))


def _where(file, stamp: str, name: str = '') -> str:
    # Without the folder, so that an index stays right when the folder is moved.
    return f'{Path(file.filename).name}: {stamp}{f"/{name}" if name else ""}'


def _dataset(file, stamp: str, name: str):
    """Return a numeric dataset of an open scene, not read yet."""
    group = file[stamp]
    if name not in group:
        names = ', '.join(sorted(map(str, group))) or 'none'
        raise DataError(f'{_where(file, stamp)} lacks the dataset {name!r}; it has {names}.')
    found = group[name]
    if not hasattr(found, 'shape') or found.dtype.kind not in 'biuf':
        raise DataError(f'{_where(file, stamp, name)} should be an array of numbers, got {found}.')
    return found


def _rows(file, stamp: str, name: str, n: int, columns: int = 1):
    found = _dataset(file, stamp, name)
    if found.shape != (n, columns) and not (columns == 1 and found.shape == (n,)):
        raise DataError(
            f'{_where(file, stamp, name)} should have {n} rows as lidar has{f", of {columns}" if columns > 1 else ""}, '
            f'got the shape {found.shape}.'
        )
    return found


def _transform(file, stamp: str, name: str) -> np.ndarray:
    """Return a rigid (4, 4) float64 transform."""
    found = _dataset(file, stamp, name)
    if found.shape != (4, 4):
        raise DataError(f'{_where(file, stamp, name)} should be (4, 4), got {found.shape}.')
    matrix = found[:].astype(np.float64)
    rotation = matrix[:3, :3]
    with np.errstate(all='ignore'):
        off = abs(rotation @ rotation.T - np.eye(3)).max()
    if not (np.isfinite(matrix).all() and off < 1e-3 and matrix[3].tolist() == [0, 0, 0, 1]):
        raise DataError(
            f'{_where(file, stamp, name)} should be a finite rotation and translation, got {matrix.tolist()}.'
        )
    if np.linalg.det(rotation) < 0:
        raise DataError(
            f'{_where(file, stamp, name)} is mirrored (its determinant is -1): expected right-handed frames, '
            'x forward, y left.'
        )
    return matrix
