# SPDX-License-Identifier: Apache-2.0
"""Scores of a student against the pseudo-labels of held-out pairs."""

import numpy as np

from training.learning.pair_sources import PairSource
from training.scoring.metrics import epe, normalised_epe
from training.teachers.dynamic_labels import STATIC

SPEEDS = (0.5, 2.0, 5.0)  # m/s
_NAMES = ('still', 'slow', 'medium', 'fast')


def score_against_labels(student, source: PairSource) -> dict[str, dict]:
    """Return count, EPE [m] and normalised EPE of the labelled points inside the student's grid, by label speed.

    student: training.students.PillarStudent in eval mode. Forward and backward flow are scored. Groups without points
    are left out; zero flow has a normalised EPE of 1. For dynamic/static labels without flow, `moving` holds the mean
    distance [m] of dynamic points to the dynamic points of the other sweep, with flow (gap) and without (gap_at_rest).
    """
    import torch
    from tqdm import tqdm

    flows, labels, speeds, gaps = [], [], [], []
    for index in tqdm(range(len(source)), unit='pair', disable=None):
        pair = source[index]
        inside = [student.grid.assign(points) >= 0 for points in pair.clouds]
        clouds = [points[kept] for points, kept in zip(pair.clouds, inside, strict=True)]
        wanted = pair.flow0[inside[0]], pair.flow1[inside[-1]]
        rows = [np.flatnonzero(np.isfinite(flow).all(axis=1)) for flow in wanted]
        with torch.inference_mode():
            [predicted] = student.forward_both(
                [tuple(map(torch.from_numpy, clouds))], [tuple(map(torch.from_numpy, rows))]
            )
        if pair.dynamic0 is not None:
            gaps.append(_gaps(student, pair))
        for flow, label, known in zip(predicted, wanted, rows, strict=True):
            flows.append(flow.numpy())
            labels.append(label[known])
            speeds.append(np.linalg.norm(label[known], axis=1) / pair.dt)
    flow, label = np.concatenate(flows), np.concatenate(labels)
    group = np.digitize(np.concatenate(speeds), SPEEDS)
    report = {}
    for number, name in enumerate(_NAMES):
        rows = group == number
        if rows.any():
            report[name] = {'points': int(rows.sum()), 'epe': round(float(epe(flow[rows], label[rows]).mean()), 5)}
            if number:
                report[name]['normalised_epe'] = round(normalised_epe(flow[rows], label[rows]), 4)
    if gaps and (num_moving := sum(count for count, *_ in gaps)):
        after, before = (sum(gap[k] for gap in gaps) / num_moving for k in (1, 2))
        report['moving'] = {'points': num_moving, 'gap': round(after, 5), 'gap_at_rest': round(before, 5)}
    return report


def _gaps(student, pair) -> tuple[int, float, float]:
    """Return the number of dynamic points of both clouds, and the sums of their gaps [m] with and without flow.

    All are 0 when a cloud has no dynamic points.
    """
    import torch
    from scipy.spatial import cKDTree

    clouds, rows = [], []
    for points, dynamic in ((pair.points0, pair.dynamic0), (pair.points1, pair.dynamic1)):
        inside = student.grid.assign(points) >= 0
        clouds.append(points[inside])
        rows.append(np.flatnonzero(dynamic[inside] > STATIC))
    if not all(map(len, rows)):
        return 0, 0.0, 0.0
    with torch.inference_mode():
        [flows] = student.forward_both([tuple(map(torch.from_numpy, clouds))], [tuple(map(torch.from_numpy, rows))])
    moving = [points[chosen] for points, chosen in zip(clouds, rows, strict=True)]
    after = before = 0.0
    for here, there, flow in zip(moving, moving[::-1], flows, strict=True):
        tree = cKDTree(there)
        after += float(tree.query(here + flow.numpy())[0].sum())
        before += float(tree.query(here)[0].sum())
    return sum(map(len, rows)), after, before
