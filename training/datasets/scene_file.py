# SPDX-License-Identifier: Apache-2.0
"""OpenSceneFlow's scene: one HDF5 file <scene>.h5, in which a group for each sweep is named by its stamp.

| in a group              | rows | type        | holds                                                           |
|-------------------------|------|-------------|-----------------------------------------------------------------|
| `lidar`                 | N    | float32, 3+ | x, y, z [m], then whatever the source had                       |
| `ground_mask`           | N    | bool        | on the ground                                                   |
| `pose`                  |      | 4 x 4       | world_T_ego, float32 from Argoverse 2, float64 from others      |
| `ego_motion`            |      | 4 x 4       | ego1_T_ego0 to the next sweep, where there is true flow         |
| `lidar_dt`              | N    | float32     | seconds after the stamp that it was measured; may be absent     |
| `flow`                  | N    | float32, 3  | total flow [m] to the next sweep; may be absent, as the next two |
| `flow_is_valid`         | N    | bool        | the flow is known                                               |
| `flow_category_indices` | N    | uint8       | 0 for the background, else a category of Argoverse 2, from 1    |
| `eval_mask`             | N    | bool        | scored by the first board; may be absent, or N x 1              |

Anything else is a result that was written back, or belongs to a method. Source: OpenSceneFlow's process scripts.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets.argoverse2_truth import CATEGORIES
from zeroflow_ros.errors import DataError

OF_THE_FORMAT = frozenset((
    'lidar', 'ground_mask', 'pose', 'ego_motion', 'lidar_id', 'lidar_dt', 'lidar_center', 'flow', 'flow_is_valid',
    'flow_category_indices', 'flow_instance_id', 'eval_mask', 'dufo', 'dufocluster', 'cluster', 'nnd', 'label',
))  # fmt: skip
SOURCE = 'zeroflow_ros_source'  # attribute of scenes that training.to_h5 wrote: the dataset they were made from
_TRUTH = ('flow', 'flow_is_valid', 'flow_category_indices')


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

    Raises: DataError when h5py is not installed, or a scene to read is missing, truncated or no HDF5, at once or on
    the way; OSError when one cannot be written.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("Scenes of OpenSceneFlow are HDF5, which needs h5py. Run 'pip install h5py'.") from error
    if mode != 'r':  # what goes wrong in between is the caller's, who also reads elsewhere
        with h5py.File(path, mode) as file:
            yield file
        return
    try:
        with h5py.File(path, 'r', locking=False) as file:  # a folder may be read-only
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # what h5py makes of a damaged file
        raise DataError(
            f'{path} cannot be read as HDF5: {error}. If it was cut short when it was made or copied, make it again.'
        ) from error


def stamps_of(file) -> list[str]:
    """Return the names of the sweeps of an open scene in order of time."""
    return sorted((name for name in file if name.isdigit()), key=int)


def check_sweep(file, stamp: str) -> np.ndarray:
    """Return world_T_ego (4, 4) float64 of a sweep that has what every one needs, without reading its points.

    Raises: DataError that says what it lacks.
    """
    group = file[stamp]
    where = f'{_name(file)}: {stamp}'
    for name in ('lidar', 'ground_mask', 'pose'):
        if name not in group:
            raise DataError(f'{where} lacks the dataset {name!r}; it has {", ".join(sorted(group)) or "none"}.')
    shape = group['lidar'].shape
    if len(shape) != 2 or shape[1] < 3 or shape[0] == 0:
        raise DataError(f'{where}/lidar should be (N, 3 or more) with a point, got {shape}.')
    _check_rows(group, 'ground_mask', shape[0])
    return _transform(group, 'pose')


def ego_motion_between(file, stamp0: str, stamp1: str) -> np.ndarray:
    """Return ego0_T_ego1 (4, 4) float64 of two sweeps in a row.

    From the poses; where these are float32, which is half a millimetre far from the origin, from `ego_motion`.
    Raises: DataError when the two contradict each other, as they do where a sweep between was lost.
    """
    world_T_ego0, world_T_ego1 = (_transform(file[stamp], 'pose') for stamp in (stamp0, stamp1))
    ego0_T_ego1 = np.linalg.inv(world_T_ego0) @ world_T_ego1
    if 'ego_motion' in file[stamp0]:
        of_file = np.linalg.inv(_transform(file[stamp0], 'ego_motion'))
        apart = float(np.linalg.norm((of_file - ego0_T_ego1)[:3, 3]))
        if apart > 0.02:  # m; poses in float32 are within 2 mm
            raise DataError(
                f'{_name(file)}: ego_motion of {stamp0} ends {apart:.3f} m from the pose of {stamp1}, the next '
                'sweep. A sweep between them was lost, or one of the two is in another frame.'
            )
        if file[stamp0]['pose'].dtype != np.float64:
            return of_file
    return ego0_T_ego1


def read_sweep(file, stamp: str, *, with_truth: bool = True) -> SceneSweep:
    """Return a sweep of an open scene.

    Raises: DataError that names the dataset that is missing or does not fit.
    """
    world_T_ego, group, truth = check_sweep(file, stamp), file[stamp], {}
    n = group['lidar'].shape[0]
    points = np.ascontiguousarray(group['lidar'][:, :3], np.float32)
    if with_truth and 'flow' in group:
        for name in _TRUTH:
            if name not in group:
                raise DataError(f'{_name(file)}: {stamp} has flow and lacks {name!r}.')
            _check_rows(group, name, n, 3 if name == 'flow' else 1)
        classes = group['flow_category_indices'][:].reshape(-1).astype(np.int64)
        if classes.min() < 0 or classes.max() > len(CATEGORIES):
            raise DataError(
                f'{_name(file)}: {stamp} has category {classes.min() if classes.min() < 0 else classes.max()}, '
                f'expected 0 to {len(CATEGORIES)}.'
            )
        truth = {
            'flow': group['flow'][:].astype(np.float32),
            'is_valid': group['flow_is_valid'][:].reshape(-1).astype(bool),
            'classes': classes.astype(np.uint8),
        }
    for name, field, kind in (('lidar_dt', 'times', np.float32), ('eval_mask', 'eval_mask', bool)):
        if name in group:
            _check_rows(group, name, n)
            truth[field] = group[name][:].reshape(-1).astype(kind)
    return SceneSweep(points, group['ground_mask'][:].reshape(-1).astype(bool), world_T_ego, **truth)


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
        ('ego_motion', sweep.ego1_T_ego0, np.float32),  # what their loader takes without a look at its type
        ('eval_mask', sweep.eval_mask, bool),
    ):
        if value is not None:
            group.create_dataset(name, data=value.astype(kind))


def _name(file) -> str:
    return Path(file.filename).name  # what an index keeps of a problem is true of a folder that was moved, too


def _check_rows(group, name: str, n: int, columns: int = 1) -> None:
    shape = group[name].shape
    if shape != (n, columns) and not (columns == 1 and shape == (n,)):
        raise DataError(
            f'{_name(group.file)}: {group.name.strip("/")}/{name} should have {n} rows as lidar has'
            f'{f", of {columns}" if columns > 1 else ""}, got the shape {shape}.'
        )


def _transform(group, name: str) -> np.ndarray:
    """Return a rigid (4, 4) float64 transform."""
    where, shape = f'{_name(group.file)}: {group.name.strip("/")}/{name}', group[name].shape
    if shape != (4, 4):
        raise DataError(f'{where} should be (4, 4), got {shape}.')
    matrix = group[name][:].astype(np.float64)
    rotation = matrix[:3, :3]
    if not np.isfinite(matrix).all() or abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3:
        raise DataError(f'{where} should be a finite rotation and translation, got {matrix.tolist()}.')
    return matrix
