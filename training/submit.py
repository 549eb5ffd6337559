# SPDX-License-Identifier: Apache-2.0
"""Write a submission to an Argoverse 2 scene flow board, or to that of KITTI scene flow.

usage: python3 -m training.submit model.onnx av2:TEST_LOGS --board v1 --masks test-masks.zip --out submission.zip
       python3 -m training.submit labels:out/labels/nsfp av2:TEST_LOGS --board v2 --out submission.zip
       python3 -m training.submit runs/lite/last.pt osf:SCENES --board v3 --only pairs.txt --out submission.zip
       python3 -m training.submit classical kitti_scene_flow:KITTI/testing --board kitti_scene_flow --out kitti.zip
       python3 -m training.submit mono.onnx kitti_scene_flow:KITTI/testing --board kitti_scene_flow --out kitti.zip

Estimators are those of training.evaluate. The archive is checked file by file before it is moved into place. For v1,
use the official masks: masks of your own can differ by a point.
"""

import argparse
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets.pairs import PairDataset
from training.datasets.stereo_pairs import StereoPairDataset
from training.scoring.boards import (
    BOARDS,
    METADATA,
    check_archive,
    encode,
    read_mask,
    submission_columns,
    submission_entries,
)
from training.scoring.estimators import Estimator, build_estimator
from training.scoring.stereo_board import (
    NUM_SCENES,
    STEREO_BOARD,
    check_stereo_archive,
    share_without_value,
    submission_files,
    submitted_pairs,
)
from training.scoring.stereo_estimators import build_stereo_estimator, estimate_pair
from zeroflow_ros.camera.stereo import StereoEstimator
from zeroflow_ros.errors import ZeroFlowError


def submit(estimator: Estimator, dataset: PairDataset, board: str, out: Path, *, masks: Path | None = None,
           only: tuple[str, ...] = (), supervised: bool = False) -> dict[str, float]:  # fmt: skip
    """Write the archive, check it, and move it into place; an existing archive is replaced.

    See `submission_entries` for masks and only. supervised: whether the method learned from human labels (v2).
    Returns the number of files and rows, and the share of rows without flow, which count as static.
    Raises: ZeroFlowError when the estimator, dataset or masks cannot be used; `out` is then left unchanged.
    """
    entries, num_rows, without = submission_entries(board, dataset, masks=masks, only=only), {}, 0
    about = {'Is Supervised?': supervised} if board == 'v2' else None
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.name}.partial')
    try:
        with zipfile.ZipFile(part, 'w') as archive:
            if about is not None:
                archive.writestr(METADATA, json.dumps(about, indent=4))
            for entry in tqdm(entries, f'{estimator.name}, {dataset.name}', unit='pair', disable=None):
                item = dataset[entry.index]
                mask = read_mask(masks, entry) if board == 'v1' else None
                flow = estimator.flow(item)
                archive.writestr(entry.name, encode(submission_columns(board, item, flow, mask)))
                lacking = ~np.isfinite(flow).all(1)
                rows = lacking if mask is None else lacking[mask]
                without, num_rows[entry.name] = without + int(rows.sum()), len(rows)
        check_archive(part, board, num_rows, about)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    total = sum(num_rows.values())
    return {'files': len(entries), 'rows': total, 'without_flow': without / max(total, 1)}


def submit_stereo(estimator: StereoEstimator, dataset: StereoPairDataset, out: Path,
                  num_scenes: int = NUM_SCENES) -> dict[str, float]:  # fmt: skip
    """Write the archive for the KITTI scene flow board, check it, and move it into place.

    num_scenes: of the board. Returns the number of files, and the share of pixels without a value, which the board
    fills from their neighbours.
    Raises: ZeroFlowError when the estimator or dataset cannot be used; `out` is then left unchanged.
    """
    pairs, sizes, without = submitted_pairs(dataset, num_scenes), {}, []
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.name}.partial')
    try:
        with zipfile.ZipFile(part, 'w') as archive:
            for key, index in tqdm(pairs.items(), f'{estimator.name}, {dataset.name}', unit='pair', disable=None):
                item = dataset[index]
                found = estimate_pair(estimator, item)
                for name, content in submission_files(item, found).items():
                    archive.writestr(name, content)
                sizes[key] = item.reference.left.shape[:2]
                without.append(share_without_value(found))
        check_stereo_archive(part, sizes, num_scenes)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return {'files': 3 * len(pairs), 'without_value': float(np.mean(without))}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.submit', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('estimator', metavar='ESTIMATOR', help='flow estimator, as for training.evaluate')
    parser.add_argument(
        'dataset', metavar='DATASET', help='av2:LOGS, osf:SCENES or kitti_scene_flow:ROOT, a whole split'
    )
    parser.add_argument('--board', choices=(*BOARDS, STEREO_BOARD), required=True, help='board to submit to')
    parser.add_argument('--masks', type=Path, help='v1: the official archive, test-masks.zip or val-masks.zip')
    parser.add_argument(
        '--only', type=Path, help='v3: text file with the pairs to submit, one <scene>/<stamp> per line'
    )
    parser.add_argument(
        '--supervised', action='store_true', help='v2: declare that the method learned from human labels'
    )
    parser.add_argument('--out', type=Path, required=True, help='archive to write')
    options = parser.parse_args(arguments)
    for name, board in (('masks', 'v1'), ('only', 'v3'), ('supervised', 'v2')):
        if getattr(options, name) and options.board != board:
            parser.error(f'--{name} is for board {board} only')
    try:
        from training.datasets import STEREO, open_dataset

        if options.board == STEREO_BOARD:
            dataset = open_dataset(options.dataset, (STEREO,))
            found = submit_stereo(build_stereo_estimator(options.estimator), dataset, options.out)
            print(
                f'{options.out}: {found["files"]} files, checked; {found["without_value"]:.1%} of the pixels have no '
                'value and are filled by the board'
            )
            return 0
        only = tuple(options.only.read_text().split()) if options.only else ()
        found = submit(build_estimator(options.estimator), open_dataset(options.dataset), options.board, options.out,
                       masks=options.masks, only=only, supervised=options.supervised)  # fmt: skip
    except (ZeroFlowError, OSError) as error:
        print(f'training.submit: {error}', file=sys.stderr)
        return 1
    print(
        f'{options.out}: {found["files"]} files, {found["rows"]} rows, checked; {found["without_flow"]:.1%} of the '
        'rows have no flow and count as static'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
