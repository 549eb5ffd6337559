# SPDX-License-Identifier: Apache-2.0
"""Import and export pseudo-labels in ZeroFlow's layout: <folder>/<log_id>/{index:010d}_{minibatch:03d}.npz

usage: python3 -m training.zeroflow_labels import FOLDER av2:LOGS --out out/labels/zeroflow
       python3 -m training.zeroflow_labels export out/labels/nsfp av2:LOGS --out train_nsfp_flow

A file holds the flow of the older sweep of a pair: `flow` (1, K, 3) float32 [m], residual, in ego0; `valid_idxes` (K,),
row numbers in the padded cloud without ground; `delta_time`, the teacher's run time in seconds (not the time between
the sweeps). The files of a log match its sweep pairs by their order, not by the number in the name. The dataset must
remove ground as ZeroFlow does (for Argoverse 2: with the ground-height map), because indices are compared exactly.

Source: ZeroFlow's models/nsfp.py, dataloaders/argoverse_unsupervised_flow.py and pointclouds/pointcloud.py.
"""

import argparse
import os
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from training.datasets.pairs import DatasetPair
from training.labels.label_store import LabelStore
from training.teachers.pseudo_label import PseudoLabel
from training.teachers.teacher_input import Crop, teacher_input
from zeroflow_ros.errors import DataError, ZeroFlowError

REGION = Crop(51.2, -3.0, 3.0)  # here in the vehicle frame, not shifted to the ground
MAX_POINTS = 90_000  # Argoverse 2; ZeroFlow used 120,000 for its test split and 150,000 for Waymo


def padded_rows(is_ground: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """Return the sweep row of each entry of ZeroFlow's padded cloud without ground, (P <= max_points,) int.

    is_ground: (N,) bool. Entries from P on are padding. A cloud with more than max_points points is shuffled with its
    length as the seed, then truncated.
    """
    rows = np.flatnonzero(~is_ground)
    if len(rows) > max_points:
        np.random.RandomState(len(rows)).shuffle(rows)  # the generator of the published files
    return rows[:max_points]


def labelled_places(item: DatasetPair, max_points: int = MAX_POINTS) -> np.ndarray:
    """Return the entries of a pair's padded older cloud that ZeroFlow labels: `valid_idxes`."""
    return np.flatnonzero(REGION.contains(item.pair.points0[padded_rows(item.is_ground0, max_points)]))


def read_flow(path: Path, item: DatasetPair, max_points: int = MAX_POINTS) -> np.ndarray:
    """Return the flow of a pair's older sweep from a ZeroFlow file, (N, 3) float32 [m], NaN where not labelled.

    Raises: DataError when the file is missing or damaged, or does not match the points of the pair.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            flow, found = arrays['flow'], arrays['valid_idxes']
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f'{path} is not a ZeroFlow label with flow and valid_idxes: {error}') from error
    if flow.shape != (1, *found.shape, 3) or found.ndim != 1 or not np.isfinite(flow).all():
        raise DataError(
            f'{path} should have finite flow (1, K, 3) for valid_idxes (K,), has {flow.shape}, {found.shape}.'
        )
    expected = labelled_places(item, max_points)
    if not np.array_equal(found, expected):
        last = int(found.max()) if len(found) else -1
        raise DataError(
            f'{path} labels {len(found)} entries of the padded cloud without ground, the last {last}; {item.key} has '
            f'{len(expected)} points without ground in the region, the last at {max(expected, default=-1)}. Either the '
            'file belongs to another pair, or the dataset removes ground in another way than ZeroFlow did.'
        )
    full = np.full((len(item.is_ground0), 3), np.nan, np.float32)
    full[padded_rows(item.is_ground0, max_points)[found]] = flow[0]
    return full


def write_flow(path: Path, flow0: np.ndarray, item: DatasetPair, *, seconds: float = np.nan,
               max_points: int = MAX_POINTS) -> None:  # fmt: skip
    """Write the flow of a pair's older sweep (N, 3) [m] as ZeroFlow does, atomically.

    seconds: run time of the teacher, if known.
    Raises: DataError when a point that ZeroFlow labels has no flow.
    """
    places = labelled_places(item, max_points)
    flow = flow0[padded_rows(item.is_ground0, max_points)[places]].astype(np.float32)
    num_unknown = int(np.isnan(flow).any(axis=1).sum())
    if num_unknown:
        raise DataError(
            f'{item.key}: ZeroFlow labels {len(flow)} points, and {num_unknown} of them have no flow. Label with '
            '--z-range -4 4: ZeroFlow measures height from the rear axle, not from the ground.'
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.npz')
    try:
        np.savez(temporary, flow=flow[None], valid_idxes=places, delta_time=np.float64(seconds))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def zeroflow_label(path: Path, item: DatasetPair, max_points: int = MAX_POINTS) -> PseudoLabel:
    """Convert a ZeroFlow file to our pseudo-label; flow of the newer sweep is NaN except on its ground.

    Raises: DataError as read_flow does.
    """
    seen = teacher_input(item, REGION)
    flow0 = read_flow(path, item, max_points)
    flow1 = np.full(seen.points1.shape, np.nan, np.float32)
    for flow, is_ground in ((flow0, seen.is_ground0), (flow1, seen.is_ground1)):
        flow[is_ground] = 0.0
    return PseudoLabel(
        item.key, seen.points0, seen.points1, flow0, flow1, seen.is_ground0, seen.is_ground1, seen.dt, seen.input_sha256
    )


def import_folder(folder: Path, dataset, out: Path, about_dataset: str) -> tuple[int, int]:
    """Import a folder of ZeroFlow files into a store; return the numbers of labels and of pairs.

    Pairs after a log's last file get no label, as in ZeroFlow.
    Raises: DataError when a file does not match its pair, or no log has files.
    """
    from dataclasses import asdict

    from training.provenance import provenance

    about = {'teacher': 'zeroflow files', 'config': {}, 'crop': asdict(REGION), 'datasets': [about_dataset]}
    store = LabelStore.create(out, about, provenance())
    num_labels = 0
    for log, indices in _by_log(dataset).items():
        for path, index in zip(sorted((Path(folder) / log).glob('*.npz')), indices, strict=False):
            if not store.is_intact(dataset.key(index)):
                store.write(zeroflow_label(path, dataset[index]))
            num_labels += 1
    if not num_labels:
        raise DataError(f'{folder} has no <log_id>/*.npz for the logs {", ".join(list(_by_log(dataset))[:3])} ...')
    return num_labels, len(dataset)


def export_store(store: LabelStore, dataset, out: Path) -> tuple[int, int]:
    """Export the labels of a store to a folder of ZeroFlow files; return the numbers of labels and of pairs.

    Raises: DataError when a pair before a labelled one has no label, because files match pairs by order only.
    """
    num_labels = 0
    for log, indices in _by_log(dataset).items():
        has_label = [store.is_intact(dataset.key(index)) for index in indices]
        if sorted(has_label, reverse=True) != has_label:
            missing = dataset.key(indices[has_label.index(False)])
            raise DataError(f'{missing} has no intact label, but later pairs of {log} do. Label it first.')
        for place, index in enumerate(indices[: sum(has_label)]):
            write_flow(Path(out) / log / f'{place:010d}_000.npz', store.read(dataset.key(index)).flow0, dataset[index])
            num_labels += 1
    return num_labels, len(dataset)


def _by_log(dataset) -> dict[str, list[int]]:
    """Return the pairs of each log in order. Keys are <log_id>/<pair>, as in our Argoverse 2 datasets."""
    logs = defaultdict(list)
    for index in range(len(dataset)):
        logs[dataset.key(index).rpartition('/')[0].rpartition('/')[2]].append(index)
    return logs


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.zeroflow_labels', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('action', choices=('import', 'export'), help='direction of the conversion')
    parser.add_argument('source', type=Path, help='import: folder of ZeroFlow files; export: label store')
    parser.add_argument('dataset', metavar='DATASET_SPEC', help='dataset of the labelled sweeps')
    parser.add_argument(
        '--out', type=Path, required=True, help='import: label store; export: folder for ZeroFlow files'
    )
    options = parser.parse_args(arguments)
    try:
        from training.datasets import open_dataset

        dataset = open_dataset(options.dataset)
        if options.action == 'import':
            num_labels, num_pairs = import_folder(options.source, dataset, options.out, options.dataset)
        else:
            num_labels, num_pairs = export_store(LabelStore(options.source), dataset, options.out)
    except (ZeroFlowError, OSError) as error:
        print(f'training.zeroflow_labels: {error}', file=sys.stderr)
        return 1
    print(f'{options.out}: {num_labels} labels of {num_pairs} pairs')
    return 0


if __name__ == '__main__':
    sys.exit(main())
