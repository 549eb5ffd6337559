# SPDX-License-Identifier: Apache-2.0
"""Sweep pairs and stereo pairs for labelling, training and scoring, named by one line of text.

  simulation:0-9              one pair from each simulated clip, seeds 0 to 9
  simulation:0-9@out/clips    the same, with clips stored in a folder; missing ones are simulated
  bag:PATH                    rosbag1 or rosbag2: pairs of consecutive clouds
  bag:PATH+BOXES.json         with ground-truth flow inside tracked boxes
  av2:FOLDER                  one Argoverse 2 Sensor log, or a folder of logs
  osf:FOLDER                  scenes of OpenSceneFlow, *.h5
  nuscenes:ROOT               nuScenes, the folder with samples, sweeps and v1.0-*
  pandaset:ROOT?trust_pickles=true    PandaSet, a sequence or a folder of sequences
  waymo:FOLDER                Waymo Open perception data, *.tfrecord or tables of version 2

  kitti_scene_flow:ROOT       stereo pairs of KITTI scene flow 2015, folder training or testing
  kitti_raw:DATE/DRIVE        stereo pairs of a drive of KITTI raw data
  kitti_raw_list:ROOT+LIST.txt    those of the frames or drives that a published list names
  stereo:PATH                 rosbag1 or rosbag2: pairs of consecutive stereo frames
  stereo:PATH+BOXES.json      with tracked boxes
  stereo_simulation:0-9       one pair from each simulated drive; @FOLDER keeps them, as for simulation

A bare path is recognised by its content. Options follow a question mark: bag:PATH?topic=/lidar/points&deskew=true.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from zeroflow_ros.errors import DataError

if TYPE_CHECKING:
    from training.datasets.pairs import PairDataset
    from training.datasets.stereo_pairs import StereoPairDataset

SENSORS = SWEEPS, STEREO = 'sweeps', 'stereo'  # what datasets hold pairs of
# Scheme -> its module, with open_pairs(text) -> PairDataset and recognises(text) -> bool for what follows the colon.
_SWEEP_SCHEMES = {
    'simulation': 'training.datasets.simulated_pairs',
    'bag': 'training.datasets.rosbag',
    'av2': 'training.datasets.argoverse2',
    'osf': 'training.datasets.opensceneflow',
    'nuscenes': 'training.datasets.nuscenes',
    'pandaset': 'training.datasets.pandaset',
    'waymo': 'training.datasets.waymo',
}
# The same, with open_pairs(text) -> StereoPairDataset.
_STEREO_SCHEMES = {
    'kitti_scene_flow': 'training.datasets.kitti_scene_flow',
    'kitti_raw': 'training.datasets.kitti_raw',
    'kitti_raw_list': 'training.datasets.kitti_raw_list',
    'stereo': 'training.datasets.stereo_bag',
    'stereo_simulation': 'training.datasets.stereo_simulation',
}
_SCHEMES = _SWEEP_SCHEMES | _STEREO_SCHEMES
_PAIRS = {SWEEPS: 'pairs of LiDAR sweeps', STEREO: 'pairs of stereo images'}
_TRUTH = {'true': True, 'false': False}


def open_dataset(spec: str, sensors: tuple[str, ...] = (SWEEPS,)) -> 'PairDataset | StereoPairDataset':
    """Return the dataset that a line of text names; see the docstring of this module.

    sensors: what the caller can use, SWEEPS, STEREO or both; `sensor_of` tells which it got.
    Raises: DataError for an unknown scheme or path, which lists the known ones, for a dataset of another sensor, and
    when the dataset has no pair.
    """
    scheme, text = _scheme_of(str(spec))
    sensor = STEREO if scheme in _STEREO_SCHEMES else SWEEPS
    if sensor not in sensors:
        usable = _STEREO_SCHEMES if STEREO in sensors else _SWEEP_SCHEMES
        raise DataError(
            f'{spec} holds {_PAIRS[sensor]}, and {_PAIRS[sensors[0]]} are needed here. Use one of '
            f'{", ".join(f"{name}:..." for name in usable)}.'
        )
    return import_module(_SCHEMES[scheme]).open_pairs(text)


def sensor_of(dataset: 'PairDataset | StereoPairDataset') -> str:
    """Return SWEEPS or STEREO: what a dataset holds pairs of."""
    return getattr(dataset, 'sensor', SWEEPS)


def _scheme_of(spec: str) -> tuple[str, str]:
    """Return the scheme and what follows it. Raises: DataError when the text names no dataset."""
    scheme, colon, text = spec.partition(':')
    if colon and scheme in _SCHEMES:
        return scheme, text
    for name, module in _SCHEMES.items():
        if import_module(module).recognises(spec):
            return name, spec
    raise DataError(
        f'{spec!r} is not a dataset: expected one of {", ".join(f"{name}:..." for name in _SCHEMES)}, or the path of a '
        'rosbag, of Argoverse 2 logs or of *.h5 scenes. Examples: simulation:0-9, bag:PATH, bag:PATH+BOXES.json, '
        'av2:FOLDER, osf:FOLDER, kitti_scene_flow:ROOT.'
    )


def split_options(text: str, kind: type) -> tuple[str, object]:
    """Return the text before the question mark, and a dataclass of the options after it, `name=value&...`.

    Raises: DataError for an unknown option, or a value of the wrong type.
    """
    from dataclasses import fields

    before, _, after = text.partition('?')
    known, values = {field.name: field.type for field in fields(kind)}, {}
    for option in filter(None, after.split('&')):
        name, _, value = option.partition('=')
        try:
            values[name] = _TRUTH[value] if known[name] is bool else known[name](value)
        except (KeyError, ValueError) as error:
            listed = ', '.join(f'{name} ({type_.__name__})' for name, type_ in known.items())
            raise DataError(f'{option!r} in {text!r} is not a valid option. Known options: {listed}.') from error
    return before, kind(**values)
