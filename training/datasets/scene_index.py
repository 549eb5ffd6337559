# SPDX-License-Identifier: Apache-2.0
"""Index of the sweeps in a folder of scenes, and which consecutive two make a pair; stored as JSON beside them.

OpenSceneFlow's own index files are pickles and never read: unpickling can run any code.
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from training.datasets.scene_file import check_sweep, ego_motion_between, open_scene, stamps_of
from zeroflow_ros.errors import DataError
from zeroflow_ros.views.report import write_json

INDEX = '.zeroflow_ros_index.json'
_VERSION = 1


@dataclass(frozen=True)
class IndexedSweep:
    """A sweep of a scene. stamp: its name. has_mask: whether it has an eval_mask.

    problem: why it cannot be read, or ''. motion_problem: why its motion to the next one is rejected, or ''.
    """

    stamp: str
    has_mask: bool
    problem: str
    motion_problem: str


def read_index(folder: Path) -> dict[str, list[IndexedSweep]]:
    """Return the sweeps of each scene of a folder in order of time.

    Unchanged scenes are taken from the JSON, which is replaced atomically. A read-only folder gets no JSON.
    Raises: DataError when a scene cannot be read, or the folder has none.
    """
    paths = sorted(folder.glob('*.h5'))
    if not paths:
        raise DataError(f'{folder} holds no scene of OpenSceneFlow: expected <scene>.h5 in it.')
    known, index = _read_json(folder / INDEX), {}
    for path in tqdm(paths, f'index of {folder.name}', unit='scene', delay=2, disable=None):
        status = path.stat()
        mark = [status.st_size, status.st_mtime_ns]
        if path.stem in known and known[path.stem]['mark'] == mark:
            index[path.stem] = known[path.stem]
        else:
            index[path.stem] = {'mark': mark, 'sweeps': [asdict(sweep) for sweep in _index_scene(path)]}
    if index != known:
        with contextlib.suppress(OSError):
            write_json(folder / INDEX, {'version': _VERSION, 'scenes': index})
    return {scene: [IndexedSweep(**sweep) for sweep in entry['sweeps']] for scene, entry in index.items()}


def _read_json(path: Path) -> dict:
    """Return the scenes of an index; {} if it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_text())
        scenes = content['scenes'] if content['version'] == _VERSION else {}
        for entry in scenes.values():
            [IndexedSweep(**sweep) for sweep in entry['sweeps']]
            entry['mark']
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return scenes


def _index_scene(path: Path) -> list[IndexedSweep]:
    with open_scene(path) as file:
        stamps, problems = stamps_of(file), {}
        for stamp in stamps:
            try:
                check_sweep(file, stamp)
            except DataError as error:
                problems[stamp] = str(error)
        sweeps = []
        for k, stamp in enumerate(stamps):
            motion_problem = ''
            if k + 1 < len(stamps) and not {stamp, stamps[k + 1]} & set(problems):
                try:
                    ego_motion_between(file, stamp, stamps[k + 1])
                except DataError as error:
                    motion_problem = str(error)
            has_mask = 'eval_mask' in file[stamp]
            sweeps.append(IndexedSweep(stamp, has_mask, problems.get(stamp, ''), motion_problem))
    return sweeps
