# SPDX-License-Identifier: Apache-2.0
"""Scene flow metrics: pure numpy functions of predicted and true flow."""

import numpy as np


def epe(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the end-point error of each point (N,), in the unit of both (N, 3)."""
    return np.linalg.norm(flow - truth, axis=1)


def three_way_epe(flow, truth, is_foreground, is_dynamic) -> dict[str, float]:
    """Return the mean EPE of foreground dynamic (FD), foreground static (FS) and background static (BS) points.

    flow, truth: (N, 3) [m], residual. is_foreground, is_dynamic: (N,) bool.
    'three_way' is the mean of the three; a group without points gives NaN.
    Source: Argoverse 2 scene flow; its dynamic points move 0.05 m or more over the pair.
    """
    error = epe(flow, truth)
    groups = {'FD': is_foreground & is_dynamic, 'FS': is_foreground & ~is_dynamic, 'BS': ~is_foreground & ~is_dynamic}
    means = {name: float(error[rows].mean()) if rows.any() else float('nan') for name, rows in groups.items()}
    return means | {'three_way': float(np.mean([means['FD'], means['FS'], means['BS']]))}


def normalised_epe(flow: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean EPE over the mean true speed: 0 is perfect, 1 is what zero flow scores. NaN without points."""
    speed = np.linalg.norm(truth, axis=1)
    return float(epe(flow, truth).mean() / speed.mean()) if len(truth) and speed.mean() > 0 else float('nan')
