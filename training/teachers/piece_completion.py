# SPDX-License-Identifier: Apache-2.0
"""Complete the pieces that move: what flow adds to their border, and windows, which show what is behind them."""

import numba
import numpy as np

from zeroflow_ros.camera.opencv import load_opencv

_REACH = 10  # px: a piece grows by no more
_GAIN = 1.0  # px: the motion of the piece must fit the flow so much better than the ego motion
_FITS = 3.0  # px: and to within this
_SMOOTH = 5  # px: window of the median before the envelope, so that single pixels do not lift it
_RECESS = 1.5  # px: what lies farther behind the envelope is a window


def grow_piece(piece: np.ndarray, number: int, disparity: np.ndarray, ego_error: np.ndarray, piece_error) -> None:
    """Add to a piece the static pixels near it whose flow fits its motion better than the ego motion; in place.

    piece: (H, W) int, number of the piece of each pixel, negative where it is none. disparity: (H, W) [px]; pixels
    outside the range of the piece's disparities stay static. ego_error: (H, W) [px], distance of the measured flow
    from that of the ego motion; pixels where it is NaN stay static. piece_error: function of rows and columns (N,),
    returns the distance (N,) [px] from the flow of the piece's motion.
    """
    cv2 = load_opencv()
    rows, columns = np.nonzero(piece == number)
    if len(rows) == 0:
        return
    top, left = max(0, rows.min() - _REACH), max(0, columns.min() - _REACH)
    part = np.s_[top : rows.max() + 1 + _REACH, left : columns.max() + 1 + _REACH]
    inside = piece[part] == number
    low, high = np.percentile(disparity[part][inside], (2, 98))
    near = cv2.dilate(inside.view(np.uint8), np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.uint8)) > 0
    with np.errstate(invalid='ignore'):
        near &= (piece[part] < 0) & (ego_error[part] > _GAIN)
    near &= (disparity[part] > low - 2) & (disparity[part] < high + 2)
    y, x = np.nonzero(near)
    error = piece_error(y + top, x + left)
    with np.errstate(invalid='ignore'):
        near[y, x] = (error < _FITS) & (error + _GAIN < ego_error[part][y, x])
    together = cv2.morphologyEx((near | inside).view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    piece[part][(together > 0) & near] = number


def close_piece(piece: np.ndarray, number: int, disparity: np.ndarray, is_static: np.ndarray) -> None:
    """Fill the holes and the windows of a piece; changes piece and disparity in place.

    is_static: (H, W) bool, pixels that were measured to be static. A hole is what the piece encloses in its row and in
    its column, or what is not static in its convex hull, unless it is nearer than the piece. A window is what lies
    behind the surface of the piece. The front of a convex body has a concave disparity, because planes in space are
    planes in disparity: the surface is the concave envelope of the disparity along the row, and where the row is not
    enclosed that along the column, which continues upright beyond its ends.
    """
    cv2 = load_opencv()
    rows, columns = np.nonzero(piece == number)
    if len(rows) == 0:
        return
    part = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    inside, values, part_piece = piece[part] == number, disparity[part], piece[part]
    in_row = _spans(inside)
    hull = np.zeros(inside.shape, np.uint8)
    corners = cv2.convexHull(np.stack([columns - columns.min(), rows - rows.min()], axis=1).astype(np.int32))
    cv2.fillConvexPoly(hull, corners, 1)
    outline = (in_row & _spans(inside.T).T) | ((hull > 0) & ~is_static[part])
    smooth = cv2.medianBlur(np.ascontiguousarray(values, np.float32), _SMOOTH)
    along_row = _envelope(smooth, inside)
    along_column = _envelope(smooth.T.copy(), inside.T.copy()).T
    surface = np.where(in_row | ~np.isfinite(along_column), along_row, along_column)
    behind = outline & np.isfinite(surface) & (values < surface - _RECESS)
    part_piece[behind | (outline & (part_piece < 0) & (values < surface + _RECESS))] = number
    values[behind] = surface[behind]


def _spans(inside: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) that are inside or between two pixels inside of their row."""
    return np.logical_or.accumulate(inside, axis=1) & np.logical_or.accumulate(inside[:, ::-1], axis=1)[:, ::-1]


@numba.njit(cache=True, nogil=True)
def _envelope(values, inside):
    """Return the concave envelope of the values inside, along each row, (H, W) float32; infinite for empty rows.

    Beyond its ends it keeps the last value.
    """
    height, width = values.shape
    envelope = np.full((height, width), np.float32(np.inf))
    corners = np.empty(width, np.int64)
    for y in range(height):
        row = values[y]
        count = 0
        for x in range(width):
            if not inside[y, x]:
                continue
            while count > 1:
                a, b = corners[count - 2], corners[count - 1]
                if (row[b] - row[a]) * (x - a) > (row[x] - row[a]) * (b - a):
                    break
                count -= 1
            corners[count] = x
            count += 1
        if count > 0:
            envelope[y, : corners[0] + 1] = row[corners[0]]
            envelope[y, corners[count - 1] :] = row[corners[count - 1]]
        for k in range(count - 1):
            a, b = corners[k], corners[k + 1]
            for x in range(a, b + 1):
                envelope[y, x] = row[a] + (row[b] - row[a]) * (x - a) / (b - a)
    return envelope
