# SPDX-License-Identifier: Apache-2.0
"""What the field does to sweeps and the simulation does not: stray returns, missing ground, lost rings and sectors."""

from dataclasses import dataclass

import numpy as np

_RINGS = 64  # bands of elevation


@dataclass(frozen=True)
class Disturbances:
    """Probabilities that the sweeps of a training sample are disturbed.

    stray: rain, snow or dust: up to max_stray of the points of each sweep are added at places of their own.
    ground_removed: a filter has removed everything below 0.1 to 0.5 m. rings: up to half of the rings are lost.
    sector: up to a third of the revolution is lost, in all sweeps. no_height: the ground is up to 1.5 m from z = 0.
    """

    stray: float = 0.0
    max_stray: float = 0.06
    ground_removed: float = 0.0
    rings: float = 0.0
    sector: float = 0.0
    no_height: float = 0.0

    def __call__(self, clouds, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return disturbed clouds and, for each of their rows, its row in the undisturbed cloud, -1 for a stray return.

        clouds: (N, 3) float32 [m] each, in one frame, z = 0 on the ground, the sensor above the origin.
        """
        happens = {
            name: rng.random() < getattr(self, name)
            for name in ('stray', 'ground_removed', 'rings', 'sector', 'no_height')
        }
        rows = [np.arange(len(points)) for points in clouds]
        clouds = list(clouds)
        if not any(happens.values()):
            return clouds, rows
        keep_rules = []
        if happens['ground_removed']:
            lowest = np.float32(rng.uniform(0.1, 0.5))
            keep_rules.append(lambda points: points[:, 2] > lowest)
        if happens['rings']:
            sensor = np.float32(rng.uniform(0.5, 2.5))
            lost = rng.random(_RINGS) < rng.uniform(0.1, 0.5)
            keep_rules.append(lambda points: ~lost[_ring(points, sensor)])
        if happens['sector']:
            middle, half = rng.uniform(-np.pi, np.pi), rng.uniform(0.1, np.pi / 3)
            keep_rules.append(lambda points: _away_from(points, middle) > half)
        for keep in keep_rules:
            for k, points in enumerate(clouds):
                kept = np.flatnonzero(keep(points))
                clouds[k], rows[k] = points[kept], rows[k][kept]
        if happens['stray']:
            share, reach = self.max_stray * rng.random() ** 2, rng.uniform(3, 20)
            clustered = rng.uniform(0, 0.5) * (rng.random() < 0.5)
            for k, points in enumerate(clouds):
                added = stray_returns(points, round(share * len(points)), reach, clustered, rng)
                clouds[k] = np.concatenate([points, added])
                rows[k] = np.append(rows[k], np.full(len(added), -1))
        if happens['no_height']:
            lift = np.array([0, 0, rng.uniform(-1.5, 1.5)], np.float32)
            clouds = [points + lift for points in clouds]
        return clouds, rows


def stray_returns(
    points: np.ndarray, number: int, reach: float, clustered: float, rng: np.random.Generator
) -> np.ndarray:
    """Return (number, 3) float32 [m] of returns from rain, snow or dust.

    Most are at all azimuths, exponentially rarer with the distance from 1 m on, `reach` [m] being the scale, 0 to 5 m
    above the ground. A share `clustered` is within about 1 m of random points of the cloud: spray and glare at objects.
    """
    near_objects = round(clustered * number) if len(points) else 0
    free = number - near_objects
    distance, azimuth = 1 + rng.exponential(reach, free), rng.uniform(-np.pi, np.pi, free)
    top = rng.uniform(1.5, 5.0)
    everywhere = np.column_stack([distance * np.cos(azimuth), distance * np.sin(azimuth), rng.uniform(-0.2, top, free)])
    at = points[rng.integers(len(points), size=near_objects)] if near_objects else np.empty((0, 3))
    return np.concatenate([everywhere, at + rng.normal(0, 0.7, at.shape)]).astype(np.float32)


def _ring(points: np.ndarray, sensor_height: np.float32) -> np.ndarray:
    """Return the band of elevation of each point, 0 to _RINGS - 1, seen from above the origin."""
    slope = (points[:, 2] - sensor_height) / np.maximum(np.hypot(points[:, 0], points[:, 1]), np.float32(0.5))
    return np.clip((slope + 0.45) / 0.7 * _RINGS, 0, _RINGS - 1).astype(np.int64)


def _away_from(points: np.ndarray, azimuth: float) -> np.ndarray:
    """Return the angle [rad] between each point's azimuth and `azimuth`, 0 to pi."""
    turned = np.arctan2(points[:, 1], points[:, 0]) - azimuth
    return np.abs((turned + np.pi) % (2 * np.pi) - np.pi)
