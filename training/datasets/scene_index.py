# SPDX-License-Identifier: Apache-2.0
"""Which sweeps lie in a folder of scenes, and which two in a row make a pair; kept as JSON beside them.

The pickles that OpenSceneFlow keeps for this are never read: a pickle runs whatever its writer wanted.
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
    """A sweep of a scene. stamp: its name. has_mask: whether a board scores it.

    problem: why it cannot be read, or ''. motion_problem: why its motion to the next one is not to be believed, or ''.
    """

    stamp: str
    has_mask: bool
    problem: str
    motion_problem: str


def read_index(folder: Path) -> dict[str, list[IndexedSweep]]:
    """Return the sweeps of each scene of a folder in order of time.

    Scenes that have not changed since the last time are taken from the JSON, which is written anew by way of a
    temporary file; where the folder may not be written to, there is none.
    Raises: DataError when a scene cannot be read, or there is none.
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
    """Return the scenes of an index, {} when there is none of this version that makes sense."""
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
