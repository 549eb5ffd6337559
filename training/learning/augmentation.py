# SPDX-License-Identifier: Apache-2.0
"""Random augmentation of training pairs; the flow is transformed with the points."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms


@dataclass(frozen=True)
class Augmentation:
    """Strength of the augmentation of a training pair.

    yaw: largest rotation of the scene [rad]. any_yaw: probability of a rotation by any angle instead.
    flip: probability to mirror x, and separately y. scale: largest relative change of size.
    height: standard deviation of the error of the ground height [m].
    ego_translation, ego_yaw: standard deviations of the simulated ego-motion error [m, rad]; it is not added to the
        flow. thin: largest share of points dropped. jitter: standard deviation of each coordinate's noise [m].
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

    def __call__(self, clouds, flows, rng: np.random.Generator):
        """Return augmented copies of both clouds (N, 3), (M, 3) and their flows [m], and the rows kept of each.

        Clouds and flows share one frame.
        """
        turn = rng.uniform(-np.pi, np.pi) if rng.random() < self.any_yaw else rng.uniform(-self.yaw, self.yaw)
        linear = transforms.rotation_matrix([0, 0, turn]) * rng.uniform(1 - self.scale, 1 + self.scale)
        linear = linear @ np.diag([*rng.choice([-1.0, 1.0], 2, p=[self.flip, 1 - self.flip]), 1.0])
        height = rng.normal(0, self.height)
        ego_error = transforms.yaw_translation(
            rng.normal(0, self.ego_yaw), *rng.normal(0, self.ego_translation, 3) * [1, 1, 0.5]
        )
        keep_share = 1 - rng.uniform(0, self.thin) * (rng.random() < 0.5)
        changed_clouds, changed_flows, rows = [], [], []
        for number, (points, flow) in enumerate(zip(clouds, flows, strict=True)):
            kept = np.arange(len(points))
            if keep_share < 1:
                kept = np.flatnonzero(rng.random(len(points)) < keep_share)
                points, flow = points[kept], flow[kept]
            points = points @ linear.T.astype(np.float32)
            points += np.float32(self.jitter) * rng.standard_normal(points.shape, np.float32)
            points[:, 2] += height
            changed_clouds.append(transforms.apply(ego_error, points) if number else points)
            changed_flows.append(flow @ linear.T.astype(np.float32))
            rows.append(kept)
        return changed_clouds, changed_flows, rows
