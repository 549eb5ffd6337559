# SPDX-License-Identifier: Apache-2.0
"""Say what is wrong with the mount of a sensor, or with the ground below it, and what to set."""

import numpy as np

from zeroflow_ros.lidar.level import MAX_TILT, Ground, Level, find_ground_anywhere, level_rotation
from zeroflow_ros.transforms import to_quaternion

_SEARCH_EVERY = 200  # sweeps with a problem: a search takes some 0.1 s
_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # base_R_optical, z forward, x right, y down
_HIGH, _ON = 3.5, 0.15  # m: sensors of vehicles are lower; distance of a point on a plane
_HEIGHT_DIFFERENCE = 0.5  # m, between the height that is set and the ground that is seen; a slope gives 0.3


class LevelCheck:
    """Finds what to say of the level of sweeps.

    Where the sweeps show no ground below the sensor, ground is searched in all directions once, then now and then.
    """

    def __init__(self):
        self._elsewhere, self._age = Ground(), _SEARCH_EVERY
        self._for = None  # what the level said when that was searched

    def problem(self, level: Level, frame_id: str, points: np.ndarray, *, needs_height: bool = True) -> tuple[str, str]:
        """Return (kind, sentences) on what is wrong and what to set; ('', '') where all is well.

        level: of the frame of the points. points: (N, 3) [m], of the sweep. needs_height: whether the height of the
        sensor is used.
        """
        is_found, is_tilted = np.isfinite(level.seen_height), np.isfinite(level.seen_tilt)
        is_high = level.seen_height > _HIGH  # or a wall is taken for the ground
        if is_found and not is_tilted and not (is_high and self._is_elsewhere(level, points)):
            difference = level.height - level.seen_height
            if needs_height and abs(difference) > _HEIGHT_DIFFERENCE:
                return 'height', _height_text(level, frame_id)
            return '', ''
        elsewhere = self._search(level, points)
        tilt = level.seen_tilt
        if elsewhere.up is not None and elsewhere.height > 0:
            tilt = np.arccos(np.clip(elsewhere.up @ level.up, -1, 1))
        if tilt > MAX_TILT:
            return 'tilt', _tilt_text(level, float(tilt), elsewhere, frame_id)
        if not needs_height:
            return '', ''
        is_above = elsewhere.up is not None and elsewhere.height < 0 and elsewhere.up @ level.up > np.cos(MAX_TILT)
        if is_above and not abs(level.height - elsewhere.height) < _HEIGHT_DIFFERENCE:  # nor NaN
            return 'ground above', (
                f"The ground is {-elsewhere.height:.1f} m above the origin of '{frame_id}', where no sensor is, so "
                'velocities may be wrong. Publish the clouds in the frame of the sensor or of the vehicle, not in one '
                f'of a map; if the frame is right, set sensor_height to {elsewhere.height:.1f}.'
            )
        if np.isfinite(level.height):
            return '', ''
        up = {'mount': 'by its mount', 'ground': 'from the ground', 'nothing': 'assumed: z is up'}[level.tilt_from]
        shift = (
            f'z raised by {level.lowest:.2f} m, on the lowest surface' if np.isfinite(level.lowest) else 'z as it is'
        )
        return 'no ground', (
            f'The ground below the sensor is not found: {level.reason}. The model sees {shift} (roll '
            f'{np.degrees(level.roll):.0f}, pitch {np.degrees(level.pitch):.0f} degrees, {up}), so velocities may be '
            f"wrong. Set sensor_height to the height of '{frame_id}' above the ground [m]."
        )

    def _is_elsewhere(self, level: Level, points: np.ndarray) -> bool:
        """Return whether more points lie on a ground in another direction than on the one below."""
        elsewhere = self._search(level, points)
        if elsewhere.up is None or elsewhere.height < 0:
            return False
        with np.errstate(invalid='ignore', over='ignore'):
            on_elsewhere, on_ground = (
                np.count_nonzero(np.abs(points @ up + height) < _ON)
                for up, height in ((elsewhere.up, elsewhere.height), (level.up, level.seen_height))
            )
        return on_elsewhere > on_ground

    def _search(self, level: Level, points: np.ndarray) -> Ground:
        said = (level.tilt_from, *level.up.tolist())
        self._age += 1
        if self._age > _SEARCH_EVERY or said != self._for:
            self._elsewhere, self._age, self._for = find_ground_anywhere(points), 0, said
        return self._elsewhere


def _tilt_text(level: Level, tilt: float, seen: Ground, frame_id: str) -> str:
    told = level.tilt_from == 'mount'
    against = 'the mount of the sensor' if told else f"the xy plane of '{frame_id}'"
    how, value = '', ''
    if seen.up is not None and seen.height > 0:
        optical = not told and seen.up @ _OPTICAL[2] > np.cos(MAX_TILT)
        if optical:
            how = ", as in a camera's optical frame (z forward, x right, y down)"
        elif not told and seen.up[2] < -np.cos(MAX_TILT):
            how = ': the sensor hangs upside down, z points down'
        else:
            mount = Level(seen.up, seen.height, 'ground')
            how = f': roll {np.degrees(mount.roll):.0f}, pitch {np.degrees(mount.pitch):.0f} degrees by the ground'
        base_T_sensor = np.eye(4)
        base_T_sensor[:3, :3] = _OPTICAL if optical else level_rotation(seen.up)
        numbers = [0.0, 0.0, seen.height, *to_quaternion(base_T_sensor)]
        value = ' to [' + ', '.join(f'{number:.3f}' for number in numbers) + ']'
    remedy = 'Correct the mount on /tf_static (parameter base_frame)' if told else (
        'Publish the mount of the sensor on /tf_static (parameter base_frame)'
    )  # fmt: skip
    return (
        f'The ground is tilted by {np.degrees(tilt):.0f} degrees against {against}{how}. More than 15 degrees are not '
        f'corrected, so velocities are wrong. {remedy}, or set base_T_lidar{value}.'
    )


def _height_text(level: Level, frame_id: str) -> str:
    return (
        f"The ground is {level.seen_height:.2f} m below the origin of '{frame_id}', but sensor_height is "
        f'{level.height:.2f} m, so velocities may be wrong. Set sensor_height to {level.seen_height:.2f}, or leave it '
        'out: the height is then estimated.'
    )
