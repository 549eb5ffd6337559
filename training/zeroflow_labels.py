# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels in the layout that ZeroFlow published: <folder>/<log_id>/{index:010d}_{minibatch:03d}.npz

usage: python3 -m training.zeroflow_labels import FOLDER av2:LOGS --out out/labels/zeroflow
       python3 -m training.zeroflow_labels export out/labels/nsfp av2:LOGS --out train_nsfp_flow

A file holds the flow of the older sweep of a pair: `flow` (1, K, 3) float32 [m], residual, in ego0; `valid_idxes` (K,),
which count rows of the padded cloud without ground; `delta_time`, the seconds that the teacher took (not the time
between the sweeps). A log's files belong to its sweep pairs by their order; the number in a name does not say which.
The dataset has to have ZeroFlow's ground (for Argoverse 2: from the ground-height map): indices are compared exactly.

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

REGION = Crop(51.2, -3.0, 3.0)  # here in the vehicle frame as it is, not shifted onto the ground
MAX_POINTS = 90_000  # Argoverse 2; ZeroFlow used 120,000 for its test split and 150,000 for Waymo


def padded_rows(is_ground: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """Return which row of a sweep is at each place of ZeroFlow's padded cloud without ground, (P <= max_points,) int.

    is_ground: (N,) bool. Past the P-th place there is padding. A cloud that does not fit is shuffled by a generator
    whose seed is its length, then cut.
    """
    rows = np.flatnonzero(~is_ground)
    if len(rows) > max_points:
        np.random.RandomState(len(rows)).shuffle(rows)  # the generator of the published files
    return rows[:max_points]


def labelled_places(item: DatasetPair, max_points: int = MAX_POINTS) -> np.ndarray:
    """Return the places of the padded cloud of a pair's older sweep that ZeroFlow labels: `valid_idxes`."""
    return np.flatnonzero(REGION.contains(item.pair.points0[padded_rows(item.is_ground0, max_points)]))


def read_flow(path: Path, item: DatasetPair, max_points: int = MAX_POINTS) -> np.ndarray:
    """Return the flow of a pair's older sweep from a ZeroFlow file, (N, 3) float32 [m], NaN where it says nothing.

    Raises: DataError when the file is missing or damaged, or its points are not those of the pair.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            flow, found = arrays['flow'], arrays['valid_idxes']
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f'{path} is no ZeroFlow label with flow and valid_idxes: {error}') from error
    if flow.shape != (1, *found.shape, 3) or found.ndim != 1 or not np.isfinite(flow).all():
        raise DataError(
            f'{path} should have finite flow (1, K, 3) for valid_idxes (K,), has {flow.shape}, {found.shape}.'
        )
    expected = labelled_places(item, max_points)
    if not np.array_equal(found, expected):
        last = int(found.max()) if len(found) else -1
        raise DataError(
            f'{path} labels {len(found)} places of the padded cloud without ground, the last {last}; {item.key} has '
            f'{len(expected)} points without ground in the region, the last at {max(expected, default=-1)}. Either the '
            'file belongs to another pair, or the dataset removes ground otherwise than ZeroFlow did.'
        )
    full = np.full((len(item.is_ground0), 3), np.nan, np.float32)
    full[padded_rows(item.is_ground0, max_points)[found]] = flow[0]
    return full


def write_flow(path: Path, flow0: np.ndarray, item: DatasetPair, *, seconds: float = np.nan,
               max_points: int = MAX_POINTS) -> None:  # fmt: skip
    """Write the flow of a pair's older sweep (N, 3) [m] as ZeroFlow does, by way of a temporary file.

    seconds: that the teacher took, if known.
    Raises: DataError when the flow of a point that ZeroFlow labels is not known.
    """
    places = labelled_places(item, max_points)
    flow = flow0[padded_rows(item.is_ground0, max_points)[places]].astype(np.float32)
    num_unknown = int(np.isnan(flow).any(axis=1).sum())
    if num_unknown:
        raise DataError(
            f'{item.key}: ZeroFlow wants flow for {len(flow)} points, and {num_unknown} of them have none. Label with '
            '--z-range -4 4: ZeroFlow measures height from the rear axle and not from the ground.'
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
    """Return a ZeroFlow file as a pseudo-label of ours, with no flow known for the newer sweep but that of its ground.

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
    """Fill a store from a folder of ZeroFlow's; return how many labels are in it, and of how many pairs.

    Pairs of a log past its last file stay without a label, as in ZeroFlow.
    Raises: DataError when a file does not fit its pair, or no log has files.
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
    """Write the labels of a store into a folder as ZeroFlow's; return how many, and of how many pairs.

    Raises: DataError when a pair before a labelled one has no label, because the order of files is all that counts.
    """
    num_labels = 0
    for log, indices in _by_log(dataset).items():
        has_label = [store.is_intact(dataset.key(index)) for index in indices]
        if sorted(has_label, reverse=True) != has_label:
            missing = dataset.key(indices[has_label.index(False)])
            raise DataError(f'{missing} has no intact label but later pairs of {log} have. Label it first.')
        for place, index in enumerate(indices[: sum(has_label)]):
            write_flow(Path(out) / log / f'{place:010d}_000.npz', store.read(dataset.key(index)).flow0, dataset[index])
            num_labels += 1
    return num_labels, len(dataset)


def _by_log(dataset) -> dict[str, list[int]]:
    """Return the pairs of each log in their order; a key is <log_id>/<pair>, as our Argoverse 2 datasets have it."""
    logs = defaultdict(list)
    for index in range(len(dataset)):
        logs[dataset.key(index).rpartition('/')[0].rpartition('/')[2]].append(index)
    return logs


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.zeroflow_labels', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('action', choices=('import', 'export'))
    parser.add_argument('source', type=Path, help="import: a folder of ZeroFlow's; export: a label store")
    parser.add_argument('dataset', metavar='DATASET_SPEC', help='the sweeps that the labels belong to')
    parser.add_argument('--out', type=Path, required=True, help="import: a label store; export: a folder of ZeroFlow's")
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
