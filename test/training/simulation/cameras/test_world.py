# SPDX-License-Identifier: Apache-2.0
"""A wall, a box that moves in front of it, and the vehicle that carries the camera."""

import numpy as np
import pytest

pytest.importorskip('embreex', reason='ray casting needs embreex: pip install embreex')

from training.simulation.cameras.world import World
from training.simulation.sensors.lidar import Category
from training.simulation.shapes.mesh import Material, box, from_quads, from_triangles
from training.simulation.streets.street import Street
from training.simulation.streets.street_layout import StreetLayout
from training.simulation.streets.traffic import Actor
from zeroflow_ros import transforms

AHEAD = np.float32([[1, 0, 0]])
EYE = np.float32([[0, 0, 1]])


@pytest.fixture(scope='module')
def world():
    ground = from_quads([[[-50, -50, 0], [50, -50, 0], [50, 50, 0], [-50, 50, 0]]], Material.ASPHALT)
    wall = box([0.2, 60, 20], [20.1, 0, 0], Material.CONCRETE)
    poses = np.stack([transforms.yaw_translation(0.5, 10, y) for y in (-8, 0, 8)])
    mover = Actor(box([2, 2, 4], [0, 0, 0], Material.METAL), Category.CAR, poses)
    stander = Actor(box([1, 1, 3], [0, 0, 0], Material.CLOTH), Category.PEDESTRIAN, poses[:1].repeat(3, 0))
    ego = Actor(box([4, 2, 0.8], [0, 0, 0], Material.METAL), Category.EGO, np.tile(np.eye(4), (3, 1, 1)))
    layout = StreetLayout.random(np.random.default_rng(0))
    return World.of(Street('urban', ground, wall, np.zeros(len(wall), np.int32), (mover, stander), ego, layout))


@pytest.mark.parametrize(('step', 'body', 'distance'), [(0, 0, 20.0), (1, 1, 10 - 1 / np.cos(0.5)), (2, 0, 20.0)])
def test_rays_meet_bodies_where_they_are_at_that_time(world, step, body, distance):
    triangle, found = world.at(step).cast(EYE, AHEAD)
    assert world.body[triangle[0]] == body and found[0] == pytest.approx(distance, abs=1e-3)
    assert world.category[triangle[0]] == (Category.CAR if body else Category.BACKGROUND)


def test_rays_into_the_sky_meet_nothing(world):
    triangle, distance = world.at(0).cast(EYE, np.float32([[-1, 0, 0]]))
    assert triangle[0] == -1 and np.isinf(distance[0])


def test_points_stay_where_they_are_on_their_body(world):
    for step in (0, 1, 2):
        instant = world.at(step)
        toward = instant.odom_T_bodies[1, :2, 3]
        direction = np.float32([[*toward / np.linalg.norm(toward), 0]])
        triangle, distance = instant.cast(EYE, direction)
        point = EYE + direction * distance[:, None]
        local = instant.in_body(point, triangle)
        # 1 mm: float32 at 20 m
        np.testing.assert_allclose(transforms.apply(instant.odom_T_bodies[1], local), point, atol=1e-3)
        assert np.abs(local[0]).max() == pytest.approx(1, abs=1e-3)
        normal = instant.normals(triangle)
        rotated = instant.odom_T_bodies[1, :3, :3] @ world.normals[triangle[0]]
        np.testing.assert_allclose(normal[0], rotated, atol=1e-5)


def test_shadows_are_of_the_own_vehicle_too_and_of_nothing_out_of_reach(world):
    instant = world.at(1)
    below = np.float32([[0.2, 0.1, 0.01]])
    up = np.float32([[0, 0, 1]])
    assert instant.occluded(below, up)[0] and not instant.occluded(below + np.float32([5, 0, 0]), up)[0]
    triangle, distance = instant.cast(below, up)
    assert triangle[0] == -1 and np.isinf(distance[0])  # seen it is not
    assert instant.occluded(EYE, AHEAD)[0] and not instant.occluded(EYE, AHEAD, reach=5.0)[0]
    assert not len(instant.occluded(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)))


def test_pieces_tell_objects_apart(world):
    assert {(int(p), int(b)) for p, b in zip(world.piece, world.body, strict=True)} == {(0, 0), (1, 0), (2, 1), (3, 2)}
    assert world.num_resting == 2 + 12 + 12  # ground, wall, and the actor that stands


def test_tufts_of_leaves_are_enlarged_and_hedges_are_not():
    ground = from_quads([[[-5, -5, 0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]]], Material.GRASS)
    tuft = from_triangles([[[0, 0, 1], [0.1, 0, 1], [0, 0.1, 1]]], Material.LEAF)
    hedge = from_triangles([[[0, 0, 0], [4, 0, 0], [0, 0, 1]]], Material.LEAF)
    ego = Actor(box([4, 2, 0.8], [0, 0, 0], Material.METAL), Category.EGO, np.eye(4)[None])
    for leaf, factor in ((tuft, 2.3), (hedge, 1.0)):
        street = Street('urban', ground, leaf, np.zeros(1, np.int32), (), ego, None)
        made = World.of(street).corners[2]
        np.testing.assert_allclose(np.ptp(made, axis=0), factor * np.ptp(leaf.triangles[0], axis=0))
        np.testing.assert_allclose(made.mean(axis=0), leaf.triangles[0].mean(axis=0))
