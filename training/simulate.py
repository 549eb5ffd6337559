# SPDX-License-Identifier: Apache-2.0
"""Simulate a LiDAR clip of a street with ground-truth flow, with a stereo camera on request, as a rosbag2 directory.

Example:
  python3 -m training.simulate --seed 1 --sweeps 50 --sensor hdl64 --out out/street_1
  python3 -m training.simulate --seed 7 --sweeps 20 --out out/street_7 --picture out/street_7.png
  python3 -m training.simulate --seed 1 --sweeps 20 --sensor hdl64 --camera kitti --out out/street_1

The bag holds /lidar/points, /odometry and /tf; ground_truth.npz beside its messages holds flow, category and instance
of every point (read it with training.simulation.clips.read_ground_truth). --camera adds /stereo/{left,right}/
image_rect_color/compressed, camera_info and /tf_static; a frame of 1242 x 375 takes some seconds.
"""

import argparse
import sys
from pathlib import Path

from zeroflow_ros.errors import ZeroFlowError


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        prog='training.simulate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seed', type=int, required=True, help='random seed; the same seed gives the same clip')
    parser.add_argument('--sweeps', type=int, default=50, help='number of sweeps (default: 50)')
    parser.add_argument('--sensor', help='a LiDAR model such as hdl64, dual32 or os128 (default: chosen by the seed)')
    parser.add_argument('--camera', help='also a stereo camera: kitti (1242 x 375), kitti_half or kitti_quarter')
    parser.add_argument('--out', type=Path, required=True, help='directory of the bag; must not exist')
    parser.add_argument(
        '--picture', type=Path, help="also write a bird's-eye picture of the first sweep with point speeds (PNG)"
    )
    options = parser.parse_args(arguments)

    from tqdm import tqdm

    from training.simulation.clips import clip_stereo, simulate_clip, write_bag  # here: --help must not wait for it

    try:
        clip = simulate_clip(options.seed, lidar=options.sensor, num_sweeps=options.sweeps)
        stereo = clip_stereo(clip, options.camera) if options.camera else None
        hidden = None if options.camera else True  # without images the bag is written in a moment
        write_bag(clip, options.out, stereo, lambda steps: tqdm(steps, desc='frames', disable=hidden))
    except ZeroFlowError as error:
        print(f'simulate: {error}', file=sys.stderr)
        return 1
    if options.picture:
        plot_sweep(clip, options.picture)
    num_points = sum(len(sweep.points) for sweep in clip.sweeps) // len(clip.sweeps)
    print(f'{options.out}: {len(clip.sweeps)} sweeps of {num_points} points, {clip.street}, {clip.lidar.name}')
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


if __name__ == '__main__':
    sys.exit(main())
