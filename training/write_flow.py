# SPDX-License-Identifier: Apache-2.0
"""Write flow into OpenSceneFlow scenes as a named result for its tools.

usage: python3 -m training.write_flow model.onnx osf:SCENES --name lite
       python3 -m training.write_flow labels:out/labels/nsfp osf:SCENES --name nsfp --replace

Each group gets an HDF5 dataset of that name: total flow (ego motion included), (N, 3) float32 [m], like `flow`. Points
without flow count as static. Each scene is written as a copy, then moved into place. Scenes that already hold this
estimator's result are kept: the same command resumes after any interruption.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets.opensceneflow import OpenSceneFlowPairs
from training.datasets.scene_file import FORMAT_DATASETS, open_scene, stamps_of
from training.datasets.total_flow import residual_to_total
from training.scoring.estimators import Estimator, build_estimator
from zeroflow_ros.errors import ConfigError, DataError, ZeroFlowError

_ESTIMATOR = 'zeroflow_ros_estimator'  # attribute of a result: the estimator that made it


def write_flow(
    estimator: Estimator, dataset: OpenSceneFlowPairs, name: str, *, replace: bool = False
) -> tuple[int, int]:
    """Write the flow of all pairs; return the numbers of scenes written, and of scenes that already had it.

    name: name of the result. replace: overwrite all existing results of that name.
    Raises: ConfigError for an invalid or reserved name; DataError when a scene has another estimator's result of that
    name, before anything is written; ZeroFlowError when there is no flow for a pair.
    """
    if not re.fullmatch(r'[\w.-]+', name) or set(name) == {'.'} or name in FORMAT_DATASETS:
        raise ConfigError(
            f'The name of a result must consist of letters, digits, ".", "_" and "-", and not be reserved, got '
            f'{name!r}. Reserved names: {", ".join(sorted(FORMAT_DATASETS))}.'
        )
    by_scene: dict[Path, list[int]] = {}
    for index in range(len(dataset)):
        by_scene.setdefault(dataset.scene_path(index), []).append(index)
    waiting = list(by_scene)
    if not replace:
        waiting = [path for path in by_scene if not _has_result(path, dataset, by_scene[path], name, estimator.name)]
        for path in waiting:
            _check_name_free(path, name, estimator.name)
    with tqdm(total=sum(len(by_scene[path]) for path in waiting), desc=name, unit='pair', disable=None) as bar:
        for path in waiting:
            totals = {}
            for index in by_scene[path]:
                totals[_stamp(dataset, index)] = _total_flow(estimator, dataset[index])
                bar.update()
            _write(path, totals, name, estimator.name)
    return len(waiting), len(by_scene) - len(waiting)


def _stamp(dataset: OpenSceneFlowPairs, index: int) -> str:
    return dataset.key(index).rpartition('/')[2]


def _total_flow(estimator: Estimator, item) -> np.ndarray:
    points, residual = item.pair.points0, estimator.flow(item)
    residual = np.where(np.isfinite(residual).all(1)[:, None], residual, 0)
    return residual_to_total(residual, np.where(np.isfinite(points), points, 0), item.pair.ego0_T_ego1)


def _has_result(path: Path, dataset: OpenSceneFlowPairs, indices: list[int], name: str, estimator: str) -> bool:
    with open_scene(path) as file:
        groups = [file[_stamp(dataset, index)] for index in indices]
        return all(name in group and group[name].attrs.get(_ESTIMATOR) == estimator for group in groups)


def _check_name_free(path: Path, name: str, estimator: str) -> None:
    with open_scene(path) as file:
        results = (file[stamp][name] for stamp in stamps_of(file) if name in file[stamp])
        origins = {result.attrs.get(_ESTIMATOR, 'another program') for result in results}
    if origins - {estimator}:
        raise DataError(
            f'{path} already has results named {name!r} from {", ".join(sorted(origins))}. Choose another --name, or '
            'overwrite them with --replace.'
        )


def _write(path: Path, totals: dict[str, np.ndarray], name: str, estimator: str) -> None:
    """Add results to a copy of a scene and move it into place: an interrupted write would destroy the HDF5 file."""
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
    parser.add_argument('estimator', metavar='ESTIMATOR', help='flow estimator, as for training.evaluate')
    parser.add_argument('dataset', metavar='osf:SCENES', help='scenes to write into')
    parser.add_argument('--name', required=True, help='name of the result')
    parser.add_argument('--replace', action='store_true', help='overwrite existing results of this name')
    options = parser.parse_args(arguments)
    try:
        from training.datasets import open_dataset

        dataset = open_dataset(options.dataset)
        if not isinstance(dataset, OpenSceneFlowPairs):
            raise DataError(
                f'{options.dataset} does not consist of scenes. Convert it: python3 -m training.to_h5 --help'
            )
        written, kept = write_flow(build_estimator(options.estimator), dataset, options.name, replace=options.replace)
    except (ZeroFlowError, OSError) as error:
        print(f'training.write_flow: {error}', file=sys.stderr)
        return 1
    print(f'{options.name!r} written into {written} scenes of {dataset.folder}; {kept} already had it')
    return 0


if __name__ == '__main__':
    sys.exit(main())
