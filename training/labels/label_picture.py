# SPDX-License-Identifier: Apache-2.0
"""A picture to check a pseudo-label by eye: speed, misfit, and close-ups of both sweeps."""

from pathlib import Path

import numpy as np

from training.labels.label_quality import MOVING, LabelQuality, LabelResiduals
from training.teachers.dynamic_labels import FIRST_CLUSTER, STATIC
from training.teachers.pseudo_label import PseudoLabel
from zeroflow_ros.views.arrows import pick_arrows
from zeroflow_ros.views.bev_plot import draw_speed_bar, speed_scale

_SIZE, _DPI = (21.0, 9.3), 100  # inches
_BACKGROUND, _TEXT, _FAINT = '#0b0f17', '#e8edf5', '#8f9cb2'
_GROUND, _STILL, _UNKNOWN, _NEWER, _OLDER, _MOVED = (
    '#141a26', '#6b7890', '#2a3346', '#c9d2e0', '#3f7fe0', '#ff8418',
)  # fmt: skip
_MISFIT_COLORS = ['#1d3b2a', '#2f7d4f', '#d8c93a', '#ff8a2b', '#ff3b4e']
_MISFIT_END = 0.5  # m
_CLOSE_UP_SIZE, _NUM_CLOSE_UPS = 10.0, 4  # m, side of a close-up; how many


def draw_label(
    label: PseudoLabel, residuals: LabelResiduals, quality: LabelQuality, path: Path, *, teacher: str
) -> None:
    """Write a picture of a label.

    Left: labelled points of the older sweep by speed, with arrows, over the newer sweep. Middle: the misfit of each
    point after its flow. Right: close-ups of the most motion and the most missed points. For dynamic/static labels
    without flow, dynamic points are orange on the left.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    reach = _reach(residuals.points)
    of_older = 'speed of the older sweep' if label.dynamic0 is None else 'dynamic points of the older sweep'
    speed_axes, misfit_axes = (
        _square(figure, (left, 0.085, 0.33, 0.7452), (0, 0), reach, title)
        for left, title in ((0.008, of_older), (0.346, 'misfit after the flow'))
    )
    max_speed = _draw_speed(speed_axes, label, residuals)
    order = np.argsort(residuals.after)
    misfit_axes.scatter(*label.points1[label.is_ground1, :2].T, s=0.6, c=_GROUND, linewidths=0)
    misfit_axes.scatter(
        *residuals.points[order, :2].T,
        s=2.2,
        c=_misfit_colors()(residuals.after[order] / _MISFIT_END),
        linewidths=0,
    )
    for number, (letter, centre, why) in enumerate(_close_ups(residuals)):
        left, bottom = 0.688 + 0.156 * (number % 2), 0.4695 - 0.3845 * (number // 2)
        axes = _square(figure, (left, bottom, 0.1485, 0.3353), centre, _CLOSE_UP_SIZE / 2, f'{letter}  {why}')
        _draw_close_up(axes, residuals, centre)
        for large in (speed_axes, misfit_axes):
            _draw_box(large, centre, letter)
    speed_bar = figure.add_axes((0.035, 0.04, 0.27, 0.014))
    draw_speed_bar(figure, speed_bar, MOVING, max_speed)
    speed_bar.set_title('speed [m/s]', color=_TEXT, fontsize=11, loc='left', pad=3)
    _draw_misfit_bar(figure, figure.add_axes((0.373, 0.04, 0.27, 0.014)))
    figure.text(0.008, 0.958, f'{label.key}   by {teacher}', color=_TEXT, fontsize=17, fontweight='bold', va='center')
    figure.text(0.008, 0.912, _summary_line(quality, label), color=_FAINT, fontsize=12, va='center')
    for place, (color, what) in enumerate(
        ((_MOVED, 'older sweep after its flow'), (_NEWER, 'newer sweep'), (_OLDER, 'older sweep'))
    ):
        figure.text(0.844, 0.955 - 0.031 * place, f'\u25cf  {what}', color=color, fontsize=12, va='center')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=_BACKGROUND)


def _summary_line(quality: LabelQuality, label: PseudoLabel) -> str:
    if label.dynamic0 is not None:
        moving, bodies = np.count_nonzero(label.dynamic0 > STATIC), np.unique(label.dynamic0)
        num_bodies = np.count_nonzero(bodies >= FIRST_CLUSTER)
        return f'{quality.num_points:,} static points, {moving:,} dynamic, in {num_bodies} clusters'
    said = f'{quality.num_points:,} labelled points over {label.dt:.3f} s    {quality.moving_share:.1%} move'
    if quality.moving_share > 0:
        said += f', median {quality.median_speed:.1f} m/s'
    said += (
        f'    {quality.missed_share:.1%} missed    misfit {quality.misfit_before:.3f} -> {quality.misfit_after:.3f} m'
    )
    if quality.moving_share > 0:
        said += (
            f', moving {quality.moving_misfit_before:.3f} -> {quality.moving_misfit_after:.3f} m '
            f'({quality.worse_share:.0%} worse)    round trip {quality.round_trip:.3f} m'
        )
    return said


def _reach(points: np.ndarray) -> float:
    """Return half the width of the plot [m]: the farthest labelled point, and a margin."""
    return 1.02 * float(np.abs(points[:, :2]).max()) if len(points) else 51.2


def _square(figure, place, centre, reach: float, title: str):
    axes = figure.add_axes(place, facecolor=_BACKGROUND)
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach))
    axes.set(xticks=[], yticks=[], aspect='equal')
    axes.spines[:].set_color('#243044')
    axes.set_title(title, color=_TEXT, fontsize=12, loc='left', pad=5)
    return axes


def _draw_speed(axes, label: PseudoLabel, residuals: LabelResiduals) -> float:
    """Draw points by speed; return the speed at the end of the scale [m/s]."""
    dots = {'linewidths': 0}
    axes.scatter(*label.points0[label.is_ground0, :2].T, s=0.6, c=_GROUND, **dots)
    unknown = np.isnan(label.flow0).any(axis=1)
    axes.scatter(*label.points0[unknown, :2].T, s=0.6, c=_UNKNOWN, **dots)
    axes.scatter(*residuals.target[:, :2].T, s=1.2, c='#39435a', **dots)
    moving = residuals.is_moving
    axes.scatter(*residuals.points[~moving, :2].T, s=1.2, c=_STILL, **dots)
    if label.dynamic0 is not None:
        axes.scatter(*label.points0[label.dynamic0 > STATIC, :2].T, s=4.0, c=_MOVED, **dots)
    max_speed = max(5.0, float(np.percentile(residuals.speed[moving], 98))) if moving.any() else 5.0
    order = np.flatnonzero(moving)[np.argsort(residuals.speed[moving])]
    scale = speed_scale(MOVING, max_speed)
    axes.scatter(*residuals.points[order, :2].T, s=4.0, c=scale.to_rgba(residuals.speed[order]), **dots)
    velocity = residuals.flow / np.float32(label.dt)
    segments, _ = pick_arrows(residuals.points, velocity, max_arrows=400, min_speed=MOVING, seconds=0.5, cell=2.0)
    if len(segments):
        ways = segments[:, 1] - segments[:, 0]
        axes.quiver(
            *segments[:, 0, :2].T, *ways[:, :2].T, angles='xy', scale_units='xy', scale=1, units='dots', width=2.0,
            headwidth=4.6, headlength=5.6, headaxislength=5.1, minlength=0.5, edgecolor=_BACKGROUND, linewidth=0.4,
            color=scale.to_rgba(np.linalg.norm(ways, axis=1) / 0.5),
        )  # fmt: skip
    axes.plot(0, 0, marker='+', color=_TEXT, markersize=9)
    return max_speed


def _close_ups(residuals: LabelResiduals) -> list[tuple[str, np.ndarray, str]]:
    """Return letter, centre and reason of up to four close-ups: two with most motion, then most missed points."""
    if not len(residuals.points):
        return []
    cells = np.round(residuals.points[:, :2] / (_CLOSE_UP_SIZE / 2)).astype(np.int64)
    places, cell_of = np.unique(cells, axis=0, return_inverse=True)
    cell_of = cell_of.ravel()
    taken, spots = np.zeros(len(places), bool), []
    way = np.where(residuals.is_moving, np.minimum(residuals.speed, 10.0), 0.0)  # many points, or fast ones
    missed = residuals.missed.astype(float)
    for weight, what in ((way, 'moves'),) * 2 + ((missed, 'misses'),) * _NUM_CLOSE_UPS:
        total = np.where(taken, 0.0, np.bincount(cell_of, weight, len(places)))
        best = int(total.argmax())
        if total[best] == 0 or len(spots) == _NUM_CLOSE_UPS:
            continue
        inside = (cell_of == best) & (weight > 0)
        centre = residuals.points[inside, :2].mean(axis=0)
        taken |= np.abs(places - places[best]).max(axis=1) <= 1
        why = f'{inside.sum()} points move, {np.median(residuals.speed[inside]):.1f} m/s'
        if what == 'misses':
            why = f'{inside.sum()} points miss by {np.median(residuals.after[inside]):.2f} m'
        spots.append(('ABCD'[len(spots)], centre, why))
    return spots


def _draw_close_up(axes, residuals: LabelResiduals, centre: np.ndarray) -> None:
    for points, color, size in (
        (residuals.target, _NEWER, 20), (residuals.points, _OLDER, 5), (residuals.points + residuals.flow, _MOVED, 5),
    ):  # fmt: skip
        near = (np.abs(points[:, :2] - centre) < _CLOSE_UP_SIZE / 2 + 0.2).all(axis=1)
        axes.scatter(*points[near, :2].T, s=size, c=color, linewidths=0, alpha=0.9)
    start, low = centre - _CLOSE_UP_SIZE / 2 + 0.4
    axes.plot([start, start + 2], [low, low], color=_TEXT, linewidth=2)
    axes.text(start + 1, low + 0.25, '2 m', color=_TEXT, fontsize=9, ha='center')


def _draw_box(axes, centre: np.ndarray, letter: str) -> None:
    from matplotlib.patches import Rectangle

    corner = centre - _CLOSE_UP_SIZE / 2
    axes.add_patch(
        Rectangle(corner, _CLOSE_UP_SIZE, _CLOSE_UP_SIZE, fill=False, edgecolor=_TEXT, linewidth=0.9, alpha=0.8)
    )
    axes.text(*(corner + [0.4, _CLOSE_UP_SIZE - 0.4]), letter, color=_TEXT, fontsize=11, va='top', fontweight='bold')


def _misfit_colors():
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list('misfit', _MISFIT_COLORS)


def _draw_misfit_bar(figure, axes) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, _MISFIT_END), _misfit_colors())
    colorbar = figure.colorbar(scale, cax=axes, orientation='horizontal', extend='max')
    colorbar.outline.set_visible(False)
    axes.tick_params(colors=_TEXT, labelsize=10, length=0)
    axes.set_title('distance to the newer sweep [m]', color=_TEXT, fontsize=11, loc='left', pad=3)
