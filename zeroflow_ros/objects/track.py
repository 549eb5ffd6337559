# SPDX-License-Identifier: Apache-2.0
"""One track: a straight line through its detections, and whether it moved along its flow."""

from collections import deque

import numpy as np

_WINDOW = 1.0  # s: a car that brakes or turns is still near its line
_BY_PLACES = 0.8  # share of the velocity that comes from places, the rest from flow, which errs to the slow side
_SIZE_GAIN = 0.3  # how fast a box grows or shrinks with what is seen
_ALIKE = 0.65  # places and flow may disagree about the velocity by this share of it
_HALF = 0.5  # of the way that the flow claims must have been gone


class Track:
    """What is known of one body, in a frame that does not move.

    position: (2,) [m], middle of its box when it was last seen. velocity: (2,) [m/s]. flow: (2,) [m/s], mean of what
    its points say. size: (3,) [m]. z, climb: height of its middle [m], and how fast that changes [m/s].
    num_hits: sweeps that it was seen in. last_seen: time [s]. confirmed: it moves, as far as one can see.
    """

    def __init__(self, track_id: int):
        self.track_id, self.num_hits, self.confirmed = track_id, 0, False
        self.last_believed = -np.inf  # when the evidence was last good
        self.seen_before = None  # share of its place that was not free, smoothed
        self._line: deque[tuple] = deque()  # time, x, y, flow x, flow y

    def see(self, time: float, center: np.ndarray, size: np.ndarray, velocity: np.ndarray) -> None:
        """Take what one sweep shows: middle of the box (3,), its size (3,), mean velocity of its points (3,)."""
        self.num_hits, self.last_seen = self.num_hits + 1, time
        self._line.append((time, *center[:2], *velocity[:2]))
        while self._line[0][0] < time - _WINDOW - 1e-6:
            self._line.popleft()
        self.size = size if self.num_hits == 1 else self.size + _SIZE_GAIN * (size - self.size)
        self.z, self.climb = float(center[2]), float(velocity[2])
        seen = np.array(self._line)
        self.flow = seen[:, 3:].mean(axis=0)
        times = seen[:, 0] - seen[:, 0].mean()
        self._slope = self.flow
        self.position, self.velocity = seen[-1, 1:3], self.flow
        if len(seen) > 2:
            self._slope = times @ seen[:, 1:3] / (times @ times)
            self.position = seen[:, 1:3].mean(axis=0) + times[-1] * self._slope
            self.velocity = _BY_PLACES * self._slope + (1 - _BY_PLACES) * self.flow
        self._seconds = seen[-1, 0] - seen[0, 0]

    def at(self, time: float) -> np.ndarray:
        """Return where it is if it goes on as it did, (2,) [m]."""
        return self.position + (time - self.last_seen) * self.velocity

    @property
    def yaw(self) -> float:
        """Heading [rad]."""
        return float(np.arctan2(self.velocity[1], self.velocity[0]))

    @property
    def speed(self) -> float:
        """The larger of the speeds that its places and its flow show [m/s]."""
        return float(max(np.hypot(*self._slope), np.hypot(*self.flow)))

    def has_gone(self, min_travel: float) -> bool:
        """Return whether it went where its flow says, min_travel [m] or more.

        Flow on a wall or a bush has a speed, too, but the wall stays.
        """
        claimed = self.flow * self._seconds
        way = np.hypot(*claimed)
        gone = self._slope @ claimed * self._seconds / max(way, 1e-9)
        differs = np.hypot(*(self._slope - self.flow))
        return bool(gone >= max(min_travel, _HALF * way) and differs <= _ALIKE * self.speed)
