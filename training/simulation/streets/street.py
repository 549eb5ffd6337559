# SPDX-License-Identifier: Apache-2.0
"""Random streets: layout, ground, static objects, traffic, and the drive of the ego vehicle."""

from dataclasses import dataclass

import numpy as np

from training.simulation.shapes.mesh import Mesh
from training.simulation.streets.actor_motion import Occupancy
from training.simulation.streets.alongside import drive_alongside
from training.simulation.streets.ego_drive import make_ego
from training.simulation.streets.parking import park_at_houses, park_vehicles
from training.simulation.streets.roadside import Roadside
from training.simulation.streets.scenery import add_scenery
from training.simulation.streets.street_layout import StreetLayout
from training.simulation.streets.traffic import Actor, Traffic
from training.simulation.streets.traffic_routes import (
    add_cyclists,
    add_lane_traffic,
    add_pedestrians,
    add_side_road_traffic,
)


@dataclass(frozen=True)
class Street:
    """One scene over the time of a clip.

    kind: a key of street_kinds.KINDS.
    ground, background: static meshes in odom.
    background_piece: number of the static object that each triangle of the background is part of, (T,) int32.
    actors: all road users except the ego vehicle.
    ego: the vehicle that carries the LiDAR; its body frame lies on the ground below the LiDAR.
    layout: of the roads and lanes.
    """

    kind: str
    ground: Mesh
    background: Mesh
    background_piece: np.ndarray
    actors: tuple[Actor, ...]
    ego: Actor
    layout: StreetLayout


def make_street(
    rng: np.random.Generator,
    times: np.ndarray,
    lidar_height: float,
    alongside: np.random.Generator | None = None,
) -> Street:
    """Return a random street over `times` (S,) [s] for a LiDAR `lidar_height` [m] above the ground.

    Objects are placed in a fixed order. An actor that would collide with an object placed before it is not added.

    alongside: draws large vehicles beside the ego vehicle, see `drive_alongside`; None: there are none.
    """
    layout = StreetLayout.random(rng)
    occupancy = Occupancy(len(times))
    traffic = Traffic(rng, layout.terrain, times, occupancy)
    driven = 20.0 * (times[-1] - times[0])  # at most, by the ego vehicle
    roadside = Roadside(rng, layout.terrain, occupancy, (-55.0, 55.0 + driven))
    ego = make_ego(rng, layout, times, lidar_height, occupancy)
    if alongside is not None:
        drive_alongside(alongside, layout, traffic, ego)
    park_vehicles(rng, layout, traffic)
    add_scenery(rng, layout, roadside)
    park_at_houses(rng, layout, traffic)
    add_lane_traffic(rng, layout, traffic)
    add_side_road_traffic(rng, layout, traffic)
    add_cyclists(rng, layout, traffic)
    add_pedestrians(rng, layout, traffic)
    ground = layout.terrain.mesh(rng, layout.half_width)
    actors = tuple(traffic.actors)
    return Street(layout.name, ground, roadside.mesh(), roadside.pieces(), actors, ego, layout)
