# SPDX-License-Identifier: Apache-2.0
"""A picture of a stereo frame: left image, depth, motion, view from above. Only drawing imports matplotlib."""

from pathlib import Path

import numpy as np

from zeroflow_ros.camera.output_frame import BODY_T_OPTICAL
from zeroflow_ros.camera.pixel_cloud import moving_pixels
from zeroflow_ros.transforms import apply
from zeroflow_ros.views.bev_plot import (
    BACKGROUND,
    FAINT,
    TEXT,
    draw_speed_bar,
    draw_sweep,
    speed_color_limit,
    speed_scale,
)

_WIDTH, _MARGIN, _GAP, _HEADER, _FOOTER, _LABEL = 16.0, 0.2, 0.15, 0.75, 0.85, 0.3  # inches
_DPI = 120
_UNKNOWN, _STILL = 0.35, 0.55  # brightness of the left image where there is no velocity, and where nothing moves
_MAX_DEPTH = 50.0  # m: the end of the colours of the depth
_BEHIND, _AHEAD = 3.0, 47.0  # m: the view from above, along the optical axis
_ARROW_PIXELS = 24  # one arrow per square of this side [px]


def plot_camera_frame(
    image: np.ndarray, points: np.ndarray, velocity: np.ndarray, speed_sigma: np.ndarray, path: str | Path, *,
    title: str = '', min_speed: float = 0.5, min_sigmas: float = 3.0, max_speed: float = 0.0,
    arrow_seconds: float = 0.5,
) -> None:  # fmt: skip
    """Write a picture of one frame; the suffix of `path` sets the format.

    image: (H, W, 3) uint8 RGB or (H, W) grey. points: (H, W, 3) [m], velocity: (H, W, 3) [m/s], both in the optical
    frame (z forward); NaN where they are not known. speed_sigma: (H, W) [m/s].
    min_speed, min_sigmas: slower pixels, or those whose speed is less sure, are static. max_speed: the end of the
    colours [m/s]; 0: from the frame. arrow_seconds: length of an arrow as a time at its speed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = points.shape[:2]
    moving = moving_mask(velocity, speed_sigma, min_speed, min_sigmas)
    shown = np.where(moving[..., None], velocity, np.float32(0))
    shown[~np.isfinite(velocity).all(axis=-1)] = np.nan
    max_speed = max_speed or speed_color_limit(shown.reshape(-1, 3), min_speed)
    panel = (_WIDTH - 2 * _MARGIN - _GAP) / 2, 0.0
    panel = panel[0], panel[0] * height / width
    total = _HEADER + 2 * (panel[1] + _LABEL) + _FOOTER
    figure = Figure(figsize=(_WIDTH, total), dpi=_DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)

    def axes(column: int, row: int, label: str):
        left = _MARGIN + column * (panel[0] + _GAP)
        bottom = _FOOTER + (1 - row) * (panel[1] + _LABEL)
        made = figure.add_axes((left / _WIDTH, bottom / total, panel[0] / _WIDTH, panel[1] / total))
        figure.text((left + 0.05) / _WIDTH, (bottom + panel[1] + 0.12) / total, label, color=TEXT, fontsize=12,
                    va='center')  # fmt: skip
        return made

    picture = axes(0, 0, 'left image, and the motion of its pixels')
    _show(picture, image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
    _draw_arrows(picture, points, shown, moving, min_speed, max_speed, arrow_seconds)
    _show(axes(1, 0, f'depth: near is yellow, {_MAX_DEPTH:.0f} m and more is blue'), depth_colors(points[..., 2]))
    _show(axes(0, 1, 'speed over ground: static pixels are grey, those without a velocity are dark'),
          motion_colors(image, shown, moving, min_speed, max_speed))  # fmt: skip
    _draw_from_above(axes(1, 1, 'from above, the camera looks to the right'), points, shown, height / width,
                     min_speed, max_speed, arrow_seconds)  # fmt: skip
    _write_legend(figure, total, title, velocity, int(moving.sum()), min_speed, max_speed, arrow_seconds)
    figure.savefig(path, facecolor=BACKGROUND)


def moving_mask(velocity: np.ndarray, speed_sigma: np.ndarray, min_speed: float, min_sigmas: float) -> np.ndarray:
    """Return which pixels (H, W) move; arguments as of `moving_pixels`, as images."""
    moving = np.zeros(speed_sigma.size, bool)
    moving[moving_pixels(velocity.reshape(-1, 3), speed_sigma.reshape(-1), min_speed, min_sigmas)] = True
    return moving.reshape(speed_sigma.shape)


def depth_colors(depth: np.ndarray) -> np.ndarray:
    """Return the colours (H, W, 3) uint8 of depths (H, W) [m]; black where they are not known."""
    from matplotlib import colormaps

    known = np.isfinite(depth) & (depth > 0)
    # Inverse depth: near structure, which is measured best, gets most of the colours.
    level = np.clip((2.0 / np.where(known, depth, 1) - 2.0 / _MAX_DEPTH) / (0.5 - 2.0 / _MAX_DEPTH), 0, 1) ** 0.6
    colors = (colormaps['viridis'](level)[..., :3] * 255).astype(np.uint8)
    colors[~known] = 0
    return colors


def motion_colors(image: np.ndarray, velocity: np.ndarray, moving: np.ndarray, min_speed: float,
                  max_speed: float) -> np.ndarray:  # fmt: skip
    """Return the image in grey, (H, W, 3) uint8, with moving pixels coloured by speed, and dark without a velocity."""
    grey = image if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])
    brightness = np.where(np.isfinite(velocity).all(axis=-1), _STILL, _UNKNOWN * _STILL)
    out = np.repeat((grey * brightness)[..., None], 3, axis=2).astype(np.uint8)
    speed = np.linalg.norm(velocity[moving], axis=-1)
    colors = speed_scale(min_speed, max_speed).to_rgba(speed)[:, :3] if len(speed) else np.zeros((0, 3))
    shade = 0.6 + 0.4 * grey[moving][:, None] / 255
    out[moving] = (colors * shade * 255).astype(np.uint8)
    return out


def _show(axes, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation='antialiased', aspect='auto')
    axes.set_axis_off()


def _draw_arrows(axes, points, velocity, moving, min_speed, max_speed, seconds) -> None:
    """Draw where moving pixels will be, one arrow per square of the image."""
    height, width = moving.shape
    focal = _focal_length(points)
    side = max(4, round(_ARROW_PIXELS * width / 1242))
    rows, columns = np.nonzero(moving)
    if not len(rows) or focal is None:
        return
    # The pixel nearest to the middle of each square.
    square = rows // side * (width // side + 1) + columns // side
    off = np.abs(rows % side - side // 2) + np.abs(columns % side - side // 2)
    first = np.unique(square[np.argsort(off, kind='stable')], return_index=True)[1]
    chosen = np.argsort(off, kind='stable')[first]
    rows, columns = rows[chosen], columns[chosen]
    start, speed = points[rows, columns], velocity[rows, columns]
    end = start + speed * seconds
    ahead = end[:, 2] > 0.5  # m
    start, end, speed = start[ahead], end[ahead], speed[ahead]
    step = focal * (end[:, :2] / end[:, 2:] - start[:, :2] / start[:, 2:])
    axes.quiver(
        columns[ahead], rows[ahead], step[:, 0], step[:, 1], angles='xy', scale_units='xy', scale=1, units='dots',
        width=2.2, headwidth=4.6, headlength=5.6, headaxislength=5.1, minlength=0.5,
        color=speed_scale(min_speed, max_speed).to_rgba(np.linalg.norm(speed, axis=1)), edgecolor=BACKGROUND,
        linewidth=0.4,
    )  # fmt: skip
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def _focal_length(points: np.ndarray) -> float | None:
    """Return the focal length [px] that the points (H, W, 3) of an image were made with; None without points."""
    tangent = points[..., 0] / points[..., 2]
    step = np.diff(tangent, axis=1)
    step = step[np.isfinite(step) & (step > 0)]
    return float(1 / np.median(step)) if len(step) else None


def _draw_from_above(axes, points, velocity, aspect, min_speed, max_speed, seconds) -> None:
    upright = [apply(BODY_T_OPTICAL, vectors.reshape(-1, 3)) for vectors in (points, velocity)]
    draw_sweep(axes, *upright, reach=1.25 * _AHEAD, min_speed=min_speed, max_speed=max_speed, arrow_seconds=seconds)
    half = (_BEHIND + _AHEAD) * aspect / 2
    axes.set_aspect('auto')
    axes.set_xlim(-_BEHIND, _AHEAD)
    axes.set_ylim(-half, half)


def _write_legend(figure, total, title, velocity, num_moving, min_speed, max_speed, seconds) -> None:
    known = float(np.isfinite(velocity).all(axis=-1).mean())
    figure.text(0.0125, 1 - 0.25 / total, title, color=TEXT, fontsize=17, fontweight='bold', va='center')
    subtitle = f'velocities for {100 * known:.0f} % of the pixels, {num_moving:,} of them move'
    figure.text(0.0125, 1 - 0.54 / total, subtitle, color=FAINT, fontsize=11, va='center')
    bar = figure.add_axes((0.70, 0.42 / total, 0.28, 0.11 / total))
    draw_speed_bar(figure, bar, min_speed, max_speed)
    figure.text(0.70, 0.68 / total, 'speed over ground [m/s]', color=TEXT, fontsize=11, va='center')
    note = f'arrow: motion in {seconds:g} s   grey: below {min_speed:g} m/s, or not surely above   dark: no velocity'
    figure.text(0.0125, 0.4 / total, note, color=FAINT, fontsize=10, va='center')
