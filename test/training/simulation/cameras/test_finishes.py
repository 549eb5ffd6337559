# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('embreex', reason='ray casting needs embreex: pip install embreex')

from training.simulation.cameras.finishes import Finish, _panes, choose_finishes
from training.simulation.cameras.world import World
from training.simulation.sensors.lidar import Category
from training.simulation.shapes.buildings import town_house
from training.simulation.shapes.mesh import Material, box, from_quads, join, tube
from training.simulation.shapes.plants import tree
from training.simulation.shapes.vehicles import car
from training.simulation.streets.street import Street
from training.simulation.streets.traffic import Actor


@pytest.fixture(scope='module')
def world():
    rng = np.random.default_rng(5)
    ground = from_quads([[[-50, -50, 0], [50, -50, 0], [50, 50, 0], [-50, 50, 0]]], Material.ASPHALT)
    parts = [town_house(rng, 12.0).placed(0, 20), tree(rng).placed(10, 5)]
    pieces = np.repeat(np.arange(2, dtype=np.int32), [len(part) for part in parts])
    ego = Actor(box([4, 2, 0.8], [0, 0, 0], Material.METAL), Category.EGO, np.eye(4)[None])
    parked = Actor(car(rng)[0], Category.CAR, np.eye(4)[None])
    return World.of(Street('urban', ground, join(parts), pieces, (parked,), ego, None))


def test_surfaces_look_like_what_they_are_part_of(world):
    finishes = choose_finishes(world, np.random.default_rng(0))

    def kinds(piece, material):
        return set(finishes.kind[(world.piece == piece) & (world.material == material)].tolist())

    assert kinds(0, Material.ASPHALT) == {Finish.ROAD}
    assert Finish.WINDOW in kinds(1, Material.GLASS) and kinds(2, Material.BARK) == {Finish.BARK}
    assert kinds(2, Material.LEAF) == {Finish.LEAVES}
    assert kinds(3, Material.GLASS) == {Finish.GLASS} and kinds(3, Material.RETRO) == {Finish.SIGN}
    assert kinds(3, Material.LIGHT_PAINT) | kinds(3, Material.DARK_PAINT) == {Finish.VEHICLE}
    assert (finishes.albedo > 0).all() and (finishes.albedo < 1).all()


def test_one_object_has_one_colour_per_material(world):
    finishes = choose_finishes(world, np.random.default_rng(1))
    rows = (world.piece == 3) & np.isin(world.material, (Material.LIGHT_PAINT, Material.DARK_PAINT))
    assert rows.any() and len(np.unique(finishes.albedo[rows], axis=0)) == 1
    others = [choose_finishes(world, np.random.default_rng(seed)).albedo[rows][0] for seed in range(6)]
    assert len(np.unique(others, axis=0)) > 3


def test_texture_coordinates_are_in_the_surface_and_in_metres(world):
    finishes = choose_finishes(world, np.random.default_rng(0))
    steep = np.abs(world.normals[:, 2]) <= 0.95
    axes = finishes.axes[steep].astype(np.float64)
    is_triangle = np.linalg.norm(world.normals[steep], axis=1) > 0.5
    np.testing.assert_allclose(np.linalg.norm(axes[is_triangle], axis=2), 1, atol=1e-5)
    along = np.einsum('nij,nj->ni', axes, world.normals[steep])
    # float32 normals
    assert np.abs(along).max() < 1e-5


def test_halves_of_quadrilaterals_are_found():
    quads = from_quads([[[0, 0, 0], [3, 0, 0], [3, 0, 2], [0, 0, 2]], [[5, 0, 0], [6, 0, 0], [6, 0, 4], [5, 0, 4]]], 0)
    fan = tube([[0, 0, 0], [0, 0, 1]], 0.5, Material.RUBBER, 6)
    corners = np.concatenate([quads.triangles, fan.triangles])
    origin, axes, size = _panes(corners, np.zeros(len(corners), np.uint8))
    np.testing.assert_allclose(size[:4], [[3, 2], [3, 2], [1, 4], [1, 4]])
    np.testing.assert_allclose(axes[:4], np.tile([[1, 0, 0], [0, 0, 1]], (4, 1, 1)))
    np.testing.assert_allclose(origin[:4, 0], [0, 0, 5, 5])
    # The caps of the tube are fans: no width, and the radius as height.
    np.testing.assert_allclose(size[-6:], np.tile([0, 0.5], (6, 1)), atol=1e-6)
