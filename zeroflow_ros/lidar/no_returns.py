# SPDX-License-Identifier: Apache-2.0
"""Rows that stand for no return, though they have finite coordinates: one placeholder for all, or the maximum range.

Drivers write -1 -1 -1, or move their cloud into the frame of the vehicle, which turns 0 0 0 into the position of the
sensor; rounding leaves some of them millimetres away from it. Simulators clamp rays that hit nothing to the maximum
range. Real returns do not repeat: of 1024 rows of quantised clouds at most two have the same coordinates.
"""

import numpy as np

_SAMPLE = 1024  # rows
_AT_SENSOR = 0.005  # m: nearer than any sensor measures
_MIN_ROWS = 500  # a smaller cloud does not show what repeats
_REPEATED = 0.01  # share of the sample with the same coordinates
_AT_MAXIMUM = 0.05  # share of the sample at the largest range
_SAME_RANGE = 5e-4  # of the range: 2 cm at 40 m, for rounded coordinates
_MIN_SPREAD = 0.02  # of the sine of elevation: a ring that one beam draws on level ground has one elevation


def remove_no_returns(points: np.ndarray) -> str:
    """Set rows of points (N, 3) float32 [m] that stand for no return to NaN, in place.

    Returns a sentence on what was removed, '' for nothing.
    """
    if len(points) < _MIN_ROWS:
        return ''
    sample = points[:: max(len(points) // _SAMPLE, 1) | 1]
    sample = sample[sample[:, 0] == sample[:, 0]].astype(np.float64)  # without NaN
    if len(sample) < _MIN_ROWS // 4:
        return ''
    notes = []
    with np.errstate(over='ignore', invalid='ignore'):
        near = (np.abs(sample) < _AT_SENSOR).all(axis=1)
        if near.any():
            rows = _rows_at_sensor(points)
            points[rows] = np.nan
            sample = sample[~near]
            notes.append(f'{len(rows)} of {len(points)} points lie in the origin of the sensor')
        if (placeholder := _repeated(sample)) is not None:
            repeated = placeholder.astype(np.float32)
            rows = np.flatnonzero(points[:, 0] == repeated[0])
            for axis in (1, 2):
                rows = rows[points[rows, axis] == repeated[axis]]
            points[rows] = np.nan
            sample = sample[(sample != placeholder).any(axis=1)]
            x, y, z = placeholder
            notes.append(f'{len(rows)} of {len(points)} points have the same coordinates, {x:.4g} {y:.4g} {z:.4g}')
        if (maximum := _maximum_range(sample)) is not None:
            low = maximum * (1 - _SAME_RANGE)
            rows = np.flatnonzero(np.einsum('ij,ij->i', points, points) >= low**2)
            points[rows] = np.nan
            notes.append(f'{len(rows)} of {len(points)} points lie at exactly {maximum:.2f} m, in every direction')
    if not notes:
        return ''
    return f'{", and ".join(notes)}; they are taken as no returns. Make the driver leave such rows out, or write NaN.'


def _rows_at_sensor(points: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows of points (N, 3) in the origin; axis by axis, as few rows pass the first."""
    rows = np.flatnonzero(np.abs(points[:, 0]) < _AT_SENSOR)
    for axis in (1, 2):
        rows = rows[np.abs(points[rows, axis]) < _AT_SENSOR]
    return rows


def _repeated(sample: np.ndarray) -> np.ndarray | None:
    """Return the coordinates (3,) that many rows (n, 3) have, None where there are none."""
    # Irrational weights: different points have different sums.
    keys = sample[:, 0] + 0.7548776662466927 * sample[:, 1] + 0.5698402909980532 * sample[:, 2]
    sums = np.sort(keys)
    needed = int(np.ceil(_REPEATED * len(sums))) + 1
    same = np.flatnonzero(sums[needed - 1 :] == sums[: len(sums) - needed + 1])
    if not len(same):
        return None
    found = sample[keys == sums[same[0]]]
    return found[0] if (found == found[0]).all() and len(found) < len(sample) else None


def _maximum_range(sample: np.ndarray) -> float | None:
    """Return the range that many of points (n, 3) have in many directions, if no point is farther away; else None."""
    if not len(sample):
        return None
    ranges = np.sqrt(np.einsum('ij,ij->i', sample, sample))
    maximum = float(ranges.max())
    if not 0 < maximum < np.inf:
        return None
    at = sample[ranges >= maximum * (1 - _SAME_RANGE)]
    if not _AT_MAXIMUM * len(sample) < len(at) < len(sample):
        return None
    spread = np.ptp(np.quantile(at / maximum, (0.05, 0.95), axis=0), axis=0)
    return maximum if (spread > _MIN_SPREAD).all() else None
