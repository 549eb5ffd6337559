# SPDX-License-Identifier: Apache-2.0
"""Write flow into scenes of OpenSceneFlow under a name, where its tools look for results.

usage: python3 -m training.write_flow model.onnx osf:SCENES --name lite
       python3 -m training.write_flow labels:out/labels/nsfp osf:SCENES --name nsfp --replace

Each group gets a dataset of that name: total flow, ego motion included, (N, 3) float32 [m], like `flow`. A row without
flow counts as standing. A scene is written as a copy, then moved into place; scenes that have the result of this
estimator are kept, so that the same command goes on after any interruption.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets.opensceneflow import OpenScenePairs
from training.datasets.scene_file import OF_THE_FORMAT, open_scene, stamps_of
from training.datasets.total_flow import total_of
from training.scoring.estimators import Estimator, build_estimator
from zeroflow_ros.errors import ConfigError, DataError, ZeroFlowError

_ESTIMATOR = 'zeroflow_ros_estimator'  # attribute of a result


def write_flow(estimator: Estimator, dataset: OpenScenePairs, name: str, *, replace: bool = False) -> tuple[int, int]:
    """Write the flow of all pairs; return how many scenes were written, and how many had it.

    name: of the result. replace: everywhere, over any result of that name.
    Raises: ConfigError for a name that the format uses itself; DataError when a scene has another result of that name,
    before anything is written; ZeroFlowError when there is no flow for a pair.
    """
    if not re.fullmatch(r'[\w.-]+', name) or set(name) == {'.'} or name in OF_THE_FORMAT:
        raise ConfigError(
            f'A result needs a name of letters, digits, ".", "_" and "-" that the format does not use itself, got '
            f'{name!r}. Taken are: {", ".join(sorted(OF_THE_FORMAT))}.'
        )
    by_scene: dict[Path, list[int]] = {}
    for index in range(len(dataset)):
        by_scene.setdefault(dataset.scene_path(index), []).append(index)
    waiting = list(by_scene)
    if not replace:
        waiting = [path for path in by_scene if not _has_result(path, dataset, by_scene[path], name, estimator.name)]
        for path in waiting:
            _check_free(path, name, estimator.name)
    with tqdm(total=sum(len(by_scene[path]) for path in waiting), desc=name, unit='pair', disable=None) as bar:
        for path in waiting:
            totals = {}
            for index in by_scene[path]:
                totals[_stamp(dataset, index)] = _total(estimator, dataset[index])
                bar.update()
            _write(path, totals, name, estimator.name)
    return len(waiting), len(by_scene) - len(waiting)


def _stamp(dataset: OpenScenePairs, index: int) -> str:
    return dataset.key(index).rpartition('/')[2]


def _total(estimator: Estimator, item) -> np.ndarray:
    points, residual = item.pair.points0, estimator.flow(item)
    residual = np.where(np.isfinite(residual).all(1)[:, None], residual, 0)
    return total_of(residual, np.where(np.isfinite(points), points, 0), item.pair.ego0_T_ego1)


def _has_result(path: Path, dataset: OpenScenePairs, indices: list[int], name: str, estimator: str) -> bool:
    with open_scene(path) as file:
        groups = [file[_stamp(dataset, index)] for index in indices]
        return all(name in group and group[name].attrs.get(_ESTIMATOR) == estimator for group in groups)


def _check_free(path: Path, name: str, estimator: str) -> None:
    with open_scene(path) as file:
        results = (file[stamp][name] for stamp in stamps_of(file) if name in file[stamp])
        origins = {result.attrs.get(_ESTIMATOR, 'another program') for result in results}
    if origins - {estimator}:
        raise DataError(
            f'{path} has results called {name!r} already, from {", ".join(sorted(origins))}. Choose another --name, or '
            'write over them with --replace.'
        )


def _write(path: Path, totals: dict[str, np.ndarray], name: str, estimator: str) -> None:
    """Add results to a scene: to a copy, for HDF5 that is cut off in the middle is lost as a whole."""
    part = path.with_name(f'.{path.name}.partial')
    try:
        shutil.copyfile(path, part)
        with open_scene(part, 'r+') as file:
            for stamp, total in totals.items():
                if name in file[stamp]:
                    del file[stamp][name]
                file[stamp].create_dataset(name, data=total).attrs[_ESTIMATOR] = estimator
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.write_flow', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('estimator', metavar='ESTIMATOR', help='as for training.evaluate')
    parser.add_argument('dataset', metavar='osf:SCENES', help='the scenes, which are written to')
    parser.add_argument('--name', required=True, help='of the result')
    parser.add_argument('--replace', action='store_true', help='write over any results of this name')
    options = parser.parse_args(arguments)
    try:
        from training.datasets import open_dataset

        dataset = open_dataset(options.dataset)
        if not isinstance(dataset, OpenScenePairs):
            raise DataError(f'{options.dataset} is not made of scenes. Make some: python3 -m training.to_h5 --help')
        written, kept = write_flow(build_estimator(options.estimator), dataset, options.name, replace=options.replace)
    except (ZeroFlowError, OSError) as error:
        print(f'training.write_flow: {error}', file=sys.stderr)
        return 1
    print(f'{options.name!r} written into {written} scenes of {dataset.folder}; {kept} had it')
    return 0


if __name__ == '__main__':
    sys.exit(main())
