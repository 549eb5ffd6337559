# SPDX-License-Identifier: Apache-2.0
"""Pictures of a stereo pair: depth, optical flow, speed and errors of the truth and of estimators, one row each."""

from itertools import product
from pathlib import Path

import numpy as np

from training.datasets.stereo_pairs import StereoDatasetPair
from training.scoring.stereo_metrics import OUTLIER_PX, OUTLIER_SHARE, fill_background, moved_points
from zeroflow_ros import transforms
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoFlow

_BACKGROUND, _TEXT = '#0b0f17', '#e8edf5'
_WIDTH, _HEADER = 7.0, 0.3  # inches: of a panel, of the line above it
DEPTHS = 3.0, 80.0  # m
_SPEEDS = 0.5, 12.0  # m/s
_ERRORS = 8.0  # the colours end at 8 times the limit of an outlier, and at an 8th of it


def draw_stereo(item: StereoDatasetPair, estimates: dict[str, StereoFlow], path: Path, *, title: str) -> None:
    """Write a picture with the reference image and the truth, if known, above one row for each estimate.

    Columns: depth, optical flow, speed without ego motion (where it is known), and scene flow error as a multiple of
    KITTI's limits; without truth, the difference between the reference image and the other one warped by the flow.
    Tracked boxes are drawn into the reference image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {f'{name}': _panels(item, found) for name, found in estimates.items()}
    flows = [found.flow for found in estimates.values()]
    truth = None if item.truth is None else _as_estimate(item)
    if truth is not None:
        flows.insert(0, truth.flow)
    longest = max([1.0, *(_longest(flow) for flow in flows)])
    images = [
        ('left image', item.reference.left),
        ('right image', item.reference.right),
        ('other left', item.other.left),
    ]
    first = [(what, _rgb(image)) for what, image in images]
    rows = {'': first if truth is None else [first[0], *_panels(item, truth)[:3]]} | rows
    height = _WIDTH * item.reference.camera.height / item.reference.camera.width + _HEADER
    figure = Figure(figsize=(4 * _WIDTH, len(rows) * height + _HEADER), dpi=72, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    total = len(rows) * height + _HEADER
    for number, (name, panels) in enumerate(rows.items()):
        for column, (what, image) in enumerate(panels):
            if image is None:
                continue
            bottom = (total - _HEADER - (number + 1) * height) / total
            axes = figure.add_axes((column / 4, bottom, 0.997 / 4, (height - _HEADER) / total))
            axes.set_axis_off()
            pixels = flow_colors(image, longest) if what == 'optical flow' else image
            axes.imshow(pixels, interpolation='nearest', aspect='auto')
            if not name and column == 0:
                _draw_boxes(axes, item)
            label = f'{name}   {what}' if name else (what if what in dict(images) else f'truth   {what}')
            figure.text(
                (column + 0.01) / 4,
                bottom + (height - 0.5 * _HEADER) / total,
                label,
                color=_TEXT,
                fontsize=14,
                va='center',
            )
    said = (
        f'{title}    depth {DEPTHS[0]:g} (red) to {DEPTHS[1]:g} m (blue); flow to {longest:.0f} px, hue: direction; '
        f'speed {_SPEEDS[0]:g} to {_SPEEDS[1]:g} m/s; errors: blue below, red above 3 px and 5 %; dark: not known'
    )
    figure.text(0.004, 1 - 0.5 * _HEADER / total, said, color=_TEXT, fontsize=14, va='center')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=_BACKGROUND)


def flow_colors(flow: np.ndarray, longest: float) -> np.ndarray:
    """Return optical flow (H, W, 2) [px] as colours (H, W, 3) in [0, 1]: hue by direction, white for none.

    longest: length at which colours are full [px]. Black where a pixel is not finite.
    """
    from matplotlib.colors import hsv_to_rgb

    known = np.isfinite(flow).all(-1)
    u, v = np.moveaxis(np.where(known[..., None], flow, 0), -1, 0)
    length = np.clip(np.hypot(u, v) / longest, 0, 1)
    return hsv_to_rgb(np.stack([(np.arctan2(v, u) / (2 * np.pi)) % 1, length, known.astype(float)], axis=-1))


def error_ratio(item: StereoDatasetPair, found: StereoFlow) -> np.ndarray:
    """Return the scene flow error of each pixel (H, W) by the limits of an outlier: above 1 it is one.

    The largest of the three errors, missing pixels filled as KITTI does; NaN where the truth is not known.
    """
    ratios = []
    for name in ('disparity', 'other_disparity', 'flow'):
        true = getattr(item.truth, name)
        difference = fill_background(getattr(found, name)) - true
        error, length = (np.linalg.norm(p, axis=-1) if p.ndim == 3 else np.abs(p) for p in (difference, true))
        with np.errstate(divide='ignore', invalid='ignore'):
            ratio = np.minimum(error / OUTLIER_PX, error / (OUTLIER_SHARE * length))
        ratios.append(np.where(np.isfinite(error), ratio, np.where(np.isfinite(length), np.inf, np.nan)))
    return np.max(ratios, axis=0)  # NaN where one is


def _panels(item: StereoDatasetPair, found: StereoFlow) -> list[tuple[str | None, np.ndarray | None]]:
    """Return (title, image) of the four columns; the optical flow as it is."""
    speed, error = _speed(item, found), ('image difference', _difference(item, found))
    if item.truth is not None:
        error = ('scene flow error', log_colors(_spread(error_ratio(item, found)), 'RdYlBu_r', (1 / _ERRORS, _ERRORS)))
    return [
        ('depth', log_colors(_spread(item.reference.camera.depth(found.disparity)), 'turbo_r', DEPTHS)),
        ('optical flow', _spread(found.flow)),
        ('speed', None if speed is None else log_colors(_spread(speed), 'inferno', _SPEEDS)),
        error,
    ]


def _as_estimate(item: StereoDatasetPair) -> StereoFlow:
    truth, ones = item.truth, np.ones_like(item.truth.disparity)
    known = truth.has_disparity & truth.has_other_disparity & truth.has_flow
    return StereoFlow(truth.disparity, truth.other_disparity, truth.flow, ones, ones, ones, known)


def _speed(item: StereoDatasetPair, found: StereoFlow) -> np.ndarray | None:
    """Return the speed (H, W) [m/s] without ego motion, NaN where not measured; None without ego motion."""
    other_T_reference = item.other_T_reference if found.other_T_reference is None else found.other_T_reference
    if other_T_reference is None:
        return None
    camera = item.reference.camera
    points, moved = camera.points(found.disparity), moved_points(camera, found.flow, found.other_disparity)
    back = transforms.apply(transforms.invert(other_T_reference), moved.reshape(-1, 3)).reshape(moved.shape)
    speed = np.linalg.norm(back - points, axis=-1) / abs(item.dt)
    return np.where(found.is_measured, np.maximum(speed, _SPEEDS[0]), np.nan)


def _draw_boxes(axes, item: StereoDatasetPair) -> None:
    """Draw the edges of the boxes into the reference image, and the speed of each."""
    camera = item.reference.camera
    corners = np.array(list(product((-0.5, 0.5), repeat=3)))
    edges = [(a, b) for a in range(8) for b in range(a) if np.count_nonzero(corners[a] != corners[b]) == 1]
    for box in item.boxes or ():
        points = transforms.apply(box.reference_T_box, corners * box.size)
        if (points[:, 2] < 0.5).any():
            continue  # partly behind the camera
        pixels, _ = camera.project(points)
        for edge in edges:
            axes.plot(*pixels[list(edge)].T, color='#ffd400', linewidth=1, scalex=False, scaley=False)
        label = box.category
        if item.other_T_reference is not None:
            center = box.reference_T_box[None, :3, 3]
            label += f' {np.linalg.norm(box.velocity(center, item.other_T_reference, item.dt)):.1f} m/s'
        axes.text(*pixels.min(0), label, color='#ffd400', fontsize=10, va='bottom', clip_on=True)


def _difference(item: StereoDatasetPair, found: StereoFlow) -> np.ndarray:
    """Return |reference - other warped by the flow| as grey colours (H, W, 3) in [0, 1]; black where outside."""
    cv2 = load_opencv()
    reference, other = (_rgb(frame.left).mean(-1, dtype=np.float32) for frame in (item.reference, item.other))
    v, u = np.indices(reference.shape, dtype=np.float32)
    flow = np.nan_to_num(found.flow, nan=-1e6).astype(np.float32)
    warped = cv2.remap(other, u + flow[..., 0], v + flow[..., 1], cv2.INTER_LINEAR, borderValue=-1e6)
    difference = np.where(warped < 0, 0, np.abs(warped - reference) / 64)
    return np.repeat(np.clip(difference, 0, 1)[..., None], 3, axis=-1)


def log_colors(values: np.ndarray, name: str, limits: tuple[float, float]) -> np.ndarray:
    """Return values (H, W) as colours (H, W, 3) of a colour map on a logarithmic scale; black where they are NaN."""
    from matplotlib import colormaps

    low, high = np.log(limits)
    with np.errstate(divide='ignore', invalid='ignore'):
        share = (np.log(values) - low) / (high - low)
    colors = colormaps[name](np.clip(np.nan_to_num(share), 0, 1))[..., :3]
    return np.where(np.isnan(values)[..., None], 0.0, colors)


def _spread(values: np.ndarray) -> np.ndarray:
    """Return values (H, W) or (H, W, C) with small gaps filled from neighbours: truth is sparse."""
    image = values.reshape(*values.shape[:2], -1).copy()
    for _ in range(2):
        for turned in (image, image[::-1], image.swapaxes(0, 1), image.swapaxes(0, 1)[::-1]):
            lacking = np.isnan(turned[1:]).any(-1)
            turned[1:][lacking] = turned[:-1][lacking]
    return image.reshape(values.shape)


def _longest(flow: np.ndarray) -> float:
    lengths = np.hypot(flow[..., 0], flow[..., 1])
    lengths = lengths[np.isfinite(lengths)]
    return float(np.percentile(lengths, 97)) if len(lengths) else 0.0


def _rgb(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
