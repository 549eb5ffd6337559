# SPDX-License-Identifier: Apache-2.0
"""Sequences for scoring a tracker: simulated or recorded drives with a model's flow and ground-truth objects."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.datasets.ground_truth_objects import GroundTruthObject, actor_objects, box_objects, count_points
from training.datasets.tracked_boxes import TrackedBoxes
from training.simulation.sensors.lidar import Category
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.engines.engine import Engine
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.lidar.sweep_history import SweepHistory
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.runtime.offline import OfflineFlow


@dataclass(frozen=True)
class FlowSweep:
    """One sweep of a drive, with its flow.

    number: index in the drive. time: [s]. points: (N, 3) [m]. velocity: (N, 3) [m/s], NaN where there is none.
    ego0_T_ego1: (4, 4), maps points of this sweep into the frame of the previous one. dt: seconds since that sweep.
    """

    number: int
    time: float
    points: np.ndarray
    velocity: np.ndarray
    ego0_T_ego1: np.ndarray
    dt: float


class SimulatedDrive:
    """A simulated clip; its ground truth is complete."""

    def __init__(self, seed: int, engine: Engine, *, num_sweeps: int, sensor: str | None = None):
        self.name, self._seed, self._engine, self._num_sweeps = f'clip_{seed:06d}', seed, engine, num_sweeps
        self._sensor = sensor
        self._objects: list[list[GroundTruthObject]] = []

    def sweeps(self) -> Iterator[FlowSweep]:
        """Yield all sweeps from the second on."""
        from training.simulation.clips import simulate_clip  # the ray caster is needed only here

        clip = simulate_clip(self._seed, lidar=self._sensor, num_sweeps=self._num_sweeps)
        self._objects = actor_objects(clip)
        pipeline = FlowPipeline(self._engine)
        points = [sweep.points[sweep.category != Category.EGO] for sweep in clip.sweeps]
        history = SweepHistory(self._engine.card.num_sweeps)
        for number in range(1, len(clip.sweeps)):
            before, now = clip.sweeps[number - 1 : number + 1]
            ego0_T_ego1 = transforms.invert(before.odom_T_lidar) @ now.odom_T_lidar
            sweeps = (Sweep(points[k], clip.sweeps[k].stamp_ns) for k in (number - 1, number))
            pair = history.pair(*sweeps, ego0_T_ego1)
            estimate = pipeline.estimate(pair)
            time = (now.stamp_ns - clip.sweeps[0].stamp_ns) * 1e-9
            yield FlowSweep(number, time, points[number], estimate.velocity, ego0_T_ego1, pair.dt)

    def objects(self) -> dict[int, list[GroundTruthObject]]:
        """Return the ground-truth objects by sweep number; valid after iterating `sweeps`."""
        return dict(enumerate(self._objects))

    def is_known(self, points: np.ndarray) -> np.ndarray:
        """Return which points (K, 3) have known ground truth: all."""
        return np.ones(len(points), bool)


class RecordedDrive:
    """A bag with tracked boxes; its ground truth is known in the camera's field of view."""

    def __init__(self, path: str, boxes: TrackedBoxes, engine: Engine):
        self._path, self._boxes, self._engine = path, boxes, engine
        self.name = str(path)
        self._poses: dict[int, tuple[float, np.ndarray]] = {}
        self._num_points: dict[int, list[int]] = {}

    def sweeps(self) -> Iterator[FlowSweep]:
        """Yield the sweeps that have flow.

        Raises: DataError when the numbers of box lists and clouds differ.
        """
        world_T_ego, start_ns, number = np.eye(4), None, -1
        with Bag(self._path) as bag:
            for number, result in enumerate(OfflineFlow(bag, self._engine)):
                if number >= len(self._boxes.sweeps):
                    break
                if result.estimate is None:
                    continue
                sweep = decode_cloud(result.message)
                start_ns = sweep.stamp_ns if start_ns is None else start_ns
                world_T_ego = world_T_ego @ result.ego0_T_ego1
                time = (sweep.stamp_ns - start_ns) * 1e-9
                self._poses[number] = time, world_T_ego
                self._num_points[number] = count_points(sweep.points, self._boxes.sweeps[number])
                yield FlowSweep(number, time, sweep.points, result.estimate.velocity, result.ego0_T_ego1,
                                result.estimate.dt)  # fmt: skip
        if number + 1 != len(self._boxes.sweeps):
            raise DataError(
                f'{self._boxes.path} has boxes for {len(self._boxes.sweeps)} sweeps, {self._path} has another number '
                'of clouds. Use a box file with one list of boxes per cloud.'
            )

    def objects(self) -> dict[int, list[GroundTruthObject]]:
        """Return the ground-truth objects by sweep number; valid after iterating `sweeps`."""
        return box_objects(self._boxes, self._poses, self._num_points)

    def is_known(self, points: np.ndarray) -> np.ndarray:
        """Return which points (K, 3) lie where the ground truth is known."""
        return self._boxes.is_in_image(points)
