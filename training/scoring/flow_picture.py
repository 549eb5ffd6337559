# SPDX-License-Identifier: Apache-2.0
"""Bird's-eye view of one pair: the flow of several estimators on the older sweep, side by side."""

from pathlib import Path

import numpy as np

from zeroflow_ros.views.bev_plot import draw_sweep, speed_color_limit

_PANEL = (9.6, 6.0)  # inches
_DPI = 100
_BACKGROUND, _TEXT = '#0b0f17', '#e8edf5'
_MIN_SPEED = 0.5  # m/s
_ARROW_SECONDS = 0.5


def draw_flows(
    points: np.ndarray, velocities: dict[str, np.ndarray], path: Path, *, title: str, reach: float = 44.0
) -> None:
    """Write a picture with one panel per velocity; all panels share the colour scale.

    points: (N, 3) [m]. velocities: (N, 3) [m/s] by name, NaN where there is no flow. title: title of the picture.
    reach: distance from the sensor to the left and right edge of a panel [m].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if len(velocities) == 1 else 2 if len(velocities) in (2, 4) else 3
    rows = -(-len(velocities) // columns)
    figure = Figure(figsize=(columns * _PANEL[0], rows * _PANEL[1] + 0.5), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    top = rows * _PANEL[1] / (rows * _PANEL[1] + 0.5)
    max_speed = max(speed_color_limit(velocity, _MIN_SPEED) for velocity in velocities.values())
    for number, (name, velocity) in enumerate(velocities.items()):
        row, column = divmod(number, columns)
        axes = figure.add_axes((column / columns, top * (1 - (row + 1) / rows), 0.996 / columns, 0.994 * top / rows))
        draw_sweep(
            axes, points, velocity, reach=reach, min_speed=_MIN_SPEED, max_speed=max_speed, arrow_seconds=_ARROW_SECONDS
        )
        axes.text(
            0.012, 0.985, name, color=_TEXT, fontsize=15, fontweight='bold', va='top', transform=axes.transAxes,
            bbox={'facecolor': _BACKGROUND, 'edgecolor': 'none', 'alpha': 0.8, 'pad': 4}, zorder=10,
        )  # fmt: skip
    said = (
        f'{title}    colours from {_MIN_SPEED:g} to {max_speed:g} m/s, arrows: {_ARROW_SECONDS:g} s of motion, '
        'grey: slower, dark: no flow'
    )
    figure.text(0.006, (1 + top) / 2, said, color=_TEXT, fontsize=13, va='center')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=_BACKGROUND)
