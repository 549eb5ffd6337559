# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('embreex', reason='streets need embreex: pip install embreex')
pytest.importorskip('cv2', reason='textures need OpenCV')

from training.simulation.cameras.road_surface import RoadSurface
from training.simulation.streets.street_layout import StreetLayout


def surface(bend):
    layout = StreetLayout.random(np.random.default_rng(3))
    layout = replace(layout, terrain=replace(layout.terrain, curvature=bend), half_width=5.0)
    return replace(
        RoadSurface.draw(layout, np.random.default_rng(0)), solid=(0.0,), dashed=(2.5,), dash=(2.0, 4.0), crossings=(),
        worn=0.0, bays=(), is_paved=False,
    )  # fmt: skip


@pytest.mark.parametrize('bend', [0.0, 1 / 90, -1 / 120])
def test_road_coordinates_are_the_inverse_of_those_of_the_terrain(bend):
    road = surface(bend)
    s, t = np.random.default_rng(0).uniform([-100, -40], [140, 40], (500, 2)).T
    xy = road.layout.terrain.to_odom(s, t)
    found = road.road_coordinates(np.column_stack([xy, 0 * s]).astype(np.float32))
    # 1 mm: float32 coordinates at 150 m, on a radius of 90 m
    np.testing.assert_allclose(found, (s, t), atol=1e-3)


def test_lines_are_painted_where_they_belong():
    road = surface(0.0)
    s = np.linspace(-20, 20, 401).astype(np.float32)
    fine = np.full(401, 0.01, np.float32)

    def brightness(t):
        points = np.column_stack([s, np.full(401, t), 0 * s]).astype(np.float32)
        return road.asphalt(np.full((401, 3), 0.12, np.float32), points, fine).mean(axis=1)

    assert np.median(brightness(0.0)) > 0.45 and np.median(brightness(1.2)) < 0.2
    # Dashes of 2 m every 4 m
    assert (brightness(2.5) > 0.35).mean() == pytest.approx(0.5, abs=0.08)
