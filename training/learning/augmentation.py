# SPDX-License-Identifier: Apache-2.0
"""Random augmentation of training windows; the flow is transformed with the points."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms


@dataclass(frozen=True)
class Augmentation:
    """Strength of the augmentation of a training window.

    yaw: largest rotation of the scene [rad]. any_yaw: probability of a rotation by any angle instead.
    flip: probability to mirror x, and separately y. scale: largest relative change of size.
    height: standard deviation of the error of the ground height [m]. tilt: that of roll and pitch that levelling leaves
        [rad].
    ego_translation, ego_yaw: standard deviations of the simulated ego-motion error from sweep to sweep [m, rad]; it is
        not added to the flow. thin: largest share of points dropped.
    jitter: standard deviation of each coordinate's noise [m].
    """

    yaw: float = 0.35
    any_yaw: float = 0.25
    flip: float = 0.5
    scale: float = 0.05
    height: float = 0.15
    ego_translation: float = 0.015
    ego_yaw: float = 0.0007
    thin: float = 0.5
    jitter: float = 0.01
    tilt: float = 0.0

    def __call__(self, clouds, flows, rng: np.random.Generator):
        """Return augmented copies of all clouds (N, 3) and of the flows [m] of the first and the last, and rows.

        Clouds and flows share one frame. The rows are those kept of every cloud.
        """
        turn = rng.uniform(-np.pi, np.pi) if rng.random() < self.any_yaw else rng.uniform(-self.yaw, self.yaw)
        linear = transforms.rotation_matrix([0, 0, turn]) * rng.uniform(1 - self.scale, 1 + self.scale)
        linear = linear @ np.diag([*rng.choice([-1.0, 1.0], 2, p=[self.flip, 1 - self.flip]), 1.0])
        if self.tilt:
            linear = linear @ transforms.rotation_matrix([*rng.normal(0, self.tilt, 2), 0])
        height = rng.normal(0, self.height)
        ego_errors = [np.eye(4)]
        for _ in clouds[1:]:
            ego_errors.append(ego_errors[-1] @ self._ego_error(rng))
        keep_share = 1 - rng.uniform(0, self.thin) * (rng.random() < 0.5)
        last = len(clouds) - 1
        changed_clouds, changed_flows, rows = [], [], []
        for number, points in enumerate(clouds):
            flow = {0: flows[0], last: flows[-1]}.get(number)
            kept = np.arange(len(points))
            if keep_share < 1:
                kept = np.flatnonzero(rng.random(len(points)) < keep_share)
                points = points[kept]
            points = points @ linear.T.astype(np.float32)
            points += np.float32(self.jitter) * rng.standard_normal(points.shape, np.float32)
            points[:, 2] += height
            changed_clouds.append(transforms.apply(ego_errors[number], points) if number else points)
            if flow is not None:
                changed_flows.append(flow[kept] @ linear.T.astype(np.float32))
            rows.append(kept)
        return changed_clouds, changed_flows, rows

    def _ego_error(self, rng: np.random.Generator) -> np.ndarray:
        """Return the error of the ego motion of one step, (4, 4)."""
        return transforms.yaw_translation(
            rng.normal(0, self.ego_yaw), *rng.normal(0, self.ego_translation, 3) * [1, 1, 0.5]
        )
