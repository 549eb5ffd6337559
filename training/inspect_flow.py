# SPDX-License-Identifier: Apache-2.0
"""Inspect flow: compare models, teachers, stored labels and ground truth on a drive, side by side.

usage: python3 -m training.inspect_flow simulation:1000000-1000003 --estimator embedded teacher:rigid --out pictures
       python3 -m training.inspect_flow drive.mcap --estimator embedded labels:out/labels --view-file drive.rrd
       python3 -m training.inspect_flow av2:LOG --estimator zero embedded model.onnx --view
       python3 -m training.inspect_flow kitti_scene_flow:KITTI/training --estimator classical --out pictures
       python3 -m training.inspect_flow images:FOLDER --estimator mono.onnx --focal 721.5 --out pictures
       python3 -m training.inspect_flow 'images:drive.mp4?every=3' --estimator last.pt --focal 60deg --out pictures

Estimators and datasets are those of training.evaluate; ground-truth flow, if known, comes first. --out gets one
picture per pair, with the mean error of each estimator; --view and --view-file show the drive in the Rerun viewer.
Stereo pairs are drawn as depth, optical flow, speed and scene flow error; the viewer is for sweeps. Images of one
camera, a folder or a video, are drawn as depth, optical flow, motion in 3-D and the scene from above, by models of one
camera.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets.image_sequence import SCHEME, ImageSequence, open_images
from training.datasets.pairs import DatasetPair, PairDataset, evenly_spread
from training.datasets.stereo_pairs import StereoPairDataset
from training.scoring.estimators import Estimator, build_estimator
from training.scoring.stereo_estimators import (
    NoEarlierImageError,
    build_stereo_estimator,
    estimate_pair,
    takes_one_camera,
)
from zeroflow_ros.camera.stereo import StereoEstimator
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError, ZeroFlowError

TRUTH = 'ground truth'


def compute_flows(item: DatasetPair, estimators: list[Estimator]) -> dict[str, np.ndarray]:
    """Return the flow (N, 3) [m] of the older sweep by name, ground truth first if known."""
    flows = {}
    if item.truth is not None:
        flows[TRUTH] = np.where(item.truth.is_valid[:, None], item.truth.flow, np.float32(np.nan))
    return flows | {estimator.name: estimator.flow(item) for estimator in estimators}


def flow_errors(item: DatasetPair, flows: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean end-point error [m] of each flow over non-ground points with ground truth.

    A point without flow counts as static. The result is empty without ground truth.
    """
    if item.truth is None:
        return {}
    rows = item.truth.is_valid & ~item.is_ground0
    if not rows.any():
        return {}
    return {
        name: float(np.linalg.norm(np.nan_to_num(flow[rows]) - item.truth.flow[rows], axis=1).mean())
        for name, flow in flows.items()
        if name != TRUTH
    }


def selected_pairs(dataset: PairDataset, num_pairs: int, *, in_a_row: bool) -> Iterator[DatasetPair]:
    """Yield num_pairs pairs, evenly spread or the first ones in a row; 0 means all."""
    indices = evenly_spread(len(dataset), num_pairs)
    for index in tqdm(range(len(indices)) if in_a_row else indices, unit='pair'):
        yield dataset[index]


def inspect(dataset: PairDataset, estimators: list[Estimator], *, out: Path | None, view, num_pairs: int) -> int:
    """Draw pairs into the folder `out` and show them in `view` (RerunView), if given; return the number of pairs.

    Raises: DataError when the dataset has no pairs.
    """
    from training.scoring.flow_picture import draw_flows

    if len(dataset) == 0:
        raise DataError(f'{dataset.name} has no pairs to inspect.')
    stamp_ns, world_T_ego, before, num_shown = 0, np.eye(4), None, 0
    for item in selected_pairs(dataset, num_pairs, in_a_row=view is not None):
        flows, pair = compute_flows(item, estimators), item.pair
        velocities = {name: flow / np.float32(pair.dt) for name, flow in flows.items()}
        if view is not None:
            if before is None or not np.array_equal(before.points1, pair.points0, equal_nan=True):
                view.start_over()  # another drive
                world_T_ego = np.eye(4)
            for name, velocity in velocities.items():
                view.show(stamp_ns, pair.points0, velocity, world_T_ego, world=world_name(name))
            stamp_ns, world_T_ego, before = stamp_ns + round(pair.dt * 1e9), world_T_ego @ pair.ego0_T_ego1, pair
        if out is not None:
            errors = flow_errors(item, flows)
            titles = {
                f'{name}   {errors[name]:.3f} m' if name in errors else name: velocity
                for name, velocity in velocities.items()
            }
            draw_flows(pair.points0, titles, out / f'{item.key.replace("/", "_")}.png', title=item.key)
        num_shown += 1
    return num_shown


def inspect_stereo(dataset: StereoPairDataset, estimators: list[StereoEstimator], out: Path, num_pairs: int) -> int:
    """Draw stereo pairs into the folder `out`; return their number.

    An estimator that cannot tell the ego motion of a pair, or needs an image before it that is not there, is left out
    of its picture.
    Raises: DataError when the dataset has no pairs.
    """
    from training.scoring.stereo_metrics import StereoScores
    from training.scoring.stereo_picture import draw_stereo

    indices = evenly_spread(len(dataset), num_pairs)
    if not indices:
        raise DataError(f'{dataset.name} has no pairs to inspect.')
    for index in tqdm(indices, unit='pair'):
        item, found = dataset[index], {}
        for estimator in estimators:
            try:
                estimate, name = estimate_pair(estimator, item), estimator.name
            except (EgoMotionError, NoEarlierImageError) as error:
                print(f'{estimator.name} is not drawn for {item.key}: {error}', file=sys.stderr)
                continue
            if item.truth is not None:
                scores = StereoScores()
                scores.add(item.truth, estimate, item.reference.camera)
                percent = scores.report()['outliers_percent']['occ']['SF']['all']
                name = f'{name}   {percent:.1f} % SF'
            found[name] = estimate
        draw_stereo(item, found, out / f'{item.key.replace("/", "_")}.png', title=item.key)
    return len(indices)


def inspect_images(images: ImageSequence, estimators: list, out: Path, num_images: int) -> int:
    """Draw the first images of a camera that have a flow into the folder `out`; return their number.

    The state of an estimator goes from image to image, as on the vehicle. num_images: 0 means all.
    Raises: ConfigError for estimators of another sensor.
    """
    from training.scoring.mono_picture import draw_mono

    for estimator in estimators:
        if not takes_one_camera(estimator):
            raise ConfigError(
                f'{estimator.name} takes stereo pairs, and {images.path} has the images of one camera. Give a '
                'checkpoint or a model file of a student of one camera, such as mono_lite.'
            )
    streams = {estimator.name: estimator.start(images.camera) for estimator in estimators}
    previous, num_drawn = None, 0
    for name, image in tqdm(images, unit='image'):
        found = {spec: stream.push(image) for spec, stream in streams.items()}
        flows = {spec: streams[spec].scene_flow(flow) for spec, flow in found.items() if flow is not None}
        if flows:
            number, reference = previous
            draw_mono(reference, flows, images.camera, out / f'{number}.png', title=f'{images.name}, {number}',
                      interval=images.interval)  # fmt: skip
            num_drawn += 1
            if num_drawn == num_images:
                break
        previous = name, image
    return num_drawn


def world_name(name: str) -> str:
    """Return the name of an estimator's world in Rerun: letters, digits and underscores only."""
    return ''.join(letter if letter.isalnum() else '_' for letter in name)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.inspect_flow', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('dataset', help='dataset spec or drive, as in the examples above')
    parser.add_argument(
        '--estimator', nargs='+', help='estimators to compare (default: embedded; of stereo pairs: classical)'
    )
    parser.add_argument(
        '--focal', default='', metavar='FX',
        help='of images: focal length [px], or FX,FY,CX,CY, or the horizontal field of view, as in 60deg',
    )  # fmt: skip
    parser.add_argument('--out', type=Path, help='folder for the pictures')
    parser.add_argument(
        '--pairs',
        type=int,
        default=0,
        help='largest number of pairs (default: all): evenly spread, or the first ones in a row with a viewer',
    )
    parser.add_argument('--view', action='store_true', help='open the Rerun viewer')
    parser.add_argument('--view-file', default='', help='write a recording for the Rerun viewer to this file')
    parser.add_argument('--replace', action='store_true', help='replace an existing --view-file')
    options = parser.parse_args(arguments)
    try:
        if not (options.out or options.view or options.view_file):
            raise ConfigError('Nothing to write: give --out FOLDER, --view-file FILE.rrd, or --view.')
        from training.datasets import SENSORS, STEREO, open_dataset, sensor_of

        if options.dataset.startswith(SCHEME):
            return _inspect_images(options)
        if options.focal:
            raise ConfigError(
                f'--focal is for {SCHEME}FOLDER and {SCHEME}VIDEO; {options.dataset} has its calibration.'
            )
        dataset = open_dataset(options.dataset, SENSORS)
        if sensor_of(dataset) == STEREO:
            if options.view or options.view_file:
                raise ConfigError('The viewer shows sweeps; stereo pairs are drawn with --out FOLDER.')
            specs = dict.fromkeys(options.estimator or ['classical'])
            estimators = [build_stereo_estimator(spec) for spec in specs]
            number = inspect_stereo(dataset, estimators, options.out, options.pairs)
        else:
            estimators = [build_estimator(spec) for spec in dict.fromkeys(options.estimator or ['embedded'])]
            number = _inspect_with_view(dataset, estimators, options)
    except ZeroFlowError as error:
        print(f'training.inspect_flow: {error}', file=sys.stderr)
        return 1
    places = [str(place) for place in (options.out, options.view_file) if place]
    print(f'{number} pairs in {" and ".join(places) or "the Rerun viewer"}')
    return 0


def _inspect_images(options) -> int:
    if options.view or options.view_file:
        raise ConfigError('The viewer shows sweeps; images are drawn with --out FOLDER.')
    if not options.estimator:
        raise ConfigError('Images need a model of one camera: --estimator MODEL.onnx, or a checkpoint.')
    if options.pairs < 0:
        raise ConfigError(f'--pairs should be 0 (all) or more, got {options.pairs}.')
    images = open_images(options.dataset.removeprefix(SCHEME), options.focal)
    estimators = [build_stereo_estimator(spec) for spec in dict.fromkeys(options.estimator)]
    number = inspect_images(images, estimators, options.out, options.pairs)
    print(f'{number} images in {options.out}')
    return 0


def _inspect_with_view(dataset: PairDataset, estimators: list[Estimator], options) -> int:
    if not (options.view or options.view_file):
        return inspect(dataset, estimators, out=options.out, view=None, num_pairs=options.pairs)
    from zeroflow_ros.views.rerun_view import RerunView

    has_truth = len(dataset) > 0 and dataset[0].truth is not None
    names = [TRUTH] * has_truth + [estimator.name for estimator in estimators]
    worlds = tuple(world_name(name) for name in names)
    with RerunView(options.view_file, replace=options.replace, worlds=worlds) as view:
        return inspect(dataset, estimators, out=options.out, view=view, num_pairs=options.pairs)


if __name__ == '__main__':
    sys.exit(main())
