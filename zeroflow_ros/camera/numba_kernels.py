# SPDX-License-Identifier: Apache-2.0
"""Numba kernels of the loops over pixels: flow of a rigid scene, residuals of a motion, velocities.

The innermost loops run along a row without branches, so that LLVM vectorises them. Each has a numpy counterpart that
gives the same values: `rigid_flow_rate`, `motion_residual` and `pixel_velocity`.
"""

import numba
import numpy as np

_compiled = numba.njit(cache=True, nogil=True, error_model='numpy')
_ONE, _ZERO, _HALF, _NAN = np.float32(1), np.float32(0), np.float32(0.5), np.float32(np.nan)
_IN_FRONT = np.float32(1e-3)
_TENTH, _ROAD_STEP, _ROAD_SHARE = np.float32(0.1), np.float32(0.7), np.float32(0.06)
_AT_REST = np.float32(1e-3)
_MIN_PARALLAX = np.float32(1e-3)


@_compiled
def rigid_flow(disparity, turned, shift, at_infinity, flow, other_disparity):
    """Write flow (H, W, 2) and other_disparity (H, W) of a scene that moves as one body; see `rigid_flow_rate`.

    disparity: (H, W) float32. turned: (3, 3), shift: (3,), at_infinity: float32.
    """
    height, width = disparity.shape
    for y in range(height):
        v = np.float32(y)
        u0 = v * turned[0, 1] + turned[0, 2]
        v0 = v * turned[1, 1] + turned[1, 2]
        w0 = v * turned[2, 1] + turned[2, 2]
        for x in range(width):
            u = np.float32(x)
            parallax = disparity[y, x] - at_infinity
            w = parallax * shift[2] + u * turned[2, 0] + w0
            scale = _ONE / w if w >= _IN_FRONT else _NAN
            flow[y, x, 0] = (parallax * shift[0] + u * turned[0, 0] + u0) * scale - u
            flow[y, x, 1] = (parallax * shift[1] + u * turned[1, 0] + v0) * scale - v
            other_disparity[y, x] = parallax * scale + at_infinity


@_compiled
def motion_residual(disparity, flow, other_disparity, has_other, turned, shift, at_infinity, flow_variance,
                    disparity_variance, residual, in_sigmas):  # fmt: skip
    """Write residual (H, W) [px] and in_sigmas (H, W) of a motion; see `motion_residual` of moving_pieces.

    disparity, other_disparity: (H, W), flow: (H, W, 2) float32; other_disparity is used if has_other.
    """
    height, width = disparity.shape
    for y in range(height):
        v = np.float32(y)
        u0 = v * turned[0, 1] + turned[0, 2]
        v0 = v * turned[1, 1] + turned[1, 2]
        w0 = v * turned[2, 1] + turned[2, 2]
        for x in range(width):
            u = np.float32(x)
            parallax = disparity[y, x] - at_infinity
            w = parallax * shift[2] + u * turned[2, 0] + w0
            scale = _ONE / w if w >= _IN_FRONT else _NAN
            target_u = (parallax * shift[0] + u * turned[0, 0] + u0) * scale
            target_v = (parallax * shift[1] + u * turned[1, 0] + v0) * scale
            off_u, off_v = target_u - u - flow[y, x, 0], target_v - v - flow[y, x, 1]
            rate_u, rate_v = (shift[0] - target_u * shift[2]) * scale, (shift[1] - target_v * shift[2]) * scale
            squared = off_u * off_u + off_v * off_v
            sigmas = squared / (flow_variance + disparity_variance * (rate_u * rate_u + rate_v * rate_v))
            if has_other:
                change = other_disparity[y, x] - parallax * scale - at_infinity
                change = change * change if change == change else _ZERO  # not known: no evidence
                squared += change
                sigmas += change / (disparity_variance + disparity_variance)
            residual[y, x] = np.sqrt(squared)
            in_sigmas[y, x] = np.sqrt(sigmas)


@_compiled
def normal_equations(values, has_other, camera, motions, width, normal, gradient):
    """Add J^T W J to normal (K, 6, 6) and J^T W r to gradient (K, 6) of K motions (K, 4, 4); see `rigid_fit`.

    values: (8, P, N): u, v, disparity, flow u and v, other disparity, variances of flow and of disparity; P is K, or 1
    where all motions have the same pixels. camera: as of `pixel_velocity`. All float64.
    """
    fx, fy, cx, cy, at_infinity, per_pixel = camera
    rows = np.zeros((3, 6))
    residual = np.zeros(3)
    for k in range(len(motions)):
        motion, p = motions[k], k if values.shape[1] > 1 else 0
        tx, ty, tz = motion[0, 3], motion[1, 3], motion[2, 3]
        for i in range(values.shape[2]):
            x, y = (values[0, p, i] - cx) / fx, (values[1, p, i] - cy) / fy
            flow_variance, disparity_variance = values[6, p, i], values[7, p, i]
            inverse = (values[2, p, i] - at_infinity) / per_pixel
            ray_x = motion[0, 0] * x + motion[0, 1] * y + motion[0, 2]
            ray_y = motion[1, 0] * x + motion[1, 1] * y + motion[1, 2]
            ray_z = motion[2, 0] * x + motion[2, 1] * y + motion[2, 2]
            depth = ray_z + tz * inverse
            if not depth > 1e-3:
                continue
            scale = 1 / depth
            px, py, q = (ray_x + tx * inverse) * scale, (ray_y + ty * inverse) * scale, inverse * scale
            rx, ry, rz = ray_x * scale, ray_y * scale, ray_z * scale
            du, dv = fx * scale * (tx - px * tz) / per_pixel, fy * scale * (ty - py * tz) / per_pixel
            sigma_u = np.sqrt(flow_variance + du * du * disparity_variance)
            sigma_v = np.sqrt(flow_variance + dv * dv * disparity_variance)
            residual[0] = (fx * (px - x) - values[3, p, i]) / sigma_u
            residual[1] = (fy * (py - y) - values[4, p, i]) / sigma_v
            by_u, by_v = fx / sigma_u, fy / sigma_v
            line = rows[0]
            line[0], line[1], line[2] = -by_u * px * ry, by_u * (rz + px * rx), -by_u * ry
            line[3], line[5] = by_u * q, -by_u * q * px
            line = rows[1]
            line[0], line[1], line[2] = -by_v * (rz + py * ry), by_v * py * rx, by_v * rx
            line[4], line[5] = by_v * q, -by_v * q * py
            count = 2
            if has_other and values[5, p, i] == values[5, p, i]:
                change = scale * (1 - q * tz)
                sigma_d = np.sqrt(disparity_variance * (1 + change * change))
                residual[2] = (per_pixel * q + at_infinity - values[5, p, i]) / sigma_d
                by_d = per_pixel * q / sigma_d
                rows[2, 0], rows[2, 1], rows[2, 5] = -by_d * ry, by_d * rx, -by_d * q
                count = 3
            squared = 0.0
            for m in range(count):
                squared += residual[m] * residual[m]
            weight = 1 / (1 + squared / (2 * width * width)) ** 2
            if not weight > 0:
                continue
            for m in range(count):
                for a in range(6):
                    weighted = weight * rows[m, a]
                    gradient[k, a] += weighted * residual[m]
                    for b in range(a + 1):
                        normal[k, a, b] += weighted * rows[m, b]
        for a in range(6):
            for b in range(a):
                normal[k, b, a] = normal[k, a, b]


@_compiled
def refine_motions(values, has_other, camera, motions, loose, steps, prior, normal):
    """Move motions (K, 4, 4) by robust Gauss-Newton steps to what fits best; see `refine_motions` of rigid_fit.

    values, has_other, camera: as of `normal_equations`. prior: (6,), inverse variances of rotation and translation.
    normal: (K, 6, 6), written: that of the last step.
    """
    num = len(motions)
    gradient, turned, change = np.empty((num, 6)), np.zeros((num, 6)), np.empty(6)
    for step in range(steps):
        width = max(1.0, loose * 0.45**step)
        normal[:], gradient[:] = 0, 0
        normal_equations(values, has_other, camera, motions, width, normal, gradient)
        largest = 0.0
        for k in range(num):
            for a in range(6):
                normal[k, a, a] += prior[a] + 1e-6
                change[a] = -(gradient[k, a] + prior[a] * turned[k, a])
            _solve_symmetric(normal[k].copy(), change)
            _move(motions[k], change)
            for a in range(6):
                turned[k, a] += change[a]
                largest = max(largest, abs(change[a]))
        if step >= 2 and width == 1.0 and largest < 1e-4:
            break


@_compiled
def _solve_symmetric(matrix, values):
    """Solve matrix (N, N) x = values (N,) of a positive definite matrix; writes x to values and overwrites both."""
    num = len(values)
    for a in range(num):  # matrix = L D L^T: L below the diagonal, D on it
        for b in range(a):
            part = matrix[a, b]
            for c in range(b):
                part -= matrix[a, c] * matrix[b, c] * matrix[c, c]
            matrix[a, b] = part / matrix[b, b]
        for c in range(a):
            matrix[a, a] -= matrix[a, c] * matrix[a, c] * matrix[c, c]
        for c in range(a):
            values[a] -= matrix[a, c] * values[c]
    for a in range(num - 1, -1, -1):
        values[a] /= matrix[a, a]
        for c in range(a + 1, num):
            values[a] -= matrix[c, a] * values[c]


@_compiled
def _move(motion, change):
    """Turn motion (4, 4) about change[:3] by its length [rad] (Rodrigues) and shift it by change[3:], in place."""
    x, y, z = change[0], change[1], change[2]
    angle = np.sqrt(x * x + y * y + z * z)
    by_cross = np.sin(angle) / angle if angle > 1e-12 else 1.0
    half = np.sin(angle / 2) / (angle / 2) if angle > 1e-12 else 1.0
    by_square = 0.5 * half * half
    for column in range(3):
        p, q, r = motion[0, column], motion[1, column], motion[2, column]
        cx, cy, cz = y * r - z * q, z * p - x * r, x * q - y * p
        motion[0, column] = p + by_cross * cx + by_square * (y * cz - z * cy)
        motion[1, column] = q + by_cross * cy + by_square * (z * cx - x * cz)
        motion[2, column] = r + by_cross * cz + by_square * (x * cy - y * cx)
    for row in range(3):
        motion[row, 3] += change[3 + row]


@_compiled
def pixel_velocity(disparity, other_disparity, flow, disparity_sigma, other_disparity_sigma, flow_sigma, motion_sigma,
                   has_depth, is_measured, camera, rotation, translation, dt, points, velocity,
                   speed_sigma):  # fmt: skip
    """Write points, velocity (H, W, 3) and speed_sigma (H, W) of all pixels; see `pixel_velocity`.

    Maps are (H, W) float32 and bool, flow is (H, W, 2). motion_sigma: NaN where not known. camera: (6,) float32: fx,
    fy, cx, cy, disparity at infinity, fx * baseline. rotation: (3, 3), translation: (3,), dt: float32.
    """
    height, width = disparity.shape
    fx, fy, cx, cy, at_infinity, per_pixel = camera
    inv_fx, inv_fy, inv_dt, abs_inv_dt = _ONE / fx, _ONE / fy, _ONE / dt, abs(_ONE / dt)
    r00, r01, r02 = rotation[0]
    r10, r11, r12 = rotation[1]
    r20, r21, r22 = rotation[2]
    t0, t1, t2 = translation
    for y in range(height):
        ray_y = (np.float32(y) - cy) * inv_fy
        for x in range(width):
            ray_x = (np.float32(x) - cx) * inv_fx
            parallax0, parallax1 = disparity[y, x] - at_infinity, other_disparity[y, x] - at_infinity
            inverse0 = _ONE / parallax0 if parallax0 > _MIN_PARALLAX else _NAN
            inverse1 = _ONE / parallax1 if parallax1 > _MIN_PARALLAX else _NAN
            z0, z1 = per_pixel * inverse0, per_pixel * inverse1
            p1x, p1y = (ray_x + flow[y, x, 0] * inv_fx) * z1, (ray_y + flow[y, x, 1] * inv_fy) * z1
            ax = (ray_x * r00 + ray_y * r01 + r02) * z0
            ay = (ray_x * r10 + ray_y * r11 + r12) * z0
            az = (ray_x * r20 + ray_y * r21 + r22) * z0
            mx, my, mz = p1x - ax - t0, p1y - ay - t1, z1 - az - t2
            length = np.sqrt(mx * mx + my * my + mz * mz)
            rests = length < _AT_REST
            scale = _ONE / (np.sqrt(p1x * p1x + p1y * p1y + z1 * z1) if rests else length)
            nx, ny, nz = (p1x if rests else mx) * scale, (p1y if rests else my) * scale, (z1 if rests else mz) * scale
            by_u, by_v = nx * z1 * inv_fx, ny * z1 * inv_fy
            by_other = (nx * p1x + ny * p1y + nz * z1) * inverse1 * other_disparity_sigma[y, x]
            by_reference = (nx * ax + ny * ay + nz * az) * inverse0 * disparity_sigma[y, x]
            by_flow = (by_u * by_u + by_v * by_v) * flow_sigma[y, x] * flow_sigma[y, x]
            sigma = np.sqrt(by_flow + by_other * by_other + by_reference * by_reference)
            known = motion_sigma[y, x]
            sigma = known if known == known else sigma
            # Infinity minus itself is not 0, nor is NaN minus itself.
            valid = is_measured[y, x] & (length - length == _ZERO) & (sigma - sigma == _ZERO)
            shown = _ZERO if valid else _NAN
            depth_shown = _ZERO if has_depth[y, x] else _NAN
            points[y, x, 0] = ray_x * z0 + depth_shown
            points[y, x, 1] = ray_y * z0 + depth_shown
            points[y, x, 2] = z0 + depth_shown
            velocity[y, x, 0] = (mx * r00 + my * r10 + mz * r20) * inv_dt + shown
            velocity[y, x, 1] = (mx * r01 + my * r11 + mz * r21) * inv_dt + shown
            velocity[y, x, 2] = (mx * r02 + my * r12 + mz * r22) * inv_dt + shown
            speed_sigma[y, x] = sigma * abs_inv_dt + shown


@_compiled
def consistent_flow(flow, backward, disparity, max_error, max_share, is_consistent, other_disparity):
    """Write is_consistent (H, W) and other_disparity (H, W) of a flow; see `OpticalFlow.check`.

    flow, backward: (H, W, 2) float32, disparity: (H, W) float32 of the other frame.
    """
    height, width = disparity.shape
    last_x, last_y = np.float32(width - 1), np.float32(height - 1)
    for y in range(height):
        for x in range(width):
            flow_u, flow_v = flow[y, x, 0], flow[y, x, 1]
            u, v = np.float32(x) + flow_u, np.float32(y) + flow_v
            is_consistent[y, x] = False
            other_disparity[y, x] = _NAN
            if not (u >= _ZERO and u <= last_x and v >= _ZERO and v <= last_y):
                continue
            x0, y0 = min(np.int32(u), width - 2), min(np.int32(v), height - 2)
            right, down = u - np.float32(x0), v - np.float32(y0)
            other_disparity[y, x] = disparity[y0 + (down > _HALF), x0 + (right > _HALF)]
            a, b, c = (_ONE - right) * (_ONE - down), right * (_ONE - down), (_ONE - right) * down
            d = right * down
            back_u = a * backward[y0, x0, 0] + b * backward[y0, x0 + 1, 0]
            back_u += c * backward[y0 + 1, x0, 0] + d * backward[y0 + 1, x0 + 1, 0]
            back_v = a * backward[y0, x0, 1] + b * backward[y0, x0 + 1, 1]
            back_v += c * backward[y0 + 1, x0, 1] + d * backward[y0 + 1, x0 + 1, 1]
            off_u, off_v = flow_u + back_u, flow_v + back_v
            limit = max_error + max_share * np.sqrt(flow_u * flow_u + flow_v * flow_v)
            is_consistent[y, x] = off_u * off_u + off_v * off_v < limit * limit


@_compiled
def scene_flow(disparity, piece, agrees, rows, columns, motions, sigmas, at_infinity, shown_everywhere, flow,
               other_disparity, motion_sigma, is_measured):  # fmt: skip
    """Write flow (H, W, 2), other_disparity, motion_sigma and is_measured (H, W) of a scene of rigid pieces.

    disparity: (H, W) float32. piece (int32) and agrees (bool): maps of another size; rows (H,), columns (W,): of the
    nearest pixel in them. motions: (K + 1, 3, 4) float32, matrices of `pixel_motion`, that of the static scene last, so
    that piece -1 has it. sigmas: (K,) float32.
    """
    height, width = disparity.shape
    for y in range(height):
        v, row = np.float32(y), rows[y]
        for x in range(width):
            u, number = np.float32(x), piece[row, columns[x]]
            measured = agrees[row, columns[x]] if number == -1 else number >= 0
            motion = motions[number if number >= 0 else -1]
            parallax = disparity[y, x] - at_infinity
            w = motion[2, 0] * u + motion[2, 1] * v + motion[2, 2] + motion[2, 3] * parallax
            scale = _ONE / w if w >= _IN_FRONT and (measured or shown_everywhere) else _NAN
            flow[y, x, 0] = (motion[0, 0] * u + motion[0, 1] * v + motion[0, 2] + motion[0, 3] * parallax) * scale - u
            flow[y, x, 1] = (motion[1, 0] * u + motion[1, 1] * v + motion[1, 2] + motion[1, 3] * parallax) * scale - v
            other_disparity[y, x] = parallax * scale + at_infinity
            motion_sigma[y, x] = sigmas[number] if number >= 0 else _NAN
            is_measured[y, x] = measured


@_compiled
def mark_seams(region, disparity, depth_step, inside):
    """Write inside (H, W) uint8: 1 in the region, but not on the far side of a jump in depth; see `moving_pieces`.

    region: (H, W) bool, disparity: (H, W) float32, known in the region.
    """
    height, width = disparity.shape
    for y in range(height):
        for x in range(width):
            inside[y, x] = region[y, x]
    for y in range(height):
        for x in range(width):
            if not region[y, x]:
                continue
            here = disparity[y, x]
            for k in range(2):
                down, right = y + k, x + 1 - k
                if down >= height or right >= width or not region[down, right]:
                    continue
                there = disparity[down, right]
                if abs(here - there) > max(_ONE, depth_step * max(here, there)):
                    if here < there:
                        inside[y, x] = 0
                    else:
                        inside[down, right] = 0


@_compiled
def pixel_cloud(points, image, velocity, speed_sigma, flow_valid, rows, words):
    """Write the rows of an organised cloud, (H, W, 10) float32, and the same as uint32; see `pixel_cloud`.

    image: (H, W, 3) or (H, W, 1) uint8.
    """
    height, width = speed_sigma.shape
    red, green, blue = (0, 1, 2) if image.shape[2] == 3 else (0, 0, 0)
    for y in range(height):
        for x in range(width):
            row, speed = rows[y, x], _ZERO
            for axis in range(3):
                row[axis], row[4 + axis] = points[y, x, axis], velocity[y, x, axis]
                speed += velocity[y, x, axis] * velocity[y, x, axis]
            row[7], row[8] = np.sqrt(speed), speed_sigma[y, x]
            pixel = image[y, x]
            words[y, x, 3] = np.uint32(pixel[red]) << 16 | np.uint32(pixel[green]) << 8 | np.uint32(pixel[blue])
            words[y, x, 9] = flow_valid[y, x]


@_compiled
def road_surface(disparity, road, known, below):
    """Write known and below (H, W): the disparity without the road's surface, and where it is seen below the road.

    disparity: (H, W) float32. road: (3,) float32. See `is_road` and `is_below_road` of stereo_matching. known: float32,
    NaN on the road. below: bool.
    """
    height, width = disparity.shape
    for y in range(height):
        row = road[1] * np.float32(y) + road[2]
        for x in range(width):
            here = disparity[y, x]
            on_road = road[0] * np.float32(x) + row
            below[y, x] = here < on_road - max(_ONE, _TENTH * on_road)
            known[y, x] = _NAN if abs(here - on_road) < max(_ROAD_STEP, _ROAD_SHARE * here) else here


@_compiled
def fit_plane(places, seen, picks, limits, plane):
    """Write the plane (3,) of the road and return True, or return False where none is seen; see `fit_road`.

    places: (N, 3): column, row, 1. seen: (N,) disparity [px]. picks: (K, 3) rows of places that fix a plane. limits:
    lowest and highest slope, largest tilt, least share of the pixels. plane: in the beginning, that of a neighbouring
    frame, or NaN. All float64, picks int64.
    """
    best, candidate, chosen = -np.inf, plane.copy(), plane
    normal, corner = np.empty((3, 3)), np.empty((3, 3))
    for k in range(-1, len(picks)):
        if k >= 0:
            for a in range(3):
                corner[a] = places[picks[k, a]]
            ab, ac = corner[1] - corner[0], corner[2] - corner[0]
            area = ab[0] * ac[1] - ab[1] * ac[0]
            if not abs(area) > 1.0:  # three pixels on one line fix no plane
                continue
            by_b, by_c = seen[picks[k, 1]] - seen[picks[k, 0]], seen[picks[k, 2]] - seen[picks[k, 0]]
            candidate[0] = (by_b * ac[1] - by_c * ab[1]) / area
            candidate[1] = (by_c * ab[0] - by_b * ac[0]) / area
            candidate[2] = seen[picks[k, 0]] - candidate[0] * corner[0, 0] - candidate[1] * corner[0, 1]
        if not (limits[0] < candidate[1] < limits[1] and abs(candidate[0]) < limits[2]):
            continue
        support = 0
        for i in range(len(seen)):
            above = seen[i] - candidate[0] * places[i, 0] - candidate[1] * places[i, 1] - candidate[2]
            support += (abs(above) < 0.7) - 2 * (above < -1.5)
        if support > best:
            best = support
            chosen = candidate.copy()
    plane[:] = chosen
    for _ in range(3 if best > -np.inf else 0):
        normal[:], candidate[:], count = 0, 0, 0
        for i in range(len(seen)):
            if abs(seen[i] - plane[0] * places[i, 0] - plane[1] * places[i, 1] - plane[2]) < 0.7:
                count += 1
                for a in range(3):
                    candidate[a] += places[i, a] * seen[i]
                    for b in range(3):
                        normal[a, b] += places[i, a] * places[i, b]
        if count < limits[3] * len(seen):
            return False
        _solve_symmetric(normal, candidate)
        plane[:] = candidate
    return best > -np.inf


@_compiled
def sampled_disparity(disparity, is_edge, rows, columns, row_places, column_places, factor, sampled):
    """Write sampled (H, W): disparity times factor at places between its pixels, interpolated within surfaces only.

    disparity: float32, is_edge: uint8, of another size. rows (H,), columns (W,): of the nearest pixel.
    row_places (H,), column_places (W,): float32, in the pixels of the disparity.
    """
    height, width = sampled.shape
    last_y, last_x = disparity.shape[0] - 1, disparity.shape[1] - 1
    for y in range(height):
        place = min(max(row_places[y], _ZERO), np.float32(last_y))
        y0 = min(np.int64(place), max(last_y - 1, 0))
        y1, down = min(y0 + 1, last_y), place - np.float32(y0)
        for x in range(width):
            if is_edge[rows[y], columns[x]]:
                sampled[y, x] = disparity[rows[y], columns[x]] * factor
                continue
            place = min(max(column_places[x], _ZERO), np.float32(last_x))
            x0 = min(np.int64(place), max(last_x - 1, 0))
            x1, right = min(x0 + 1, last_x), place - np.float32(x0)
            upper = disparity[y0, x0] * (_ONE - right) + disparity[y0, x1] * right
            lower = disparity[y1, x0] * (_ONE - right) + disparity[y1, x1] * right
            sampled[y, x] = (upper * (_ONE - down) + lower * down) * factor


@_compiled
def walk_jpeg_scan(scan, codes, short_codes, pattern, num_units):
    """Return the bits that num_units units take; -1 where a code is invalid or the data ends; see `jpeg_scan`.

    scan: (N,) uint8 without stuffed bytes, eight bytes of padding at its end. codes: (T, 65536) uint16, short_codes:
    (T, 1024) uint16, 0 for codes of more than 10 bits. pattern: (B, 2) int64, rows of both for DC and AC of each block
    of a unit.
    """
    num_bytes, num_bits = np.uint64(len(scan) - 8), 8 * (len(scan) - 8)
    word, available, place = np.uint64(0), np.uint64(0), np.uint64(0)
    b8, b16, b24, b32 = np.uint64(8), np.uint64(16), np.uint64(24), np.uint64(32)
    low10, low16, ten = np.uint64(1023), np.uint64(0xFFFF), np.uint64(10)
    for _ in range(num_units):
        for block in range(len(pattern)):
            table, k = pattern[block, 0], 0
            while k < 64:
                if available < b32:
                    if place > num_bytes + np.uint64(4):
                        return -1
                    more = np.uint64(scan[place]) << b24 | np.uint64(scan[place + np.uint64(1)]) << b16
                    more |= np.uint64(scan[place + np.uint64(2)]) << b8 | np.uint64(scan[place + np.uint64(3)])
                    word = word << b32 | more
                    place += np.uint64(4)
                    available += b32
                found = np.int64(short_codes[table, (word >> (available - ten)) & low10])
                if found == 0:
                    found = np.int64(codes[table, (word >> (available - b16)) & low16])
                    if found == 0:
                        return -1
                value = found & 255
                size = value & 15
                available -= np.uint64((found >> 8) + size)
                if k == 0:
                    if value > 11:
                        return -1
                    k, table = 1, pattern[block, 1]
                elif size:
                    k += (value >> 4) + 1
                    if k > 64:
                        return -1
                elif value == 0xF0:
                    k += 16
                else:
                    break
        if 8 * np.int64(place) - np.int64(available) > num_bits:
            return -1
    return 8 * np.int64(place) - np.int64(available)
