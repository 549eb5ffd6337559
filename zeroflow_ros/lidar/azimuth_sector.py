# SPDX-License-Identifier: Apache-2.0
"""The sector of the circle that the points of a cloud cover, from a sample of them."""

import math
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.lidar.cloud_layout import check_rows, read_fields, xyz_columns
from zeroflow_ros.lidar.spin_axis import azimuth_about

_SAMPLE = 2000  # rows
_MIN_RETURNS = 50  # fewer show no sector
_NUM_BINS = 180  # of 2 degrees
_STRAY = 0.25  # a bin with less than this share of what bins with few points hold has stray points only
_TURN = 2 * np.pi


@dataclass(frozen=True, eq=False)
class Sector:
    """A sector of the circle around the origin of a cloud.

    start, end: azimuths of its edges, counter-clockwise from start to end [rad]. width: [rad]. bins: (180,) bool, from
    -pi. fill: share of the sector in which there are points.
    """

    start: float
    end: float
    width: float
    bins: np.ndarray
    fill: float

    @property
    def centre(self) -> float:
        """Azimuth of the middle [rad]."""
        return self.start + self.width / 2


def azimuth_sector(msg, axis: int = 2) -> Sector | None:
    """Return the sector outside the largest gap between the azimuths of a PointCloud2; None with too few returns.

    axis: of the frame of the cloud, about which the azimuths are; 2 is z.
    Raises: CloudError when header and data contradict each other.
    """
    returns = sample_returns(msg)
    return None if returns is None else sector_of(azimuth_about(returns, axis))


def sample_returns(msg) -> np.ndarray | None:
    """Return a sample of the points of a PointCloud2, (N, 3) float32 [m], without no returns; None for too few.

    Raises: CloudError when header and data contradict each other.
    """
    rows = check_rows(msg)
    num_rows = rows.height * rows.width
    if num_rows < _MIN_RETURNS:
        return None
    columns = xyz_columns(read_fields(msg), rows.is_bigendian, rows.point_step)
    step = max(num_rows // _SAMPLE, 1)
    while math.gcd(step, rows.width) > 1 or math.gcd(step, rows.height) > 1:  # else always the same columns
        step += 1
    with np.errstate(over='ignore', invalid='ignore'):
        points = [rows.view(dtype, offset).reshape(-1)[::step].astype(np.float32) for offset, dtype in columns]
        points = np.stack(points, axis=1)
        reach = np.abs(points).sum(axis=1)
    points = points[(reach > 0) & (reach < np.inf)]  # also without NaN
    return points if len(points) >= _MIN_RETURNS else None


def sector_of(azimuths: np.ndarray) -> Sector | None:
    """Return the sector that azimuths (N,) [rad] cover; None for too few."""
    if len(azimuths) < _MIN_RETURNS:
        return None
    place = np.minimum(((azimuths + np.pi) * (_NUM_BINS / _TURN)).astype(np.int64), _NUM_BINS - 1)
    counts = np.bincount(place, minlength=_NUM_BINS)
    by_size = np.sort(counts)
    # Points in a bin where there are few: one tenth of the points are in bins with fewer. Rain is less than that.
    few = by_size[np.searchsorted(np.cumsum(by_size), 0.1 * len(azimuths))]
    occupied = counts > _STRAY * few
    filled = np.flatnonzero(occupied)
    gaps = np.diff(filled, append=filled[0] + _NUM_BINS) - 1
    widest = int(gaps.argmax())
    if gaps[widest] == 0:
        return Sector(-np.pi, -np.pi, _TURN, np.ones(_NUM_BINS, bool), 1.0)
    last, first = int(filled[widest]), int(filled[(widest + 1) % len(filled)])
    start, end = float(azimuths[place == first].min()), float(azimuths[place == last].max())
    bins = np.zeros(_NUM_BINS, bool)
    num_bins = _NUM_BINS - int(gaps[widest])
    bins[(first + np.arange(num_bins)) % _NUM_BINS] = True
    # A sector of one bin may have its edges in either order.
    width = (end - start) % _TURN if num_bins > 1 else end - start
    return Sector(start, end, width, bins, len(filled) / num_bins)


def advance(azimuth0: float, azimuth1: float) -> float:
    """Return the angle from one azimuth to another, in [-pi, pi) [rad]."""
    return (azimuth1 - azimuth0 + np.pi) % _TURN - np.pi


def overlap(sector0: Sector, sector1: Sector) -> float:
    """Return the share of the union of two sectors that both cover."""
    return float((sector0.bins & sector1.bins).sum() / (sector0.bins | sector1.bins).sum())


def joins_on(sector0: Sector, sector1: Sector, direction: int) -> bool:
    """Return whether a sector begins where the one before ended; direction: 1 counter-clockwise, -1 clockwise.

    Parts overlap because the beams of a LiDAR point in different directions, or the origin of the cloud is not the
    sensor; nothing in view at an edge leaves a gap.
    """
    gap = advance(sector0.end, sector1.start) if direction > 0 else advance(sector1.end, sector0.start)
    width = min(sector0.width, sector1.width)
    slack = np.radians(3)
    return -min(0.6 * width, np.radians(25)) - slack <= gap <= min(0.5 * width, np.radians(15)) + slack
