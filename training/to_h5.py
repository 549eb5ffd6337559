# SPDX-License-Identifier: Apache-2.0
"""Convert any dataset to scenes for OpenSceneFlow's tools; our programs read them as osf:FOLDER.

usage: python3 -m training.to_h5 bag:drive.mcap av2:LOGS simulation:0-9@out/clips --out out/scenes

Consecutive pairs form one scene; a gap starts the next scene. All rows of the dataset are kept, NaN rows included.
Classes are reduced to those that the scores distinguish. Existing scenes are kept: the same command resumes after any
interruption. index_total.pkl and index_flow.pkl are for OpenSceneFlow; our programs never read them.
"""

import argparse
import os
import pickle
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets.argoverse2_truth import CATEGORIES
from training.datasets.opensceneflow import OpenSceneFlowPairs
from training.datasets.pairs import DatasetPair, MetaClass, PairDataset, scene_and_stamp
from training.datasets.scene_file import SOURCE, SceneSweep, open_scene, stamps_of, write_sweep
from training.datasets.total_flow import residual_to_total
from zeroflow_ros.errors import DataError, ZeroFlowError

# One category per class of the scores; a test checks that it maps back to the class.
_CATEGORY = {
    MetaClass.BACKGROUND: None, MetaClass.CAR: 'REGULAR_VEHICLE', MetaClass.OTHER_VEHICLES: 'LARGE_VEHICLE',
    MetaClass.PEDESTRIAN: 'PEDESTRIAN', MetaClass.WHEELED_VRU: 'BICYCLIST', MetaClass.IGNORED: 'SIGN',
}  # fmt: skip
CATEGORY_NUMBER = np.array([1 + CATEGORIES.index(name) if name else 0 for name in _CATEGORY.values()], np.uint8)


@dataclass
class _Scene:
    """A scene that is being written. last: the newer sweep of its latest pair, which has no flow yet."""

    path: Path
    file: object
    stamp: int
    last: SceneSweep

    def follows(self, stamp: int, points: np.ndarray) -> bool:
        return stamp == self.stamp and np.array_equal(points, self.last.points, equal_nan=True)


def write_scenes(dataset: PairDataset, spec: str, out: Path) -> list[Path]:
    """Write the pairs of a dataset as scenes; return their files.

    spec: the spec of the dataset, stored in the scenes.
    Raises: DataError when a scene of the same name was made from another dataset, or the dataset cannot be read.
    """
    if isinstance(dataset, OpenSceneFlowPairs):
        raise DataError(f'{spec} already consists of scenes.')
    out.mkdir(parents=True, exist_ok=True)
    by_scene: dict[str, list[tuple[int, int]]] = {}
    for index in range(len(dataset)):
        scene, stamp = scene_and_stamp(dataset.name, dataset.key(index))
        by_scene.setdefault(scene, []).append((stamp, index))
    written = []
    with tqdm(total=len(dataset), desc=dataset.name, unit='pair', disable=None) as bar:
        for scene, members in by_scene.items():
            path = out / f'{scene}.h5'
            if not path.exists():
                written += _write_scene(dataset, path, spec, sorted(members), bar)
                continue
            _check_source(path, spec)
            bar.update(len(members))
    return written


def _check_source(path: Path, spec: str) -> None:
    with open_scene(path) as file:
        source = file.attrs.get(SOURCE, 'unknown')
    if source != spec:
        raise DataError(f'{path} exists and was made from {source!r}, not from {spec!r}. Choose another --out.')


def _write_scene(dataset: PairDataset, path: Path, spec: str, members: list[tuple[int, int]], bar) -> list[Path]:
    """Write the gap-free parts of a scene via temporary files; return the files, the first part as `path`."""
    done: list[Path] = []
    scene = None
    try:
        with ExitStack() as opened:
            for stamp, index in members:
                item = dataset[index]
                if scene is None or not scene.follows(stamp, item.pair.points0):
                    if scene is not None:
                        write_sweep(scene.file, str(scene.stamp), scene.last)
                    opened.close()
                    part = path.with_name(f'.{path.stem}{f"_{len(done):03d}" if done else ""}.h5.partial')
                    done.append(part)
                    file = opened.enter_context(open_scene(part, 'w'))
                    file.attrs[SOURCE] = spec
                    scene = _Scene(part, file, stamp, _first_sweep(item))
                write_sweep(scene.file, str(stamp), _with_flow(scene.last, item))
                scene.stamp, scene.last = stamp + round(item.pair.dt * 1e9), _next_sweep(scene.last, item)
                bar.update()
            write_sweep(scene.file, str(scene.stamp), scene.last)
        names = [part.with_name(part.name.removeprefix('.').removesuffix('.partial')) for part in done]
        for name in filter(Path.exists, names):  # left by a run that ended between two renames, or not ours
            _check_source(name, spec)
        for part, name in reversed(list(zip(done, names, strict=True))):  # first part last: it marks the scene complete
            os.replace(part, name)
    finally:
        for part in done:
            part.unlink(missing_ok=True)
    return names


def _first_sweep(item: DatasetPair) -> SceneSweep:
    times = item.times[0] if item.times else None
    return SceneSweep(item.pair.points0, item.is_ground0, np.eye(4), times)


def _next_sweep(last: SceneSweep, item: DatasetPair) -> SceneSweep:
    times = item.times[1] if item.times else None
    return SceneSweep(item.pair.points1, item.is_ground1, last.world_T_ego @ item.pair.ego0_T_ego1, times)


def _with_flow(sweep: SceneSweep, item: DatasetPair) -> SceneSweep:
    """Return the older sweep of a pair with the pair's ground truth."""
    ego1_T_ego0 = np.linalg.inv(item.pair.ego0_T_ego1)
    # Ground flags of this pair: those of the previous pair may come from another method.
    sweep = replace(sweep, is_ground=item.is_ground0, ego1_T_ego0=ego1_T_ego0)
    if item.truth is None:
        return sweep
    points, truth = item.pair.points0, item.truth
    is_valid = truth.is_valid & np.isfinite(points).all(1)
    residual = np.where(is_valid[:, None], truth.flow, 0)
    flow = residual_to_total(residual, np.where(np.isfinite(points), points, 0), item.pair.ego0_T_ego1)
    return replace(sweep, flow=flow, is_valid=is_valid, classes=CATEGORY_NUMBER[truth.meta_class])


def write_pickles(folder: Path) -> None:
    """Write OpenSceneFlow's two index files of [scene, stamp]: all sweeps, and those with flow."""
    total, with_flow = [], []
    for path in sorted(folder.glob('*.h5')):
        with open_scene(path) as file:
            for stamp in stamps_of(file):
                total.append([path.stem, stamp])
                if 'flow' in file[stamp]:
                    with_flow.append([path.stem, stamp])
    for name, content in (('index_total.pkl', total), ('index_flow.pkl', with_flow)):
        temporary = folder / f'.{name}.partial'
        temporary.write_bytes(pickle.dumps(content))
        os.replace(temporary, folder / name)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.to_h5', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('datasets', nargs='+', metavar='DATASET', help='datasets to convert')
    parser.add_argument('--out', type=Path, required=True, help='folder for the scenes')
    options = parser.parse_args(arguments)
    try:
        from training.datasets import open_dataset

        written = [path for spec in options.datasets for path in write_scenes(open_dataset(spec), spec, options.out)]
        write_pickles(options.out)
    except (ZeroFlowError, OSError) as error:
        print(f'training.to_h5: {error}', file=sys.stderr)
        return 1
    print(f'{len(written)} scenes written to {options.out}; read them as osf:{options.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
