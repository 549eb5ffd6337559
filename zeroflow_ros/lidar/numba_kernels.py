# SPDX-License-Identifier: Apache-2.0
"""Numba kernels of the loops over points: cloud rows, deskewing, pillar encoder, point head.

The innermost loops have a length known at compile time and no branch, so that LLVM vectorises them: two to four times
as fast.
"""

import math
from functools import lru_cache

import numba
import numpy as np

_compiled = numba.njit(cache=True, nogil=True, error_model='numpy')
# Sums may be reordered, so that they vectorise. Not for code that handles NaN.
_compiled_finite = numba.njit(cache=True, nogil=True, error_model='numpy', fastmath={'reassoc', 'contract', 'nsz'})
_HALF, _SQRT_HALF = np.float32(0.5), np.float32(0.5**0.5)


@_compiled
def assign_points(points, matrix, grid, centres, cell_index, pillar_of_cell, cell_of_pillar, sums):
    """Find the cell of every point and number the pillars in order of first use; return the number of pillars.

    points: (N, 3) float32. matrix: (3, 4) float32, applied to the points first. grid: (cells, 1 / cell, z_min, z_max),
    float32. centres: (cells * cells, 3) float32 of the pillars. Outputs: cell_index (N,) int32, -1 outside;
    pillar_of_cell (cells * cells,) int32, all -1 before; cell_of_pillar (P,) int32; sums (P, 4) float32 of x, y and z
    minus the centre, and of 1. Sums of coordinates far from the vehicle would round by up to 0.1 mm.
    """
    size, inv_cell, z_min, z_max = grid
    half = size * np.float32(0.5)
    num_pillars = 0
    for i in range(len(points)):
        x, y, z = transform_point(points, i, matrix)
        column = np.floor(x * inv_cell + half)
        row = np.floor(y * inv_cell + half)
        cell_index[i] = -1
        if column >= 0 and column < size and row >= 0 and row < size and z >= z_min and z < z_max:
            cell = np.int32(row * size + column)
            cell_index[i] = cell
            pillar = pillar_of_cell[cell]
            if pillar < 0:
                pillar = num_pillars
                num_pillars += 1
                pillar_of_cell[cell] = pillar
                cell_of_pillar[pillar] = cell
                sums[pillar] = 0
            # The first row of cells has the centres of all columns, which are those of the rows, too.
            sums[pillar, 0] += x - centres[np.int32(column), 0]
            sums[pillar, 1] += y - centres[np.int32(row), 0]
            sums[pillar, 2] += z - centres[0, 2]
            sums[pillar, 3] += 1
    return num_pillars


@numba.njit(inline='always')
def transform_point(points, i, matrix):
    """Return x, y and z of point i transformed by a (3, 4) matrix, with the rounding of `transforms.apply`."""
    x, y, z = points[i, 0], points[i, 1], points[i, 2]
    return (
        x * matrix[0, 0] + y * matrix[0, 1] + z * matrix[0, 2] + matrix[0, 3],
        x * matrix[1, 0] + y * matrix[1, 1] + z * matrix[1, 2] + matrix[1, 3],
        x * matrix[2, 0] + y * matrix[2, 1] + z * matrix[2, 2] + matrix[2, 3],
    )


@lru_cache
def make_pool_pillars(num_channels):
    """Return a compiled function that averages relu(Linear) over each pillar, for C = num_channels.

    Its arguments: points, matrix, the outputs of `assign_points`, the number of pillars, centres (G * G, 3), weight
    (9 * C,) for xyz, xyz minus the mean and xyz minus the centre, bias (C,), pooled (P, 2C). The result is written to
    the second half of each row of pooled. The Linear is split as in `PillarEncoder.encode`; its constant part per
    pillar is written to the first half.
    """
    C = num_channels

    def pool_pillars(points, matrix, cell_index, pillar_of_cell, cell_of_pillar, sums, num_pillars, centres, weight,
                     bias, pooled):  # fmt: skip
        per_point = weight[: 3 * C] + weight[3 * C : 6 * C] + weight[6 * C :]
        for pillar in range(num_pillars):
            row, inv_count = pooled[pillar], 1 / sums[pillar, 3]
            centre = centres[cell_of_pillar[pillar]]
            for c in range(C):
                row[c] = bias[c]
                row[C + c] = 0
            for axis in range(3):
                mean = centre[axis] + sums[pillar, axis] * inv_count
                for c in range(C):
                    row[c] -= weight[(3 + axis) * C + c] * mean + weight[(6 + axis) * C + c] * centre[axis]
        flat = pooled.reshape(-1)
        for i in range(len(points)):
            if cell_index[i] >= 0:
                start = np.uint64(pillar_of_cell[cell_index[i]]) * np.uint64(2 * C)
                x, y, z = transform_point(points, i, matrix)
                for c in range(C):
                    value = flat[start + np.uint64(c)]
                    value += per_point[c] * x + per_point[C + c] * y + per_point[2 * C + c] * z
                    flat[start + np.uint64(C + c)] += value + abs(value)  # twice the relu; max is not vectorised
        for pillar in range(num_pillars):
            inv_count = _HALF / sums[pillar, 3]
            for c in range(C):
                pooled[pillar, C + c] *= inv_count

    return _compiled(pool_pillars)


@_compiled
def scatter_pillars(image, pillar_of_cell, old_cells, cells, pooled):
    """Clear the old pillars of an image (C, G * G), write the new ones, and reset pillar_of_cell to -1.

    old_cells, cells: (P,) int32. pooled: (P, 2C), the second half of each row is copied to the image.
    """
    num_channels = len(image)
    for channel in range(num_channels):
        line = image[channel]
        for cell in old_cells:
            line[cell] = 0
        for pillar in range(len(cells)):
            line[cells[pillar]] = pooled[pillar, num_channels + channel]
    for cell in cells:
        pillar_of_cell[cell] = -1


@lru_cache
def make_scatter_quantized(num_channels):
    """Return a compiled function that does what `scatter_pillars` does, for an image of uint8, for C = num_channels.

    Its arguments: image (G * G, K), the first of its channels to write, pillar_of_cell, old_cells, cells, pooled, and
    scale and zero_point, float32, of a `Quantization`.
    """
    C = num_channels

    def scatter_quantized(image, first, pillar_of_cell, old_cells, cells, pooled, scale, zero_point):
        empty, most = np.uint8(zero_point), np.float32(255)
        for cell in old_cells:
            for c in range(first, first + C):
                image[cell, c] = empty
        for pillar in range(len(cells)):
            cell, row = cells[pillar], pooled[pillar]
            pillar_of_cell[cell] = -1
            for c in range(C):
                value = np.rint(row[C + c] / scale) + zero_point
                value = _HALF * (value + abs(value))  # at least 0
                below = most - value
                image[cell, first + c] = np.uint8(most - _HALF * (below + abs(below)))

    return _compiled(scatter_quantized)


@lru_cache
def make_flow_points(num_hidden, leak):
    """Return a compiled function that writes the flow (N, 3) of each point, for H = num_hidden; see `PointHead`.

    leak: slope of the activation below 0; None for GELU.
    Its arguments: points, matrix, cell_index, centres (G * G, 3), row_of_cell (G * G,), hidden (G * G * H,), its
    zero_point and scale (0 and 1 where it is float32), weight (6 * H,) of the offset and of the output, bias (3,), flow
    (N, 3). Points without a cell get NaN.
    """
    H, has_gelu, leak = num_hidden, leak is None, np.float32(leak or 0)

    def flow_points(points, matrix, cell_index, centres, row_of_cell, hidden, zero_point, scale, weight, bias, flow):
        for i in range(len(points)):
            cell = cell_index[i]
            if cell < 0:
                flow[i, 0] = flow[i, 1] = flow[i, 2] = np.nan
                continue
            x, y, z = transform_point(points, i, matrix)
            x -= centres[cell, 0]
            y -= centres[cell, 1]
            z -= centres[cell, 2]
            start = np.uint64(row_of_cell[cell]) * np.uint64(H)
            vx, vy, vz = bias[0], bias[1], bias[2]
            for h in range(H):
                value = (np.float32(hidden[start + np.uint64(h)]) - zero_point) * scale
                value += weight[h] * x + weight[H + h] * y + weight[2 * H + h] * z
                if has_gelu:
                    value *= _HALF * (1 + np.float32(math.erf(value * _SQRT_HALF)))
                else:
                    value = max(value, leak * value)
                vx += value * weight[3 * H + h]
                vy += value * weight[4 * H + h]
                vz += value * weight[5 * H + h]
            flow[i, 0], flow[i, 1], flow[i, 2] = vx, vy, vz

    return _compiled_finite(flow_points)


@_compiled
def read_xyz(rows, columns, points):
    """Write x, y and z of rows (N, W) float32 into points (N, 3); NaN where one is not finite, or all are 0."""
    x_column, y_column, z_column = columns
    for i in range(len(rows)):
        x, y, z = rows[i, x_column], rows[i, y_column], rows[i, z_column]
        if np.isfinite(x) and np.isfinite(y) and np.isfinite(z) and (x != 0 or y != 0 or z != 0):
            points[i, 0], points[i, 1], points[i, 2] = x, y, z
        else:
            points[i, 0] = points[i, 1] = points[i, 2] = np.nan


@_compiled
def deskew(points, times, first, bins_per_second, table, deskewed):
    """Write points (N, 3) into deskewed, each transformed by the row of table (B, 3, 4) for its time (N,) [s].

    first: start time of row 0; times outside the table use its first or last row. All float32.
    """
    last = np.float32(len(table) - 1)
    for i in range(len(points)):
        row = np.uint32(min(max((times[i] - first) * bins_per_second, np.float32(0)), last))
        x, y, z = transform_point(points, i, table[row])
        deskewed[i, 0], deskewed[i, 1], deskewed[i, 2] = x, y, z


@_compiled
def to_velocity(flow, per_second, flags, velocity, flow_valid):
    """Write flow (N, 3) * per_second into velocity and flags into flow_valid (N,); NaN and 0 for non-finite rows."""
    for i in range(len(flow)):
        x, y, z = flow[i, 0] * per_second, flow[i, 1] * per_second, flow[i, 2] * per_second
        if np.isfinite(x) and np.isfinite(y) and np.isfinite(z):
            velocity[i, 0], velocity[i, 1], velocity[i, 2] = x, y, z
            flow_valid[i] = flags
        else:
            velocity[i, 0] = velocity[i, 1] = velocity[i, 2] = np.nan
            flow_valid[i] = 0


@_compiled
def write_flow_rows(rows, velocity, flow_valid, out, out_as_float):
    """Copy rows (N, W) uint32 to out (N, W + 5) uint32 and append vx, vy, vz, speed and flow_valid.

    velocity: (N, 3) float32. flow_valid: (N,) uint8. out_as_float: the memory of out as float32.
    """
    width = rows.shape[1]
    for i in range(len(rows)):
        for word in range(width):
            out[i, word] = rows[i, word]
        x, y, z = velocity[i, 0], velocity[i, 1], velocity[i, 2]
        out_as_float[i, width] = x
        out_as_float[i, width + 1] = y
        out_as_float[i, width + 2] = z
        out_as_float[i, width + 3] = np.sqrt(x * x + y * y + z * z)
        out[i, width + 4] = flow_valid[i]


@_compiled
def sort_into_cells(points, matrix, wanted, inv_cell, size, kept, starts, mapped):
    """Write the points (N, 3) in wanted cells, transformed by matrix (3, 4) and sorted by cell; return their number.

    wanted: (size * size,) bool, cells of side 1 / inv_cell around the origin. Outputs: kept (N, 2) int32, rows and
    cells; starts (size * size + 1,) int32, 0 before, the first point of each cell; mapped (N, 3).
    """
    half, count = np.float32(size // 2), 0
    for i in range(len(points)):
        x, y, z = transform_point(points, i, matrix)
        column, line = np.floor(x * inv_cell) + half, np.floor(y * inv_cell) + half
        if column >= 1 and column < size - 1 and line >= 1 and line < size - 1 and np.isfinite(z):
            cell = np.int32(column * size + line)
            if wanted[cell]:
                kept[count, 0], kept[count, 1] = i, cell
                count += 1
                starts[cell + 1] += 1
    for cell in range(size * size):
        starts[cell + 1] += starts[cell]
    for k in range(count - 1, -1, -1):  # from the end of each cell to its start, where starts[cell + 1] arrives
        i, cell = kept[k, 0], kept[k, 1]
        starts[cell + 1] -= 1
        row = starts[cell + 1]
        mapped[row, 0], mapped[row, 1], mapped[row, 2] = transform_point(points, i, matrix)
    for cell in range(size * size):
        starts[cell] = starts[cell + 1]
    starts[size * size] = count
    return count


@_compiled
def nearest_point(points, starts, x, y, z, inv_cell, size, limit):
    """Return the row of the nearest of points (M, 3) and its distance; -1 and limit [m] if none is nearer.

    The points are sorted by cell. starts: (size * size + 1,) int32, the first of each cell. Cells have the side
    1 / inv_cell, which is not below limit, and the origin in the middle.
    """
    half = np.float32(size // 2)
    column, line = np.floor(x * inv_cell), np.floor(y * inv_cell)
    in_x, in_y = x - column / inv_cell, y - line / inv_cell  # from the low sides of the cell
    column, line = column + half, line + half
    nearest, row = limit * limit, np.int32(-1)
    if column >= 1 and column < size - 1 and line >= 1 and line < size - 1:
        cell = np.int32(column * size + line)
        for a in (0, 1, -1):  # its own cell first; then of its neighbours those that are nearer than the nearest point
            off_x = np.float32(0) if a == 0 else in_x if a < 0 else 1 / inv_cell - in_x
            for b in (0, 1, -1):
                off_y = np.float32(0) if b == 0 else in_y if b < 0 else 1 / inv_cell - in_y
                if off_x * off_x + off_y * off_y >= nearest:
                    continue
                neighbour = cell + a * size + b
                for i in range(starts[neighbour], starts[neighbour + 1]):
                    dx, dy, dz = points[i, 0] - x, points[i, 1] - y, points[i, 2] - z
                    squared = (dx * dx + dy * dy) + dz * dz
                    if squared < nearest:
                        nearest, row = squared, np.int32(i)
    return row, np.sqrt(nearest)


@_compiled
def surface_weights(points, first, used, cluster, radius, along, weights):
    """Write the weights (Q, 3) of the offsets of used points (Q,); see `_surface_weights` of object_motion.py.

    points: (K, 3), of all clusters, one after the other. first: (C + 1,), where each begins. cluster: (Q,), that of the
    used points. radius [m]: of the points around one that show its surface. along: weight along a flat surface.
    """
    for k in range(len(used)):
        own_x, own_y = points[used[k], 0], points[used[k], 1]
        count, x, y, xx, xy, yy = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(first[cluster[k]], first[cluster[k] + 1]):
            dx, dy = points[i, 0] - own_x, points[i, 1] - own_y
            if dx * dx + dy * dy < radius * radius:
                count, x, y, xx, xy, yy = count + 1, x + dx, y + dy, xx + dx * dx, xy + dx * dy, yy + dy * dy
        weights[k, 0], weights[k, 1], weights[k, 2] = 1, 0, 1
        if count < 4:
            continue
        x, y = x / count, y / count
        xx, xy, yy = xx / count - x * x, xy / count - x * y, yy / count - y * y
        middle, half = (xx + yy) / 2, math.sqrt((xx - yy) * (xx - yy) / 4 + xy * xy)
        if middle + half < 1e-4 or half == 0:
            continue
        less = 1 - min(1.0, along + 2 * max(middle - half, 0.0) / (middle + half))
        # The direction of the larger spread, (cos a, sin a): cos 2a and sin 2a follow from the spreads.
        cosine, sine = (xx - yy) / (2 * half), xy / half
        weights[k, 0] = 1 - less * (1 + cosine) / 2
        weights[k, 1] = -less * sine / 2
        weights[k, 2] = 1 - less * (1 - cosine) / 2


@_compiled
def fit_clusters(clusters, body, surface, first, start, sweep, starts, points, intervals, grid, kernels, prior, stride,
                 converged, motion, misfits):  # fmt: skip
    """Fit the translation of some clusters by iterative closest points; see `closest_point_motion`.

    clusters: (low, high), those to fit. body: (Q, 3), of all clusters, one after the other. surface: (Q, 3), weights
    xx, xy, yy of the offsets. first: (C + 1,), where each begins. start: (C, 3). points: (M, 3), of all earlier sweeps,
    one after the other. sweep: (S + 1,), where each begins. starts: (S, cells + 1), see `nearest_point`. intervals:
    (S,). grid: (inv_cell, size, limit). stride: factor of the steps. Outputs: motion (C, 3), misfits (C, 3).
    """
    inv_cell, size, limit = grid
    for cluster in range(clusters[0], clusters[1]):
        low, high = first[cluster], first[cluster + 1]
        held = prior * (high - low)
        x, y = start[cluster, 0], start[cluster, 1]
        for step in range(len(kernels)):
            xx, xy, yy = held, 0.0, held
            pull_x, pull_y = held * (start[cluster, 0] - x), held * (start[cluster, 1] - y)
            total = 0.0
            for k in range(len(intervals)):
                cloud, times = points[sweep[k] : sweep[k + 1]], intervals[k]
                for i in range(low, high):
                    at_x, at_y = body[i, 0] + x * times, body[i, 1] + y * times
                    row, away = nearest_point(cloud, starts[k], at_x, at_y, body[i, 2], inv_cell, size, limit)
                    total += away
                    if row >= 0:
                        ratio = away / kernels[step]
                        w = 1 / ((1 + ratio * ratio) * (1 + ratio * ratio))
                        w_xx, w_xy, w_yy = w * surface[i, 0], w * surface[i, 1], w * surface[i, 2]
                        xx, xy, yy = xx + w_xx * times, xy + w_xy * times, yy + w_yy * times
                        off_x, off_y = cloud[row, 0] - at_x, cloud[row, 1] - at_y
                        pull_x += w_xx * off_x + w_xy * off_y
                        pull_y += w_xy * off_x + w_yy * off_y
            if step == 0:
                misfits[cluster, 0] = total / (high - low)
            scale = stride / (xx * yy - xy * xy)
            step_x, step_y = (
                np.float32(scale * (yy * pull_x - xy * pull_y)),
                np.float32(scale * (xx * pull_y - xy * pull_x)),
            )
            x, y = x + step_x, y + step_y
            if max(abs(step_x), abs(step_y)) <= converged:
                break
        motion[cluster, 0], motion[cluster, 1] = x, y
        for trial in (1, 2):
            trial_x, trial_y = (x, y) if trial == 1 else (np.float32(0), np.float32(0))
            total = 0.0
            for k in range(len(intervals)):
                cloud, times = points[sweep[k] : sweep[k + 1]], intervals[k]
                for i in range(low, high):
                    at_x, at_y = body[i, 0] + trial_x * times, body[i, 1] + trial_y * times
                    total += nearest_point(cloud, starts[k], at_x, at_y, body[i, 2], inv_cell, size, limit)[1]
            misfits[cluster, trial] = total / (high - low)


@_compiled
def lowest_in_cells(points, matrix, inv_cell, size, margin, slope, lowest):
    """Write the lowest z of the points (N, 3), transformed by matrix (3, 4), into lowest (size, size), inf before.

    Points lower than margin [m] plus slope times their distance along x and y below z = 0 are ignored.
    """
    half = np.float32(size // 2)
    for i in range(len(points)):
        x, y, z = transform_point(points, i, matrix)
        column, row = np.floor(x * inv_cell) + half, np.floor(y * inv_cell) + half
        if column >= 0 and column < size and row >= 0 and row < size and z < lowest[int(column), int(row)]:
            if z >= -margin - slope * (abs(x) + abs(y)):
                lowest[int(column), int(row)] = z


@_compiled
def longer_than(flow, length, rows, squared):
    """Write the finite rows of flow (N, 3) longer than a length, and their squares, in order; return their number."""
    count = 0
    for i in range(len(flow)):
        x, y, z = flow[i, 0], flow[i, 1], flow[i, 2]
        square = x * x + y * y + z * z
        if square > length * length and square < np.inf:
            rows[count], squared[count] = i, square
            count += 1
    return count


@_compiled
def owner_around(owner, cell, found):
    """Write the owner of each cell (M, 2) or, where it has none (-1), of one next to it; owner (X, Y) has a border."""
    for i in range(len(cell)):
        x, y = cell[i, 0], cell[i, 1]
        found[i] = owner[x, y]
        for k in range(9):
            if found[i] >= 0:
                break
            found[i] = owner[x + k // 3 - 1, y + k % 3 - 1]


@_compiled
def connect_cells(keys, mean, reach, column, gap, share, root):
    """Write the smallest node that each node is connected to, over any number of others, into root (M,).

    keys: (M,) int64, sorted: column * place along x + place along y. mean: (M, 3). Nodes within reach of each other, in
    places, are connected if their means differ by less than gap plus share of the smaller norm.
    """
    for k in range(len(keys)):
        root[k] = k
    for dx in range(reach + 1):
        for dy in range(-reach, reach + 1):
            if (dx == 0 and dy <= 0) or dx * dx + dy * dy > reach * reach:
                continue
            at = 0
            for k in range(len(keys)):
                wanted = keys[k] + dx * column + dy
                while at < len(keys) and keys[at] < wanted:
                    at += 1
                if at == len(keys):
                    break
                if keys[at] != wanted:
                    continue
                own = math.sqrt(mean[k, 0] ** 2 + mean[k, 1] ** 2 + mean[k, 2] ** 2)
                other = math.sqrt(mean[at, 0] ** 2 + mean[at, 1] ** 2 + mean[at, 2] ** 2)
                limit = gap + share * min(own, other)
                x, y, z = mean[k, 0] - mean[at, 0], mean[k, 1] - mean[at, 1], mean[k, 2] - mean[at, 2]
                if x * x + y * y + z * z < limit * limit:
                    low, high = k, at
                    while root[low] != low:
                        root[low] = root[root[low]]
                        low = root[low]
                    while root[high] != high:
                        root[high] = root[root[high]]
                        high = root[high]
                    root[max(low, high)] = min(low, high)
    for k in range(len(keys)):
        root[k] = root[root[k]]
