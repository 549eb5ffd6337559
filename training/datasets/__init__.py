# SPDX-License-Identifier: Apache-2.0
"""Sweep pairs for labelling, training and scoring, named by one line of text.

  simulation:0-9              one pair from each simulated clip, seeds 0 to 9
  simulation:0-9@out/clips    the same, with clips stored in a folder; missing ones are simulated
  bag:PATH                    rosbag1 or rosbag2: pairs of consecutive clouds
  bag:PATH+BOXES.json         with ground-truth flow inside tracked boxes
  av2:FOLDER                  one Argoverse 2 Sensor log, or a folder of logs
  osf:FOLDER                  scenes of OpenSceneFlow, *.h5

A bare path is recognised by its content. Options follow a question mark: bag:PATH?topic=/lidar/points&deskew=true.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from zeroflow_ros.errors import DataError

if TYPE_CHECKING:
    from training.datasets.pairs import PairDataset

# Scheme -> its module, with open_pairs(text) -> PairDataset and recognises(text) -> bool for what follows the colon.
_SCHEMES = {
    'simulation': 'training.datasets.simulated_pairs',
    'bag': 'training.datasets.rosbag',
    'av2': 'training.datasets.argoverse2',
    'osf': 'training.datasets.opensceneflow',
}
_TRUTH = {'true': True, 'false': False}


def open_dataset(spec: str) -> 'PairDataset':
    """Return the dataset that a line of text names; see the docstring of this module.

    Raises: DataError for an unknown scheme or path, which lists the known ones, and when the dataset has no pair.
    """
    scheme, colon, text = str(spec).partition(':')
    if colon and scheme in _SCHEMES:
        return import_module(_SCHEMES[scheme]).open_pairs(text)
    for name in _SCHEMES.values():
        module = import_module(name)
        if module.recognises(str(spec)):
            return module.open_pairs(str(spec))
    raise DataError(
        f'{spec!r} is not a dataset: expected one of {", ".join(f"{name}:..." for name in _SCHEMES)}, or the path of a '
        'rosbag, of Argoverse 2 logs or of *.h5 scenes. Examples: simulation:0-9, bag:PATH, bag:PATH+BOXES.json, '
        'av2:FOLDER, osf:FOLDER.'
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
