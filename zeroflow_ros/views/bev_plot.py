# SPDX-License-Identifier: Apache-2.0
"""Bird's-eye view of a sweep: points coloured by speed, arrows along the motion. Only drawing imports matplotlib."""

from pathlib import Path

import numpy as np

from zeroflow_ros.views.arrows import pick_arrows

_SIZE = (12.8, 8.0)  # inches
_ASPECT = _SIZE[1] / _SIZE[0]
_DPI = 150
BACKGROUND, TEXT, FAINT = '#0b0f17', '#e8edf5', '#7d8aa0'
# Static points, from the ground to the roofs: a cold grey, so that colour means motion.
_STATIC = np.array([[0.20, 0.25, 0.33], [0.40, 0.46, 0.56], [0.64, 0.70, 0.79]])
_UNKNOWN = '#1c2331'
# From the slowest dynamic points to the fastest. The first is bright, so that pedestrians stand out from static points.
_SPEED_COLORS = ['#3fa7ff', '#2fe0d0', '#6ee85a', '#ffd83d', '#ff8a2b', '#ff3b4e']
_CAR = np.array([[2.4, 0.0], [1.6, 0.95], [-2.2, 0.95], [-2.2, -0.95], [1.6, -0.95]])  # [m], nose along x


def plot_sweep(points: np.ndarray, velocity: np.ndarray, path: str | Path, *, title: str = '', reach: float = 44.0,
         min_speed: float = 0.5, max_speed: float = 0.0, arrow_seconds: float = 0.5) -> None:  # fmt: skip
    """Write a picture of one sweep; the suffix of `path` sets the format.

    points: (N, 3) [m]; x (forward) points to the right of the picture, y (left) to its top. velocity: (N, 3) [m/s], NaN
    where there is none. reach: distance from the sensor to the left and right edge [m]. min_speed: slower points are
    static and grey; the colours start here [m/s]. max_speed: the end of the colours [m/s]; 0: from the sweep.
    arrow_seconds: length of an arrow as a time at its speed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    max_speed = max_speed or speed_color_limit(velocity, min_speed)
    num_moving = draw_sweep(
        axes, points, velocity, reach=reach, min_speed=min_speed, max_speed=max_speed, arrow_seconds=arrow_seconds
    )
    _write_legend(figure, axes, title, len(points), num_moving, min_speed, max_speed, arrow_seconds, reach)
    figure.savefig(path, facecolor=BACKGROUND)


def draw_sweep(axes, points: np.ndarray, velocity: np.ndarray, *, reach: float, min_speed: float, max_speed: float,
               arrow_seconds: float) -> int:  # fmt: skip
    """Draw a sweep on matplotlib axes; return the number of moving points. Arguments: see `plot_sweep`."""
    axes.set_facecolor(BACKGROUND)
    axes.set_axis_off()
    axes.set_aspect('equal')
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach * _ASPECT, reach * _ASPECT)
    _draw_rings(axes, reach)

    points, velocity = _visible(points, velocity, reach)
    speed = np.linalg.norm(velocity, axis=1)
    is_known = np.isfinite(speed)
    is_moving = is_known & (speed >= min_speed)
    is_static = is_known & ~is_moving
    dots = {'marker': 'o', 'linewidths': 0, 'rasterized': True}
    unknown = points[~is_known]
    axes.scatter(unknown[:, 0], unknown[:, 1], s=0.5, c=_UNKNOWN, zorder=2, **dots)
    static = points[is_static]
    axes.scatter(static[:, 0], static[:, 1], s=0.8, c=_by_height(static[:, 2]), zorder=3, **dots)
    order = np.flatnonzero(is_moving)[np.argsort(speed[is_moving])]  # the fastest on top
    colors = speed_scale(min_speed, max_speed).to_rgba(speed[order])
    axes.scatter(points[order, 0], points[order, 1], s=26, c=colors, alpha=0.06, zorder=4, **dots)  # a glow
    axes.scatter(points[order, 0], points[order, 1], s=2.6, c=colors, zorder=5, **dots)
    _draw_arrows(axes, points, velocity, min_speed, max_speed, arrow_seconds)
    axes.fill(_CAR[:, 0], _CAR[:, 1], facecolor=BACKGROUND, edgecolor=TEXT, linewidth=1.2, zorder=7)
    return int(is_moving.sum())


def _visible(points: np.ndarray, velocity: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid='ignore'):
        inside = (np.abs(points[:, 0]) < reach) & (np.abs(points[:, 1]) < reach * _ASPECT) & np.isfinite(points[:, 2])
    return points[inside], velocity[inside]


def speed_color_limit(velocity: np.ndarray, min_speed: float) -> float:
    """Return a round speed [m/s] that most dynamic points stay below, from 5 m/s (running) up.

    velocity: (N, 3) [m/s]. min_speed: slower points are static [m/s].
    """
    speed = np.linalg.norm(velocity, axis=1)
    moving = speed[np.isfinite(speed) & (speed >= min_speed)]
    fast = float(np.percentile(moving, 98)) if len(moving) else 0.0
    return next((end for end in (5.0, 8.0, 10.0, 15.0, 20.0, 30.0) if fast <= end), 40.0)


def _by_height(z: np.ndarray) -> np.ndarray:
    """Return (N, 3) colours of static points, brighter with height above the ground."""
    if len(z) == 0:
        return np.zeros((0, 3))
    ground = np.percentile(z, 10)
    level = np.clip((z - ground) / 4.0, 0, 1)  # 4 m: a lorry, or the first floor
    return np.stack([np.interp(level, [0, 0.3, 1], _STATIC[:, channel]) for channel in range(3)], axis=1)


def speed_scale(min_speed: float, max_speed: float):
    """Return matplotlib's mapping from speed [m/s] to colour; speeds below min_speed are grey."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colors = LinearSegmentedColormap.from_list('speed', _SPEED_COLORS).with_extremes(under=_STATIC[1])
    return ScalarMappable(Normalize(min_speed, max_speed), colors)


def speed_ticks(min_speed: float, max_speed: float) -> list[float]:
    """Return the numbers of the colour legend [m/s]; the first is min_speed, where the grey of static points ends."""
    from matplotlib.ticker import MaxNLocator

    whole = MaxNLocator(5, integer=True).tick_values(0, max_speed)
    return [min_speed, *(float(tick) for tick in whole if min_speed + 0.1 * max_speed < tick <= max_speed)]


def draw_speed_bar(figure, axes, min_speed: float, max_speed: float) -> None:
    """Draw the colour legend of speeds [m/s] into axes of a figure."""
    ticks, scale = speed_ticks(min_speed, max_speed), speed_scale(min_speed, max_speed)
    colorbar = figure.colorbar(scale, cax=axes, orientation='horizontal', extend='both', ticks=ticks)
    colorbar.ax.set_xticklabels([f'{tick:g}' for tick in ticks])
    colorbar.outline.set_visible(False)
    axes.tick_params(colors=TEXT, labelsize=10, length=0, pad=4)


def _draw_arrows(axes, points, velocity, min_speed, max_speed, seconds) -> None:
    segments, _ = pick_arrows(points, velocity, max_arrows=400, min_speed=min_speed, seconds=seconds, cell=2.0)
    if len(segments) == 0:
        return
    tails, vectors = segments[:, 0, :2], (segments[:, 1] - segments[:, 0])[:, :2]
    speed = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1) / seconds
    axes.quiver(
        tails[:, 0], tails[:, 1], vectors[:, 0], vectors[:, 1], angles='xy', scale_units='xy', scale=1, units='dots',
        width=2.6, headwidth=4.6, headlength=5.6, headaxislength=5.1, minlength=0.5,
        color=speed_scale(min_speed, max_speed).to_rgba(speed), edgecolor=BACKGROUND, linewidth=0.4, zorder=6,
    )  # fmt: skip


def _draw_rings(axes, reach: float) -> None:
    from matplotlib.patches import Circle

    step = next(step for step in (5, 10, 20, 50, 100, 1000) if reach / step <= 5)
    for radius in range(step, int(reach) + 1, step):
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor='#243044', linewidth=0.8, zorder=1))
        if radius < 0.95 * reach * _ASPECT:
            axes.text(0, -radius, f'{radius} m', color='#6b7890', fontsize=8, ha='center', va='center', zorder=8,
                      bbox={'facecolor': BACKGROUND, 'edgecolor': 'none', 'pad': 1.2})  # fmt: skip


def _write_legend(figure, axes, title, num_points, num_moving, min_speed, max_speed, arrow_seconds, reach) -> None:
    box = {'facecolor': BACKGROUND, 'edgecolor': 'none', 'alpha': 0.8, 'pad': 4}
    if title:
        figure.text(0.022, 0.955, title, color=TEXT, fontsize=17, fontweight='bold', va='center', bbox=box)
    subtitle = f'{num_points:,} points, {num_moving:,} of those shown move faster than {min_speed:g} m/s'
    figure.text(0.022, 0.918 if title else 0.955, subtitle, color=FAINT, fontsize=11, va='center', bbox=box)

    panel = figure.add_axes((0.72, 0.025, 0.27, 0.115), zorder=9, facecolor=BACKGROUND)
    panel.patch.set_alpha(0.85)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    bar = figure.add_axes((0.735, 0.075, 0.24, 0.016), zorder=10)
    draw_speed_bar(figure, bar, min_speed, max_speed)
    panel.text(0.055, 0.7, 'speed over ground [m/s]', color=TEXT, fontsize=11, transform=panel.transAxes)

    length = 10 if reach >= 20 else 2
    start, height = -reach * 0.955, -reach * _ASPECT * 0.88
    axes.plot([start, start + length], [height, height], color=TEXT, linewidth=2.2, solid_capstyle='butt', zorder=9)
    axes.text(start + length / 2, height + reach * 0.012, f'{length} m', color=TEXT, fontsize=10, ha='center',
              va='bottom', zorder=9, bbox=box)  # fmt: skip
    arrow = f'arrow: motion in {arrow_seconds:g} s   grey: below {min_speed:g} m/s   dark: no velocity'
    figure.text(0.022, 0.028, arrow, color=FAINT, fontsize=10, va='center', bbox=box)
