# SPDX-License-Identifier: Apache-2.0
"""One track: a straight line through its detections, and whether it moved along its flow."""

from collections import deque

import numpy as np

_WINDOW = 1.0  # s of detections in the line fit: a car that brakes or turns is still near its line
_FIT_SHARE = 0.8  # of the velocity comes from the line fit, the rest from flow, which is biased to slower speeds
_SIZE_GAIN = 0.3  # share of a new detection's size in the smoothed size
_MAX_DISAGREEMENT = 0.65  # between the velocities of line fit and flow, as a share of the speed
_MIN_TRAVEL_SHARE = 0.5  # of the distance that the flow predicts must have been travelled


class Track:
    """State of one tracked cluster, in a fixed frame.

    position: (2,) [m], middle of its box at the last detection. velocity: (2,) [m/s]. flow: (2,) [m/s], mean velocity
    of its points. size: (3,) [m]. z, climb: height of the box's middle [m] and its rate [m/s].
    num_hits: number of detections. last_seen: time [s]. confirmed: the evidence says that it moves.
    """

    def __init__(self, track_id: int):
        self.track_id, self.num_hits, self.confirmed = track_id, 0, False
        self.last_evidence = -np.inf  # when the evidence of motion was last complete [s]
        self.occupied_before = None  # share of its cells that were occupied before it came, smoothed
        self._detections: deque[tuple] = deque()  # time, x, y, flow x, flow y

    def add_detection(self, time: float, center: np.ndarray, size: np.ndarray, velocity: np.ndarray) -> None:
        """Add the box of one sweep: its middle (3,), its size (3,), mean velocity of its points (3,)."""
        self.num_hits, self.last_seen = self.num_hits + 1, time
        self._detections.append((time, *center[:2], *velocity[:2]))
        while self._detections[0][0] < time - _WINDOW - 1e-6:
            self._detections.popleft()
        self.size = size if self.num_hits == 1 else self.size + _SIZE_GAIN * (size - self.size)
        self.z, self.climb = float(center[2]), float(velocity[2])
        rows = np.array(self._detections)
        self.flow = rows[:, 3:].mean(axis=0)
        times = rows[:, 0] - rows[:, 0].mean()
        self._fit_velocity = self.flow
        self.position, self.velocity = rows[-1, 1:3], self.flow
        if len(rows) > 2:
            self._fit_velocity = times @ rows[:, 1:3] / (times @ times)
            self.position = rows[:, 1:3].mean(axis=0) + times[-1] * self._fit_velocity
            self.velocity = _FIT_SHARE * self._fit_velocity + (1 - _FIT_SHARE) * self.flow
        self._seconds = rows[-1, 0] - rows[0, 0]

    def position_at(self, time: float) -> np.ndarray:
        """Return the position predicted with constant velocity, (2,) [m]."""
        return self.position + (time - self.last_seen) * self.velocity

    @property
    def yaw(self) -> float:
        """Heading [rad]."""
        return float(np.arctan2(self.velocity[1], self.velocity[0]))

    @property
    def speed(self) -> float:
        """The larger of the speeds of line fit and flow [m/s]."""
        return float(max(np.hypot(*self._fit_velocity), np.hypot(*self.flow)))

    def moved_along_flow(self, min_travel: float) -> bool:
        """Return whether it travelled in the direction of its flow, by min_travel [m] or more.

        Points of a wall or a bush may have flow too, but the wall stays where it is.
        """
        predicted = self.flow * self._seconds
        distance = np.hypot(*predicted)
        travelled = self._fit_velocity @ predicted * self._seconds / max(distance, 1e-9)
        difference = np.hypot(*(self._fit_velocity - self.flow))
        is_far_enough = travelled >= max(min_travel, _MIN_TRAVEL_SHARE * distance)
        return bool(is_far_enough and difference <= _MAX_DISAGREEMENT * self.speed)
