# SPDX-License-Identifier: Apache-2.0
"""Sun, sky and haze of a simulated day, and the light that surfaces send to a camera."""

from dataclasses import dataclass

import numpy as np

from training.simulation.cameras.noise_texture import inside, noise_texture


@dataclass(frozen=True)
class Daylight:
    """Light of one clip, in relative units: a white surface in full light sends about 1.

    sun_direction: (3,) float32, towards the sun, in odom. sun: (3,) float32, irradiance; 0 under an overcast sky.
    sky: (3,) float32, light of the whole sky on a level surface. clouds: share of the sky that they cover.
    haze: [m], distance at which 63 % of the light comes from the haze. skyline: mean elevation of the horizon [rad].
    """

    sun_direction: np.ndarray
    sun: np.ndarray
    sky: np.ndarray
    clouds: float
    haze: float
    skyline: float

    @staticmethod
    def draw(rng: np.random.Generator) -> 'Daylight':
        """Return a random day: sunny (two of three), hazy or overcast."""
        kind = rng.choice(['sunny', 'hazy', 'overcast'], p=[0.65, 0.15, 0.2])
        elevation, azimuth = np.radians(rng.uniform(20, 62)), rng.uniform(-np.pi, np.pi)
        direction = np.array(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        )
        strength = {'sunny': rng.uniform(0.75, 1.0), 'hazy': rng.uniform(0.3, 0.6), 'overcast': 0.0}[kind]
        warm = np.array([1.0, 0.93 - 0.1 * (1 - np.sin(elevation)), 0.82 - 0.22 * (1 - np.sin(elevation))])
        blue = {'sunny': (0.62, 0.80, 1.0), 'hazy': (0.80, 0.90, 1.0), 'overcast': (0.93, 0.97, 1.0)}[kind]
        amount = {'sunny': rng.uniform(0.12, 0.22), 'hazy': rng.uniform(0.35, 0.5), 'overcast': rng.uniform(0.7, 0.9)}
        return Daylight(
            direction.astype(np.float32),
            (strength * warm).astype(np.float32),
            (amount[kind] * np.array(blue)).astype(np.float32),
            {'sunny': rng.uniform(0, 0.5), 'hazy': rng.uniform(0.3, 0.8), 'overcast': 1.0}[kind],
            rng.uniform(800, 5000) if kind != 'hazy' else rng.uniform(250, 600),
            np.radians(rng.uniform(0.5, 4)),
        )

    def sky_radiance(self, directions: np.ndarray) -> np.ndarray:
        """Return the light from beyond all surfaces, (N, 3): sky and clouds, and below the skyline a far land."""
        up = np.clip(directions[:, 2], -0.3, 1)
        height = np.maximum(up, 0)
        # Mean radiance of a sky that lights a level surface by `sky` is sky / pi of it; cameras see it bright.
        zenith, horizon = self.sky * 1.5, (self.sky + 0.25 * self.sun) * 1.5 + 0.1
        fade = np.exp(-5 * height)[:, None]
        colour = zenith * (1 - fade) + horizon * fade
        noise = noise_texture()
        u, v = (directions[:, k] / (height + 0.18) for k in (0, 1))
        pixel = np.full(len(u), 2e-3, np.float32)
        cover = noise.sample(u, v, pixel / (height + 0.18), 7.0)
        thick = np.clip(0.8 * cover[:, 0] + 3 * self.clouds - 1.5, 0, 1)[:, None]
        white = (self.sky.mean() * 1.6 + 0.6 * self.sun) * (1 + 0.12 * cover[:, 1:2])
        colour = colour * (1 - thick) + white * thick
        return self._with_far_land(colour, directions, up)

    def _with_far_land(self, colour: np.ndarray, directions: np.ndarray, up: np.ndarray) -> np.ndarray:
        azimuth = np.arctan2(directions[:, 1], directions[:, 0])
        pixel = np.full(len(up), 2e-3, np.float32)
        outline = noise_texture().sample(azimuth, np.zeros_like(azimuth), pixel, np.pi / 2)
        elevation = np.float32(self.skyline) * np.exp(0.4 * outline[:, 0] + 0.2 * outline[:, 1])
        is_land = inside(elevation - up, pixel)[:, None]
        tone = np.exp(0.25 * noise_texture().sample(azimuth, up, pixel, 0.7)[:, :1])
        land = (0.35 * self.sky + 0.05 * self.sun) * np.float32([0.75, 0.8, 0.75]) * tone
        return colour * (1 - is_land) + land * is_land

    def mirrored_radiance(self, directions: np.ndarray) -> np.ndarray:
        """Return the light that mirrors see in `directions`, (N, 3): sky above the roofs, facades, and the road."""
        up = directions[:, 2]
        azimuth = np.arctan2(directions[:, 1], directions[:, 0])
        pixel = np.full(len(up), 8e-3, np.float32)
        noise = noise_texture().sample(azimuth, up, pixel, 3.3)
        roofs = 0.28 + 0.13 * noise_texture().sample(azimuth, np.zeros_like(azimuth), 8 * pixel, 2 * np.pi)[:, 2]
        is_sky = inside(up - roofs, np.float32(0.03))[:, None]
        facades = (0.3 * self.sky + 0.2 * self.sun) * np.exp(0.35 * noise[:, :1]) * np.where(up < 0, 0.5, 1.0)[:, None]
        return self.sky_radiance(directions) * is_sky + facades * (1 - is_sky)

    def lit(self, albedo, normals, in_sun, openness) -> np.ndarray:
        """Return the light that matt surfaces send, (N, 3).

        albedo: (N, 3). normals: (N, 3) in odom, towards the viewer. in_sun: (N,) in [0, 1]. openness: (N,) share of the
        sky that is not covered.
        """
        toward = np.maximum(normals @ self.sun_direction, 0) * in_sun
        from_sky = (0.5 + 0.5 * normals[:, 2:]) * openness[:, None]
        from_ground = (0.5 - 0.5 * normals[:, 2:]) * np.float32(0.14) * (0.4 + 0.6 * openness[:, None])
        level = self.sky + self.sun * max(float(self.sun_direction[2]), 0.0)
        around = 0.04 * level * openness[:, None]  # light from facades and road all around
        return albedo * (self.sun * toward[:, None] + self.sky * from_sky + level * from_ground + around)

    def through_haze(self, colour: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Return colours (N, 3) as seen from `distance` (N,) [m]."""
        share = (1 - np.exp(-distance / np.float32(self.haze)))[:, None].astype(np.float32)
        return colour * (1 - share) + (self.sky + 0.15 * self.sun) * share
