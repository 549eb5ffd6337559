# SPDX-License-Identifier: Apache-2.0
"""Pictures of what one camera shows: depth, optical flow, motion in 3-D, and the scene from above."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.scoring.stereo_metrics import moved_points
from training.scoring.stereo_picture import DEPTHS, flow_colors, log_colors
from zeroflow_ros import transforms
from zeroflow_ros.camera.camera_motion import CameraMotionConfig, estimate_camera_motion
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow
from zeroflow_ros.errors import EgoMotionError

_BACKGROUND, _TEXT, _FAINT = '#0b0f17', '#e8edf5', '#2a3446'
_WIDTH, _HEADER, _DPI = 7.0, 0.3, 80  # inches: of a panel, of the line above it
_SIDE, _AHEAD = 16.0, 50.0  # m: half of the width of the view from above, and its length
_POINTS = 20_000  # points in the view from above
_ARROW_PIXELS = 24  # one arrow per square of this side [px]
_LEAST_SCALE = 0.05  # m: length of a motion that has full colour at least
_HIGH = 1.5  # m above the camera: what is higher hides the street from above
_NETWORK_FLOW_SIGMA = 2.0  # px


class Motion3d(NamedTuple):
    """Points of the pixels and how far they move until the next image, in the optical frame of the first.

    points, motion: (H, W, 3) [m], NaN where not measured. camera_moved: distance that the camera moved [m], which the
    motion does not contain; None: not found, the motion contains it. share: of the pixels that agree with it.
    """

    points: np.ndarray
    motion: np.ndarray
    camera_moved: float | None
    share: float


def motion_3d(camera: StereoCamera, found: StereoFlow) -> Motion3d:
    """Return the motion of the pixels of a scene flow, without that of the camera where most pixels agree on one."""
    points, moved = camera.points(found.disparity), moved_points(camera, found.flow, found.other_disparity)
    distance, share = None, 0.0
    try:
        ego = estimate_camera_motion(
            camera, found.disparity, found.flow, found.is_measured, other_disparity=found.other_disparity,
            config=CameraMotionConfig(flow_sigma=_NETWORK_FLOW_SIGMA, disparity_sigma=_NETWORK_FLOW_SIGMA),
        )  # fmt: skip
    except EgoMotionError:
        pass
    else:
        back = transforms.invert(ego.other_T_reference)
        moved = transforms.apply(back, moved.reshape(-1, 3)).reshape(moved.shape)
        distance, share = float(np.linalg.norm(ego.other_T_reference[:3, 3])), ego.share
    rows = found.is_measured[..., None]
    nan = np.float32(np.nan)
    return Motion3d(np.where(rows, points, nan), np.where(rows, moved - points, nan), distance, share)


def draw_mono(image: np.ndarray, estimates: dict[str, StereoFlow], camera: StereoCamera, path: Path, *, title: str,
              interval: float | None = None) -> None:  # fmt: skip
    """Write a picture of an image and of what estimators make of it, one block each.

    image: (H, W, 3) or (H, W) uint8. estimates: by name. interval: seconds until the next image; None: not known.
    A block has the image, depth, optical flow, the motion in 3-D (hue: its direction from above; saturation: its
    length), and the view from above with arrows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratio = camera.height / camera.width
    panel = _WIDTH * ratio
    block = 2 * (panel + _HEADER)
    above = block - _HEADER  # inches: height of the view from above
    across = above * 2 * _SIDE / _AHEAD
    width, height = 2 * _WIDTH + across, len(estimates) * block + _HEADER
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)

    def axes(left: float, bottom: float, wide: float, high: float, label: str):
        made = figure.add_axes((left / width, bottom / height, 0.995 * wide / width, high / height))
        made.set_axis_off()
        figure.text((left + 0.06) / width, (bottom + high + 0.5 * _HEADER) / height, label, color=_TEXT, fontsize=11,
                    va='center')  # fmt: skip
        return made

    for number, (name, found) in enumerate(estimates.items()):
        motion = motion_3d(camera, found)
        longest, scale = _extent(found.flow), max(_LEAST_SCALE, _extent(motion.motion[..., ::2]))
        bottom = height - _HEADER - (number + 1) * block
        upper, lower = bottom + panel + _HEADER, bottom
        depth = log_colors(camera.depth(found.disparity), 'turbo_r', DEPTHS)
        colors = flow_colors(motion.motion[..., ::2] * [1, -1], scale)
        panels = [
            (0, upper, image if image.ndim == 3 else np.repeat(image[..., None], 3, -1), name),
            (_WIDTH, upper, depth, f'depth, {DEPTHS[0]:g} m (red) to {DEPTHS[1]:g} m (blue)'),
            (0, lower, flow_colors(found.flow, longest), f'optical flow, full colour at {longest:.1f} px'),
            (_WIDTH, lower, colors, _said(motion, scale, interval)),
        ]
        for left, low, pixels, label in panels:
            axes(left, low, _WIDTH, panel, label).imshow(pixels, interpolation='nearest', aspect='auto')
        _draw_from_above(axes(2 * _WIDTH, bottom, across, above, f'from above, {_AHEAD:g} m'), motion, colors, scale)
    hues = 'motion: red to the right, violet ahead, cyan to the left, green towards the camera; dark: not known'
    figure.text(0.06 / width, 1 - 0.5 * _HEADER / height, f'{title}    {hues}', color=_TEXT, fontsize=11, va='center')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=_BACKGROUND)


def _said(motion: Motion3d, scale: float, interval: float | None) -> str:
    speed = '' if interval is None else f' ({scale / interval:.1f} m/s)'
    whose = 'with that of the camera: too few pixels agree on one'
    if motion.camera_moved is not None:
        whose = f'without {motion.camera_moved:.2f} m of the camera ({motion.share:.0%} agree)'
    return f'motion, full colour at {scale:.2f} m{speed}, {whose}'


def _draw_from_above(axes, motion: Motion3d, colors: np.ndarray, scale: float) -> None:
    """Draw points and arrows into axes; right is x, up is z [m]."""
    x, y, z = np.moveaxis(motion.points, -1, 0)
    with np.errstate(invalid='ignore'):
        shown = (np.abs(x) < _SIDE) & (z < _AHEAD) & (y > -_HIGH)
    rows, columns = np.nonzero(shown)
    step = max(1, len(rows) // _POINTS)
    chosen = rows[::step], columns[::step]
    axes.set_xlim(-_SIDE, _SIDE)
    axes.set_ylim(0, _AHEAD)
    for distance in range(10, int(_AHEAD), 10):
        axes.axhline(distance, color=_FAINT, linewidth=0.5)
    # White is no motion: on the dark background, such points are grey.
    shades = np.where(np.ptp(colors[chosen], axis=-1, keepdims=True) < 0.15, 0.5, colors[chosen])
    axes.scatter(x[chosen], z[chosen], s=1.5, c=shades, linewidths=0)
    grid = np.zeros_like(shown)
    grid[_ARROW_PIXELS // 2 :: _ARROW_PIXELS, _ARROW_PIXELS // 2 :: _ARROW_PIXELS] = True
    length = np.linalg.norm(np.nan_to_num(motion.motion), axis=-1)
    moves = np.nonzero(shown & grid & (length > 0.3 * scale))
    if len(moves[0]):
        u, w = motion.motion[moves][:, 0], motion.motion[moves][:, 2]
        axes.quiver(x[moves], z[moves], u, w, color=_TEXT, angles='xy', scale_units='xy', scale=scale / 2, width=0.003)


def _extent(vectors: np.ndarray) -> float:
    """Return the length (a number above 0) that 3 % of the vectors (H, W, 2) exceed."""
    lengths = np.linalg.norm(vectors, axis=-1)
    lengths = lengths[np.isfinite(lengths)]
    return max(1e-3, float(np.percentile(lengths, 97))) if len(lengths) else 1.0
