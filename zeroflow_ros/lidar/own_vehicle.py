# SPDX-License-Identifier: Apache-2.0
"""Take the points on the own vehicle and its rider out of a sweep."""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, invert


@dataclass(frozen=True)
class OwnVehicle:
    """Where points belong to the own vehicle. Such points count as no returns.

    ego_box: (x_min, x_max, y_min, y_max, z_min, z_max) [m], in the base frame where the mount of the sensor is known,
    else in the frame of the clouds; () for none. min_range: distance from the origin of the cloud frame below which
    points are removed [m]; 0 for none.
    Raises: ConfigError.
    """

    ego_box: tuple[float, ...] = ()
    min_range: float = 0.0

    def __post_init__(self):
        box = self.ego_box
        is_box = len(box) in (0, 6) and np.isfinite(box).all()
        if not is_box or any(low >= high for low, high in zip(box[::2], box[1::2], strict=True)):
            raise ConfigError(
                'ego_box must be [x_min, x_max, y_min, y_max, z_min, z_max] in metres, each minimum below its maximum, '
                f'got {list(box)[:12]}. For example [-1.0, 4.0, -1.0, 1.0, 0.0, 2.0].'
            )
        if not (np.isfinite(self.min_range) and self.min_range >= 0):
            raise ConfigError(f'min_range must be 0 or a distance in metres, got {self.min_range}.')

    @classmethod
    def from_text(cls, ego_box: str, min_range: float = 0.0) -> 'OwnVehicle':
        """Return the region of 'x_min,x_max,y_min,y_max,z_min,z_max', '' for none. Raises: ConfigError or DataError."""
        try:
            return cls(tuple(map(float, ego_box.split(','))) if ego_box else (), min_range)
        except ValueError as error:
            raise DataError(f'ego_box should be x_min,x_max,y_min,y_max,z_min,z_max, got {ego_box!r}.') from error

    def __bool__(self) -> bool:
        return bool(self.ego_box) or self.min_range > 0

    def remove(self, sweep: Sweep, base_T_sensor: np.ndarray | None) -> Sweep:
        """Return the sweep with own_rows, whose points are set to NaN in place.

        base_T_sensor: (4, 4), mount of the frame of the sweep; None where it is not known.
        """
        if not self:
            return sweep
        rows = self.rows(sweep.points, base_T_sensor)
        sweep.points[rows] = np.nan
        return replace(sweep, own_rows=rows)

    def rows(self, points: np.ndarray, base_T_sensor: np.ndarray | None) -> np.ndarray:
        """Return the row numbers (K,) of points (N, 3) [m] on the own vehicle; NaN rows are not among them."""
        base_T_sensor = np.eye(4) if base_T_sensor is None else base_T_sensor
        reach = max(self.min_range, self._reach(base_T_sensor))
        with np.errstate(over='ignore', invalid='ignore'):
            distance_squared = np.einsum('ij,ij->i', points, points)
            near = np.flatnonzero(distance_squared <= reach**2)  # few points: the rest is fast
        is_own = distance_squared[near] < self.min_range**2
        if self.ego_box:
            lows, highs = np.reshape(self.ego_box, (3, 2)).T
            in_base = apply(base_T_sensor, points[near].astype(np.float64))
            is_own |= ((in_base >= lows) & (in_base <= highs)).all(axis=1)
        return near[is_own]

    def _reach(self, base_T_sensor: np.ndarray) -> float:
        """Return the distance from the sensor to the farthest corner of the box, with a margin for rounding [m]."""
        if not self.ego_box:
            return 0.0
        corners = np.array(list(itertools.product(*np.reshape(self.ego_box, (3, 2)))))
        return float(np.linalg.norm(apply(invert(base_T_sensor), corners), axis=1).max()) + 0.01
