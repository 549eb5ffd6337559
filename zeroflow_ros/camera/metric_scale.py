# SPDX-License-Identifier: Apache-2.0
"""How many metres a length has that a network of one camera gives: its own word, odometry, or the camera's height."""

from collections import deque

import numpy as np

from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError

SCALES = ('model', 'odometry', 'camera_height')
_NUM_KEPT, _FEWEST = 30, 5  # measurements that count, and those needed before the first scale
_SHORTEST = 0.15  # m between two frames: 1.5 m/s at 10 Hz; the error of a network is some centimetres
_SHORTEST_OWN = 0.03  # of the network's lengths
_SAME_DIRECTION = 0.9  # cosine between both translations
_PLAUSIBLE = 0.2, 5.0  # of the factor
_LOWEST_ROW, _SIDE = 0.6, 0.15  # ground is looked for below this row, and not in these columns; shares of the image
_GROUND_PIXELS, _FEWEST_PIXELS, _HYPOTHESES = 600, 60, 48
_SAME_DEPTH, _MOST_TILT = 0.08, np.radians(35)  # relative; between the ground's normal and the image's columns
_GROUND_SHARE = 0.5


class MetricScale:
    """The factor from a network's lengths to metres: the median of the last measurements.

    source: 'model': the factor is 1. 'odometry': translation by odometry over that which the images show, while the
    camera moves enough. 'camera_height': height of the camera over that above the plane that fits the ground.
    camera_height: of the optical centre above the ground [m], for that source.
    factor: None before there are enough measurements. note: why the last frame did not count; '' where it did.

    Raises: ConfigError for an unknown source, or without a height that is positive.
    """

    def __init__(self, source: str = 'model', camera_height: float = 0.0):
        if source not in SCALES:
            raise ConfigError(f'scale must be one of {", ".join(SCALES)}, got {source!r}.')
        if source == 'camera_height' and not (np.isfinite(camera_height) and camera_height > 0):
            raise ConfigError(
                'With scale camera_height, camera_height must be the height of the camera above the ground [m], got '
                f'{camera_height}.'
            )
        self.source, self._camera_height = source, camera_height
        self.reset()

    def reset(self) -> None:
        """Forget all measurements, for another camera."""
        self._measured: deque[float] = deque(maxlen=_NUM_KEPT)
        self.num_measured, self.note = 0, ''

    @property
    def factor(self) -> float | None:
        """Metres per length of the network; None: not known yet."""
        if self.source == 'model':
            return 1.0
        return float(np.median(self._measured)) if len(self._measured) >= _FEWEST else None

    def facts(self) -> dict[str, str]:
        """Return scale, source, number of measurements, and why the last frame did not count, for diagnostics."""
        factor = self.factor
        found = {'scale': 'not known yet' if factor is None else f'{factor:.3f}', 'scale_source': self.source}
        if self.source != 'model':
            found['scale_measurements'] = str(self.num_measured)
            found['scale_kept'] = self.note
        return found

    def missing(self) -> str:
        """Return why there is no factor yet, and what to do."""
        by_ground = 'Point the camera so that it sees the ground, or set another scale.'
        remedy = 'Drive, or set another scale.' if self.source == 'odometry' else by_ground
        return (
            f'The scale is not known yet: {len(self._measured)} of {_FEWEST} measurements. '
            f'{self.note or "The first frames are measured."} {remedy}'
        )

    def measure_motion(self, own: np.ndarray | None, odometry: np.ndarray) -> None:
        """Take note of a pair. own, odometry: (4, 4) between the same frames; own is None where images do not show it.

        Only translation counts: rotation has no scale.
        """
        moved = float(np.linalg.norm(odometry[:3, 3]))
        if moved < _SHORTEST:
            self.note = f'The camera moved {moved:.2f} m between two frames, less than {_SHORTEST} m.'
            return
        if own is None:
            self.note = 'The images do not show the motion of the camera.'
            return
        own_moved = float(np.linalg.norm(own[:3, 3]))
        if own_moved < _SHORTEST_OWN:
            self.note = f'By odometry the camera moved {moved:.2f} m, by the images it stood.'
            return
        cosine = float(own[:3, 3] @ odometry[:3, 3]) / (moved * own_moved)
        if cosine < _SAME_DIRECTION:
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
            self.note = f'By odometry the camera moved in a direction {angle:.0f} degrees from that of the images.'
            return
        self._add(moved / own_moved)

    def measure_ground(self, camera: StereoCamera, disparity: np.ndarray, valid: np.ndarray) -> None:
        """Take note of the ground in a frame. disparity: (H, W) [px]. valid: (H, W) bool. See `ground_height`."""
        height = ground_height(camera, disparity, valid)
        if height is None:
            self.note = 'No plane fits the lower part of the image.'
            return
        self._add(self._camera_height / height)

    def _add(self, factor: float) -> None:
        low, high = _PLAUSIBLE
        if not low <= factor <= high:
            self.note = f'A factor of {factor:.2f} is not plausible: {low} to {high}.'
            return
        self._measured.append(factor)
        self.num_measured += 1
        self.note = ''


def ground_height(camera: StereoCamera, disparity: np.ndarray, valid: np.ndarray) -> float | None:
    """Return the height of the camera above the plane that fits the lower part of an image; None where none does.

    disparity: (H, W) [px], of any size with the camera's view. valid: (H, W) bool.
    The inverse depth of a plane is linear in the ray of the pixel, so three pixels give a plane.
    """
    rows, columns = disparity.shape
    camera = camera if (rows, columns) == (camera.height, camera.width) else camera.scaled(columns, rows)
    area = np.zeros_like(valid)
    area[int(_LOWEST_ROW * rows) :, int(_SIDE * columns) : columns - int(_SIDE * columns)] = True
    v, u = np.nonzero(area & valid & (disparity - camera.disparity_at_infinity > 0))
    if len(v) < _FEWEST_PIXELS:
        return None
    random = np.random.default_rng(0)
    some = random.permutation(len(v))[:_GROUND_PIXELS]
    v, u = v[some], u[some]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(len(u))], axis=1)
    inverse = (disparity[v, u].astype(np.float64) - camera.disparity_at_infinity) / (camera.fx * camera.baseline)
    best, most = None, 0
    for picked in random.integers(len(v), size=(_HYPOTHESES, 3)):
        plane = _solve(rays[picked], inverse[picked])
        agrees = None if plane is None else np.abs(rays @ plane - inverse) < _SAME_DEPTH * inverse
        if agrees is not None and _is_level(plane) and agrees.sum() > most:
            best, most = agrees, int(agrees.sum())
    if best is None or most < _GROUND_SHARE * len(v):
        return None
    plane, *_ = np.linalg.lstsq(rays[best] / inverse[best, None], np.ones(most), rcond=None)
    return 1 / float(np.linalg.norm(plane)) if _is_level(plane) else None


def _solve(rays: np.ndarray, inverse: np.ndarray) -> np.ndarray | None:
    try:
        return np.linalg.solve(rays, inverse)
    except np.linalg.LinAlgError:
        return None


def _is_level(plane: np.ndarray) -> bool:
    """Return whether a plane, its normal over its distance, is below the camera and not too tilted."""
    return bool(plane[1] > np.cos(_MOST_TILT) * np.linalg.norm(plane))
