# SPDX-License-Identifier: Apache-2.0
"""Bird's-eye view of tracked objects at the end of a drive: points by speed, boxes, past trajectories."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.objects.tracker import MovingObject, Tracker
from zeroflow_ros.views.bev_plot import draw_sweep

_SIZE, _DPI = (12.8, 8.0), 125  # inches; 1600 pixels wide
_BACKGROUND, _TEXT, _FAINT = '#0b0f17', '#e8edf5', '#7d8aa0'
_REACH, _MAX_SPEED = 44.0, 10.0  # m to the left and right edge; m/s at the end of the colours


def draw_drive(drive, tracker: Tracker, path: Path) -> None:
    """Run a tracker over a drive and draw the last sweep with the tracked objects."""
    trajectories: dict[int, list[np.ndarray]] = defaultdict(list)
    world_T_ego = np.eye(4)
    for sweep in drive.sweeps():
        objects = tracker.update(sweep.points, sweep.velocity, sweep.ego0_T_ego1, sweep.dt)
        world_T_ego = world_T_ego @ sweep.ego0_T_ego1
        for each in objects:
            trajectories[each.track_id].append(transforms.apply(world_T_ego, each.center[None])[0])
    ego_T_world = transforms.invert(world_T_ego)
    tracks_in_ego = {
        track_id: transforms.apply(ego_T_world, np.array(positions)) for track_id, positions in trajectories.items()
    }
    draw_objects(
        sweep.points, sweep.velocity, objects, tracks_in_ego, path, title='Moving objects from scene flow, no classes'
    )


def draw_objects(points: np.ndarray, velocity: np.ndarray, objects: list[MovingObject],
                 trajectories: dict[int, np.ndarray], path: Path, *, title: str) -> None:  # fmt: skip
    """Write a picture of one sweep and its objects; the suffix of `path` selects the format.

    points: (N, 3) [m]. velocity: (N, 3) [m/s]. trajectories: past positions (S, 3) [m] by track ID.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    # Only objects get arrows: arrows of the points would hide them.
    draw_sweep(axes, points, velocity, reach=_REACH, min_speed=0.5, max_speed=_MAX_SPEED, arrow_seconds=1e-3)
    for each in objects:
        _draw_object(axes, each, trajectories.get(each.track_id, np.zeros((0, 3))))
    box = {'facecolor': _BACKGROUND, 'edgecolor': 'none', 'alpha': 0.8, 'pad': 4}
    figure.text(0.022, 0.955, title, color=_TEXT, fontsize=17, fontweight='bold', va='center', bbox=box)
    said = (
        f'{len(objects)} objects: box of the visible part, track ID, speed, arrow: 1 s of motion; line: past trajectory'
    )
    figure.text(0.022, 0.918, said, color=_FAINT, fontsize=11, va='center', bbox=box)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.partial{path.suffix}')
    figure.savefig(temporary, facecolor=_BACKGROUND)
    os.replace(temporary, path)


def _draw_object(axes, each: MovingObject, trajectory: np.ndarray) -> None:
    length, width = np.maximum(each.size[:2], 0.5) / 2
    cosine, sine = np.cos(each.yaw), np.sin(each.yaw)
    corners = np.array([[length, width], [-length, width], [-length, -width], [length, -width]])
    corners = corners @ np.array([[cosine, sine], [-sine, cosine]]) + each.center[:2]
    style = '--' if each.unseen_s > 0 else '-'
    axes.fill(*corners.T, facecolor='none', edgecolor='white', linewidth=1.5, linestyle=style, zorder=9)
    axes.plot(trajectory[:, 0], trajectory[:, 1], color='white', linewidth=1.0, alpha=0.6, zorder=8)
    head = each.center[:2] + each.velocity[:2]
    arrow = {'arrowstyle': '-|>', 'color': 'white', 'linewidth': 1.5, 'shrinkA': 0, 'shrinkB': 0}
    axes.annotate('', head, each.center[:2], arrowprops=arrow, zorder=9, annotation_clip=True)
    if abs(each.center[0]) < _REACH and abs(each.center[1]) < _REACH * _SIZE[1] / _SIZE[0]:
        said = f'{each.track_id}: {float(np.hypot(*each.velocity[:2])):.1f} m/s'
        place = each.center[0], corners[:, 1].max() + 0.4
        axes.text(*place, said, color=_TEXT, fontsize=9, ha='center', va='bottom', zorder=10)
