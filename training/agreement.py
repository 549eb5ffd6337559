# SPDX-License-Identifier: Apache-2.0
"""How well a student agrees with the pseudo-labels of pairs that it was not trained on."""

import numpy as np

from training.metrics import epe, normalised_epe
from training.pair_sources import PairSource

SPEEDS = (0.5, 2.0, 5.0)  # m/s
_NAMES = ('still', 'slow', 'medium', 'fast')


def agreement(student, source: PairSource) -> dict[str, dict]:
    """Return number, EPE [m] and normalised EPE of the labelled points inside the student's grid, by label speed.

    student: training.students.PillarStudent in eval mode. Both directions of time count. A group without points is
    left out; normalised EPE 1 is what zero flow scores.
    """
    import torch
    from tqdm import tqdm

    flows, labels, speeds = [], [], []
    for index in tqdm(range(len(source)), unit='pair', disable=None):
        pair = source[index]
        clouds, wanted = [], []
        for points, flow in ((pair.points0, pair.flow0), (pair.points1, pair.flow1)):
            inside = student.grid.assign(points) >= 0
            clouds.append(points[inside])
            wanted.append(flow[inside])
        rows = [np.flatnonzero(np.isfinite(flow).all(axis=1)) for flow in wanted]
        with torch.inference_mode():
            [predicted] = student.forward_both(
                [tuple(map(torch.from_numpy, clouds))], [tuple(map(torch.from_numpy, rows))]
            )
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
    return report
