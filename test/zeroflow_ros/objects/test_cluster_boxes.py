# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.objects.cluster_boxes import fit_boxes

RNG = np.random.default_rng(0)


def body(center, size, heading, speed, num_points=500):
    """Return (points, velocity) that fill a box which drives along its heading [rad]."""
    local = RNG.uniform(-0.5, 0.5, (num_points, 3)) * size
    cosine, sine = np.cos(heading), np.sin(heading)
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    velocity = np.tile([speed * cosine, speed * sine, 0], (num_points, 1))
    return local @ rotation.T + center, velocity + RNG.normal(0, 0.1, velocity.shape)


@pytest.mark.parametrize(
    'label, bodies',
    [
        ('no body', []),
        ('a car', [((10, 5, 0), (4, 1.8, 1.5), 0.0, 8)]),
        ('aslant', [((10, 5, 0), (4, 1.8, 1.5), 0.7, 8)]),
        ('backwards', [((-10, 5, 0), (4, 1.8, 1.5), -3.0, 8)]),
        ('two', [((10, 5, 0), (4, 1.8, 1.5), 0.7, 8), ((5, -3, -1), (0.6, 0.5, 1.7), 2.0, 1.5)]),
    ],
)
def test_box_heads_where_its_body_goes(label, bodies):
    made = [body(*each) for each in bodies]
    stray = np.array([[50.0, 50, 50]])
    points = np.concatenate([stray, *(p for p, _ in made)])
    velocity = np.concatenate([stray, *(v for _, v in made)])
    labels = np.concatenate([[-1], *(np.full(500, k) for k in range(len(made)))]).astype(int)
    boxes = fit_boxes(points, velocity, labels)
    assert len(boxes) == len(bodies)
    for k, (center, size, heading, speed) in enumerate(bodies):
        np.testing.assert_allclose(boxes.center[k], center, atol=0.1)
        np.testing.assert_allclose(boxes.size[k], size, rtol=0.1)  # 2 % of the points at each end are left out
        assert boxes.yaw[k] == pytest.approx(heading, abs=0.02)
        assert np.linalg.norm(boxes.velocity[k]) == pytest.approx(speed, abs=0.05) and boxes.num_points[k] == 500


def test_a_heading_can_be_given():
    points, velocity = body((10, 5, 0), (4, 1.8, 1.5), 0.7, 8)
    boxes = fit_boxes(points, velocity, np.zeros(500, int), np.array([0.7 + np.pi / 2]))
    np.testing.assert_allclose(boxes.size[0], (1.8, 4, 1.5), rtol=0.1)
    np.testing.assert_allclose(boxes.center[0], (10, 5, 0), atol=0.1)


def test_strays_do_not_stretch_a_box():
    points, velocity = body((10, 5, 0), (4, 1.8, 1.5), 0.0, 8)
    points[:5] = [13.5, 5, 3]  # 1 %, as mixed pixels
    boxes = fit_boxes(points, velocity, np.zeros(500, int))
    np.testing.assert_allclose(boxes.size[0], (4, 1.8, 1.5), rtol=0.1)


def test_one_point_is_a_body_without_size():
    boxes = fit_boxes(np.ones((1, 3)), np.ones((1, 3)), np.zeros(1, int))
    np.testing.assert_allclose(boxes.center, [[1, 1, 1]])
    assert (boxes.size == 0).all()
