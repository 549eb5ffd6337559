# SPDX-License-Identifier: Apache-2.0
"""Simulate a LiDAR clip of a street with ground-truth flow, with a stereo camera on request, as a rosbag2 directory.

Example:
  python3 -m training.simulate --seed 1 --sweeps 50 --sensor hdl64 --out out/street_1
  python3 -m training.simulate --seed 7 --sweeps 20 --out out/street_7 --picture out/street_7.png
  python3 -m training.simulate --seed 1 --sweeps 20 --sensor hdl64 --camera kitti --out out/street_1
  python3 -m training.simulate --fill 'stereo_simulation:0-999@out/drives?camera=kitti_half'

The bag holds /lidar/points, /odometry and /tf; ground_truth.npz beside its messages holds flow, category and instance
of every point (read it with training.simulation.clips.read_ground_truth). --camera adds /stereo/{left,right}/
image_rect_color/compressed, camera_info and /tf_static; a frame of 1242 x 375 takes some seconds. --fill simulates
the stereo pairs that a folder lacks, and goes on after an interruption.
"""

import argparse
import sys
from pathlib import Path

from zeroflow_ros.errors import DataError, ZeroFlowError


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        prog='training.simulate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seed', type=int, help='random seed; the same seed gives the same clip')
    parser.add_argument('--sweeps', type=int, default=50, help='number of sweeps (default: 50)')
    parser.add_argument('--sensor', help='a LiDAR model such as hdl64, dual32 or os128 (default: chosen by the seed)')
    parser.add_argument('--camera', help='also a stereo camera: kitti (1242 x 375), kitti_half or kitti_quarter')
    parser.add_argument('--out', type=Path, help='directory of the bag; must not exist')
    parser.add_argument(
        '--picture',
        type=Path,
        help="also write a bird's-eye picture of the first sweep with point speeds (PNG); with --camera also"
        ' NAME_stereo.png: left image, depth, optical flow and motion of the first frame',
    )
    parser.add_argument('--fill', metavar='PAIRS', help='instead of a bag: a dataset stereo_simulation:SEEDS@FOLDER')
    options = parser.parse_args(arguments)
    if options.fill:
        return fill(options.fill)
    if options.seed is None or options.out is None:
        parser.error('--seed and --out are needed, or --fill')

    from tqdm import tqdm

    from training.simulation.cameras.stereo_rig import image_size
    from training.simulation.clips import clip_stereo, simulate_clip, write_bag  # here: --help must not wait for it

    try:
        if options.camera:
            image_size(options.camera)  # refuses an unknown one before minutes of work
        clip = simulate_clip(options.seed, lidar=options.sensor, num_sweeps=options.sweeps)
        stereo = clip_stereo(clip, options.camera) if options.camera else None
        hidden = None if options.camera else True  # without images the bag is written in a moment
        write_bag(clip, options.out, stereo, lambda steps: tqdm(steps, desc='frames', disable=hidden))
    except ZeroFlowError as error:
        print(f'simulate: {error}', file=sys.stderr)
        return 1
    if options.picture:
        plot_sweep(clip, options.picture)
        if stereo is not None and len(stereo) > 1:
            plot_stereo(stereo, options.picture.with_stem(f'{options.picture.stem}_stereo'))
    num_points = sum(len(sweep.points) for sweep in clip.sweeps) // len(clip.sweeps)
    print(f'{options.out}: {len(clip.sweeps)} sweeps of {num_points} points, {clip.street}, {clip.lidar.name}')
    return 0


def fill(spec: str) -> int:
    """Simulate the drives that the folder of a stereo dataset lacks; return the exit status."""
    from tqdm import tqdm

    from training.datasets import STEREO, open_dataset

    try:
        dataset = open_dataset(spec, (STEREO,))
        if getattr(dataset, 'folder', None) is None:
            raise DataError(f'{spec} has no folder to fill: expected stereo_simulation:FIRST-LAST@FOLDER.')
        missing = [index for index in range(len(dataset)) if not dataset.path(index).is_file()]
        for index in tqdm(missing, desc='drives', disable=not missing):
            dataset.ensure(index)
    except ZeroFlowError as error:
        print(f'simulate: {error}', file=sys.stderr)
        return 1
    print(f'{dataset.folder}: {len(dataset)} drives, {len(missing)} of them new')
    return 0


def plot_sweep(clip, path: Path) -> None:
    """Draw the first sweep of a SimulatedClip from above, coloured by ground-truth speed."""
    import numpy as np

    from zeroflow_ros.views import bev_plot

    points = clip.sweeps[0].points
    velocity = np.full(points.shape, np.nan)
    if len(clip.sweeps) > 1:
        velocity = clip.flow(0, 1) * clip.lidar.rate_hz
    path.parent.mkdir(parents=True, exist_ok=True)
    bev_plot.plot_sweep(points, velocity, path, title=f'Simulation: {clip.street}, {clip.lidar.name}, seed {clip.seed}')


def plot_stereo(drive, path: Path) -> None:
    """Draw left image, depth, optical flow and motion of the first frame of a StereoDrive, from its exact truth."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from training.scoring.stereo_picture import flow_colors
    from training.simulation.cameras.pixel_motion import NO_BODY
    from zeroflow_ros.views.camera_plot import depth_colors, motion_colors

    frame, camera = drive.frame(0), drive.rig.camera
    motion, velocity = drive.motion(frame, 1), drive.velocity(frame, 1)
    longest = float(np.nanpercentile(np.linalg.norm(motion.flow, axis=2), 98)) if np.isfinite(motion.flow).any() else 1
    fastest = float(np.nanmax(np.linalg.norm(velocity, axis=2), initial=2))
    panels = {
        'left image': frame.left,
        'depth': depth_colors(camera.depth(frame.disparity)),
        f'optical flow, colours full at {longest:.0f} px': flow_colors(motion.flow, max(longest, 1)),
        f'motion without that of the camera, to {fastest:.1f} m/s': motion_colors(
            frame.left, np.where((frame.body != NO_BODY)[..., None], velocity, 0), motion.is_moving, 0.5, fastest
        ),
    }
    width, height = 8.6, 8.6 * camera.height / camera.width + 0.28
    figure = Figure(figsize=(2 * width, 2 * height), dpi=72, facecolor='#0b0f17')
    FigureCanvasAgg(figure)
    for k, (title, image) in enumerate(panels.items()):
        axes = figure.add_axes((k % 2 / 2, 0.5 - k // 2 / 2, 0.4985, (height - 0.28) / height / 2))
        axes.imshow(image, interpolation='antialiased', aspect='auto')
        axes.set_axis_off()
        axes.set_title(title, color='#e8edf5', fontsize=13, pad=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor='#0b0f17')


if __name__ == '__main__':
    sys.exit(main())
