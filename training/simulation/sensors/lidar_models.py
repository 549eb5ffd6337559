# SPDX-License-Identifier: Apache-2.0
"""The spinning LiDARs that can be simulated: where their beams point and how they are mounted."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LidarModel:
    """A spinning LiDAR, or two stacked ones combined into one cloud.

    name: the key in LIDAR_MODELS.
    rate_hz: sweeps per second.
    elevations_deg: one per beam, up is positive.
    num_azimuths: firings per revolution.
    mount_height: lowest and highest mount above ground [m]; each clip draws one.
    azimuth_offsets_deg: one per beam, or empty for none.
    height_offsets: beam origin above the LiDAR frame [m], one per beam, or empty for none.
    max_range: [m].
    """

    name: str
    rate_hz: float
    elevations_deg: tuple[float, ...]
    num_azimuths: int
    mount_height: tuple[float, float]
    azimuth_offsets_deg: tuple[float, ...] = ()
    height_offsets: tuple[float, ...] = ()
    max_range: float = 120.0

    def __post_init__(self):
        for name in ('azimuth_offsets_deg', 'height_offsets'):
            values = getattr(self, name)
            if values and len(values) != self.num_beams:
                raise ValueError(f'{name} must have one entry per beam ({self.num_beams}) or none, got {len(values)}')

    @property
    def num_beams(self) -> int:
        return len(self.elevations_deg)

    def rays(self, start_azimuth: float) -> tuple[np.ndarray, np.ndarray]:
        """Return origins and unit directions of one revolution in the LiDAR frame.

        start_azimuth: [rad]. Returns (num_azimuths * num_beams, 3) float32 twice; neighbours in azimuth are `num_beams`
        rows apart.
        """
        elevation = np.radians(self.elevations_deg)
        offset = np.radians(self.azimuth_offsets_deg or np.zeros(self.num_beams))
        azimuth = start_azimuth - np.arange(self.num_azimuths)[:, None] * 2 * np.pi / self.num_azimuths + offset
        directions = np.empty((*azimuth.shape, 3), np.float32)
        directions[..., 0] = np.cos(elevation) * np.cos(azimuth)
        directions[..., 1] = np.cos(elevation) * np.sin(azimuth)
        directions[..., 2] = np.sin(elevation)
        origins = np.zeros_like(directions)
        origins[..., 2] = self.height_offsets or 0.0
        return origins.reshape(-1, 3), directions.reshape(-1, 3)


# Source: Velodyne VLP-32C user manual, beam elevations [deg]; dense near the horizon, sparse above and below.
_VLP32C = (
    -25.0,
    -15.639,
    -11.31,
    -8.843,
    -7.254,
    -6.148,
    -5.333,
    -4.667,
    -4.0,
    -3.667,
    -3.333,
    -3.0,
    -2.667,
    -2.333,
    -2.0,
    -1.667,
    -1.333,
    -1.0,
    -0.667,
    -0.333,
    0.0,
    0.333,
    0.667,
    1.0,
    1.333,
    1.667,
    2.333,
    3.333,
    4.667,
    7.0,
    10.333,
    15.0,
)
# Source: Velodyne HDL-64E manual: an upper block 1/3 deg apart from +2, a lower one 1/2 deg apart from -8.83.
_HDL64E = tuple(np.round(np.concatenate([np.linspace(2.0, -8.33, 32), np.linspace(-8.83, -24.33, 32)]), 3).tolist())
_HDL64E_STAGGER = tuple(np.round(np.tile([-0.06, 0.03, -0.03, 0.06], 16), 3).tolist())
_HDL32E = tuple(np.round(np.linspace(10.67, -30.67, 32), 3).tolist())

LIDAR_MODELS: dict[str, LidarModel] = {
    model.name: model
    for model in (
        LidarModel('hdl64', 10.0, _HDL64E, 2083, (1.65, 1.9), _HDL64E_STAGGER),
        LidarModel('hdl64_high', 10.0, _HDL64E, 1800, (1.95, 2.5), _HDL64E_STAGGER),
        # As on Argoverse 2: the lower sensor hangs upside down, so its dense beams lie just above the horizon.
        LidarModel(
            'dual32',
            10.0,
            _VLP32C + tuple(-e for e in _VLP32C),
            1800,
            (1.6, 2.1),
            (0.0,) * 32 + (0.1,) * 32,
            (0.0,) * 32 + (-0.115,) * 32,
        ),
        LidarModel('os128', 10.0, tuple(np.round(np.linspace(22.5, -22.5, 128), 3).tolist()), 1024, (1.4, 2.6)),
        LidarModel('hdl32', 10.0, _HDL32E, 2000, (1.6, 2.0), max_range=90.0),
        LidarModel('hdl32_20hz', 20.0, _HDL32E, 1084, (1.6, 2.0), max_range=90.0),
    )
}
