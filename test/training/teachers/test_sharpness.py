# SPDX-License-Identifier: Apache-2.0
"""The thickness of surfaces, beside the same with the eigenvalues of numpy; the choice of points."""

import numpy as np
import pytest

from training.teachers.sharpness import spread_rows, surface_thickness


def thickness(points):
    values = []
    for query in points[::2]:
        near = points[np.linalg.norm(points - query, axis=1) <= 0.5]
        covariance = np.cov(near.T, bias=True) if len(near) >= 5 else None
        values.append(0.11 if covariance is None else np.sqrt(max(np.linalg.eigvalsh(covariance)[0], 0)))
    return np.mean(values)


@pytest.mark.parametrize('size', [[3, 2, 0.02], [3, 0.01, 1], [1, 1, 1], [6, 6, 6], [4, 0, 0]])
def test_the_thickness_is_the_root_of_the_lowest_eigenvalue(size):
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3)) * size
    assert surface_thickness(points) == pytest.approx(thickness(points), abs=1e-7)
    oblique = points @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    assert surface_thickness(oblique) == pytest.approx(thickness(points), abs=1e-7)


@pytest.mark.parametrize('draw', [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize('count, most', [(0, 4), (3, 4), (4, 4), (5, 4), (1000, 4), (1001, 300)])
def test_chosen_rows_cover_all_runs_of_rows(count, most, draw):
    rows = spread_rows(count, most, np.full(most, draw))
    assert len(rows) == min(count, most) and (np.diff(rows) > 0).all()
    if count:
        assert rows[0] <= count / most and count - 1 - count / most <= rows[-1] < count
