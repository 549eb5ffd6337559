# SPDX-License-Identifier: Apache-2.0
"""Compute the flow of a bag offline: without ROS, at full speed, without lost sweeps."""

import contextlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message, encode_message, flow_cloud_message
from zeroflow_ros.ego_motion.bag_motion import BagMotion, static_transforms
from zeroflow_ros.ego_motion.world_clouds import in_cloud_axes, mount_of
from zeroflow_ros.engines.engine import Engine
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.selection import engine_from_spec
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import CloudError, ConfigError, EgoMotionError
from zeroflow_ros.lidar.deskew import Deskew
from zeroflow_ros.lidar.dynamic_points import not_static_rows, static_cloud
from zeroflow_ros.lidar.joined_cloud import starts_over, with_part_times
from zeroflow_ros.lidar.level import Level
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud
from zeroflow_ros.lidar.point_times import LONGEST_SWEEP, check_time_unit, with_times
from zeroflow_ros.lidar.sweep import DropReason, SweepBuffer
from zeroflow_ros.lidar.sweep_assembly import Outcome, SweepAssembly
from zeroflow_ros.lidar.sweep_history import SweepHistory
from zeroflow_ros.pipeline import FlowEstimate, FlowPipeline
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.runtime.input_checks import InputChecks, any_within, drop_text, without_points
from zeroflow_ros.runtime.offline_run import report_of_run, with_other_topics
from zeroflow_ros.runtime.run_summary import RunSummary, option_names, renamed
from zeroflow_ros.transforms import from_quaternion
from zeroflow_ros.views import rerun_view
from zeroflow_ros.views.report import latency_table, write_json

FLOW_TOPIC = '/flow_node/output/flow'  # as the node publishes it, so that one RViz layout shows both
STATIC_TOPIC = '/flow_node/output/static_points'
# A sweep dropped for one of these reasons does not start the next pair; the last sweep before it does.
_NOT_KEPT = (
    DropReason.MALFORMED, DropReason.EMPTY, DropReason.ZERO_STAMP, DropReason.DUPLICATE, DropReason.OUT_OF_ORDER,
    DropReason.TOO_CLOSE,
)  # fmt: skip
BASE_FRAME = 'base_link'
_MAX_WAITING = 20  # sweeps that wait for odometry later in the bag: 2 s at 10 Hz


@dataclass(frozen=True)
class SweepResult:
    """The result of one sweep.

    message: the sensor_msgs/PointCloud2 that the rows of the estimate belong to; with `drop`, the dropped one.
    time_ns: when that message was recorded. estimate: None when dropped. drop, reason: the cause and a sentence on it.
    ego0_T_ego1: (4, 4) motion between the two sweeps; None when dropped. stages_ms: milliseconds by stage.
    own_rows: (K,) row numbers of points on the own vehicle; None when dropped.
    """

    message: object
    time_ns: int
    estimate: FlowEstimate | None
    drop: DropReason | None
    reason: str
    ego0_T_ego1: np.ndarray | None
    stages_ms: dict
    own_rows: np.ndarray | None = None


class OfflineFlow:
    """Iterates over the sweeps of a bag in order and yields a `SweepResult` for each.

    topic: of the clouds; '' if the bag has only one. ego_motion, odometry_topic,
    odometry_T_lidar, fixed_frame, stamp_offset: see `BagMotion`.
    deskew: motion-compensate points to the stamps of their sweeps, if clouds have point times.
    base_frame: frame whose z is up; /tf_static of the bag says how the sensor is mounted on it; '': do not look.
    base_T_lidar: (4, 4), instead of /tf_static. time_name, time_unit: see `with_times`. own_vehicle: its points count
    as no returns. output_on, sensor_height, refinements, fit_objects: see `FlowPipeline`.
    start, duration: part of the bag in seconds; duration 0 is up to its end. assemble_sweeps: see `SweepAssembly`.
    Raises: DataError or EgoMotionError when the bag lacks what is needed; ConfigError for an unknown choice.
    """

    def __init__(self, bag: Bag, engine: Engine, *, topic: str = '', ego_motion: str = 'auto',
                 odometry_topic: str = '', odometry_T_lidar: np.ndarray | None = None, fixed_frame: str = '',
                 stamp_offset: float | None = None, output_on: str = 'latest',
                 sensor_height: float | None = None, base_frame: str = BASE_FRAME,
                 base_T_lidar: np.ndarray | None = None, refinements: int = 0, fit_objects: bool = True,
                 deskew: bool = False, time_name: str = '', time_unit: str = 'auto',
                 own_vehicle: OwnVehicle | None = None,
                 assemble_sweeps: str = 'auto', start: float = 0.0, duration: float = 0.0):  # fmt: skip
        self.topic = bag.point_cloud_topic(topic)
        first = decode_message(bag.first(self.topic).cdr, POINT_CLOUD)
        frame_id = first.header.frame_id.lstrip('/')
        self.motion = BagMotion(bag, ego_motion, frame_id=frame_id, odometry_topic=odometry_topic,
                                odometry_T_lidar=odometry_T_lidar, fixed_frame=fixed_frame, cloud_topic=self.topic,
                                stamp_offset=stamp_offset)  # fmt: skip
        if deskew and self.motion.source == 'none':
            raise ConfigError('--deskew needs ego motion; choose an --ego-motion other than none.')
        self._deskew = Deskew() if deskew else None
        self._assembly = SweepAssembly(assemble_sweeps, time_name, time_unit, can_wait=True)
        check_time_unit(time_unit)
        self._times, self._own_vehicle = (time_name, time_unit), own_vehicle or OwnVehicle()
        self._bag, self._engine = bag, engine
        self._buffer, self._history = SweepBuffer(engine.card.dt_range), SweepHistory(engine.card.num_sweeps)
        self._pipeline = FlowPipeline(engine, output_on=output_on, sensor_height=sensor_height,
                                      refinements=refinements, fit_objects=fit_objects,
                                      ego_motion_removed=self.motion.source != 'none')  # fmt: skip
        self._base_frame, self._base_T_lidar = base_frame.lstrip('/'), base_T_lidar
        self._static_transforms = static_transforms(bag, self._base_frame, frame_id)
        self._start_ns, self._end_ns = bag.window(start, duration)
        self._last: tuple | None = None  # message and time of the buffer's last sweep
        self.health = Health(lambda level, text: None)  # what a live node would show in its diagnostics
        self._recorded_ns = 0  # when the current cloud was recorded
        self.input_checks = InputChecks(self.health, engine.card, deskews=deskew, now_ns=lambda: self._recorded_ns,
                                        clock='they were recorded', time_name=time_name)  # fmt: skip
        self._num_points = self._num_valid = 0
        self.parts_note = ''  # what is joined, where messages hold parts of a revolution

    @property
    def card(self) -> ModelCard:
        """Card of the model."""
        return self._engine.card

    @property
    def window_ns(self) -> tuple[int, int]:
        """The part of the bag that is used, [start_ns, end_ns)."""
        return self._start_ns, self._end_ns

    def __iter__(self) -> Iterator[SweepResult]:
        topics = [self.topic] + ([self.motion.topic] if self.motion.topic else [])
        waiting: deque[tuple[Outcome, int]] = deque()  # with the stamp up to which the motion must be known [ns]
        ahead_ns = round(LONGEST_SWEEP * 1e9) if self._deskew else 0
        # Odometry from a second before and after, so that the first and the last sweep lie between two poses.
        for message in self._bag.messages(topics, start_ns=self._start_ns - 10**9, end_ns=self._end_ns + 10**9):
            if message.topic != self.topic:
                self.motion.add_odometry(message.cdr)
            elif self._start_ns <= message.time_ns < self._end_ns:
                found = self._assembly.push(decode_message(message.cdr, POINT_CLOUD), message)
                waiting.extend((one, message.stamp_ns + ahead_ns) for one in found)
            while waiting and (self.motion.covers(waiting[0][1]) or len(waiting) > _MAX_WAITING):
                yield from self._use(waiting.popleft()[0])
        for found in [*(found for found, _ in waiting), *self._assembly.flush()]:
            yield from self._use(found)

    def _use(self, found: Outcome) -> Iterator[SweepResult]:
        """Yield the result of messages that make a sweep, or of messages that are dropped."""
        if found.message is not None:
            self.health.record_received()
        if found.drop is not None:
            self.health.record_dropped(found.drop, found.text)
            yield SweepResult(found.message, found.tags[-1].time_ns, None, found.drop, found.text, None, {})
        elif found.text:
            self.parts_note = found.text
        else:
            yield self._process(found.message, found.tags[-1].time_ns)

    def _process(self, message, time_ns: int) -> SweepResult:
        watch = Stopwatch()
        self._recorded_ns = time_ns

        def dropped(drop: DropReason, reason: str) -> SweepResult:
            self.health.record_dropped(drop, reason)
            return SweepResult(message, time_ns, None, drop, reason, None, watch.stages_ms)

        try:
            with watch('decode'):
                sweep = decode_cloud(message)
                if self._deskew:
                    sweep = with_part_times(message, with_times(message, sweep, *self._times))
            sweep = self.motion.to_sensor_frame(sweep)
            sweep = self._own_vehicle.remove(sweep, mount := self._mount(sweep.frame_id))
            self.motion.set_mount(mount)
        except CloudError as error:
            return dropped(DropReason.MALFORMED, str(error))
        except EgoMotionError as error:
            return dropped(DropReason.EGO_MOTION, str(error))
        self.input_checks.check_cloud(message, sweep)
        self.input_checks.check_ego_box(self._own_vehicle, sweep.frame_id, self._base_frame, mount)
        if not any_within(sweep.points, self.card.grid.half_extent):  # as the node does
            sweep = without_points(sweep)
        if self._last is not None and starts_over(message, self._last[0]):
            self._buffer.reset()
        last = self._buffer.last
        previous, drop = self._buffer.push(sweep)
        if drop in (DropReason.TIME_RESET, DropReason.FRAME_CHANGED):
            self._pipeline.reset()
            self.motion.reset()
        before, self._last = self._last, (message, time_ns) if self._buffer.last is sweep else self._last
        if drop is not None:
            card = self.card
            return dropped(drop, drop_text(drop, sweep, last, dt_range=card.dt_range, reach=card.grid.half_extent))
        try:
            if self._deskew:
                with watch('deskew'):
                    previous, sweep = self._deskew.pair(previous, sweep, self.motion.poses_at_offsets)
            with watch('ego_motion'):
                ego0_T_ego1 = self.motion.between(previous, sweep)
            self.input_checks.report_motion(self.motion.warning)
        except EgoMotionError as error:
            self.input_checks.check_level(sweep, self._mount(sweep.frame_id))
            return dropped(DropReason.EGO_MOTION, str(error))
        self._pipeline.set_mount(mount_of(sweep, self._mount(sweep.frame_id)))
        estimate = self._pipeline.estimate(self._history.pair(previous, sweep, ego0_T_ego1))
        shown = previous if estimate.output_on == 'previous' else sweep
        self._count(shown.points, estimate)
        if shown.frame_T_sensor is not None:  # clouds in a fixed frame, and so is what is shown
            estimate, ego0_T_ego1 = replace(estimate, velocity=in_cloud_axes(estimate.velocity, shown)), np.eye(4)
        carrier, carrier_ns = before if estimate.output_on == 'previous' else self._last
        own_rows = shown.own_rows
        stages_ms = {**watch.stages_ms, **estimate.stages_ms}
        return SweepResult(carrier, carrier_ns, estimate, None, '', ego0_T_ego1, stages_ms, own_rows)

    def _count(self, points: np.ndarray, estimate: FlowEstimate) -> None:
        """Count and check points (N, 3) and their flow."""
        short = estimate.num_sweeps < self.card.num_sweeps
        self.health.record_published({}, max_ms=np.inf, max_consecutive_ms=np.inf, short_history=short)
        self.input_checks.check_flow(points, estimate)
        self._num_points += int(np.count_nonzero(~np.isnan(points[:, 0])))
        self._num_valid += int(np.count_nonzero(estimate.flow_valid))

    def summary(self) -> RunSummary:
        """Return what became of the sweeps so far, with all that the diagnostics of a node would have said."""
        return RunSummary.of(self.health, self.topic, num_points=self._num_points, num_valid=self._num_valid,
                             notes=self._bag.notes)  # fmt: skip

    def _mount(self, frame_id: str) -> np.ndarray | None:
        """Return base_T_sensor, (4, 4), of a cloud's frame; None where it is not known."""
        if self._base_T_lidar is not None or not self._base_frame:
            return self._base_T_lidar
        return self._static_transforms.lookup(self._base_frame, frame_id)


def estimate_flow(bag: Bag, engine: Engine, **options) -> Iterator[tuple[object, FlowEstimate]]:
    """Yield (PointCloud2 message, its FlowEstimate) for every sweep of a bag that gets flow; see `OfflineFlow`."""
    for result in OfflineFlow(bag, engine, **options):
        if result.estimate is not None:
            yield result.message, result.estimate


def write_flow(flow: OfflineFlow, bag_path: Path, writer: BagWriter, *,
               static_below: float | None = None) -> Iterator[SweepResult]:  # fmt: skip
    """Write flow clouds together with the odometry and transforms of the bag; yield each result once written.

    static_below: also write the clouds without the points of at least this speed [m/s], on STATIC_TOPIC.
    """
    for item in with_other_topics(flow, bag_path, writer):
        if item.estimate is not None:
            watch = Stopwatch()
            with watch('publish'):
                cloud = flow_cloud(item.message, item.estimate.velocity, item.estimate.flow_valid)
                header = item.message.header
                header.frame_id = header.frame_id.lstrip('/')
                cdr = encode_message(flow_cloud_message(header, cloud), POINT_CLOUD)
                writer.write(FLOW_TOPIC, POINT_CLOUD, item.time_ns, cdr)
                if static_below is not None:
                    _write_static(item, static_below, writer)
            item.stages_ms.update(watch.stages_ms)
        yield item


def _write_static(result: SweepResult, min_speed: float, writer: BagWriter) -> None:
    removed = not_static_rows(result.message, result.estimate.velocity, min_speed, result.own_rows)
    message = flow_cloud_message(result.message.header, static_cloud(result.message, removed))
    message.is_dense = result.message.is_dense
    writer.write(STATIC_TOPIC, POINT_CLOUD, result.time_ns, encode_message(message, POINT_CLOUD))


def show_results(results: Iterable[SweepResult], view: rerun_view.RerunView) -> Iterator[SweepResult]:
    """Show each sweep that gets flow as it is computed; yield every result.

    The world frame is the LiDAR frame at the first sweep; after a sweep with unknown motion it starts anew.
    """
    world_T_ego = np.eye(4)  # pose of the first sweep of the next pair
    for result in results:
        if result.estimate is not None:
            world_T_ego0, world_T_ego = world_T_ego, world_T_ego @ result.ego0_T_ego1
            sweep = decode_cloud(result.message)
            pose = world_T_ego0 if result.estimate.output_on == 'previous' else world_T_ego
            view.show(sweep.stamp_ns, sweep.points, result.estimate.velocity, pose)
        elif result.drop not in _NOT_KEPT:
            view.start_over()
            world_T_ego = np.eye(4)
        yield result


def main(args) -> int:
    """Run with the arguments that `replay` parsed: write the bag, or show it; print the table; return the exit status.

    Without --out, a bag that contains flow is shown with that flow, and nothing is computed.
    """
    has_view = args.view or args.view_file
    if not args.out and not has_view:
        raise ConfigError(
            '--offline needs --out, a directory or a file ending in .mcap to write flow to, or --view or --view-file.'
        )
    if args.static_points is not None and not args.out:
        raise ConfigError('--static-points writes into the bag of --out, which is not given.')
    if len(args.topic) > 1:
        raise ConfigError(f'--offline takes one --topic, got {", ".join(args.topic)}.')
    if has_view:
        if not args.out and rerun_view.has_flow(args.bag, ''.join(args.topic)):
            return rerun_view.show_file(args)
    pose, mount = args.odometry_T_lidar, args.base_T_lidar
    engine = engine_from_spec(args.model, num_threads=args.threads)
    with Bag(args.bag) as bag:
        flow = OfflineFlow(
            bag, engine, topic=''.join(args.topic), ego_motion=args.ego_motion, odometry_topic=args.odometry_topic,
            odometry_T_lidar=from_quaternion(pose[:3], pose[3:]) if pose else None, output_on=args.output_on,
            fixed_frame=args.fixed_frame, stamp_offset=args.stamp_offset,
            sensor_height=args.sensor_height, base_frame=args.base_frame,
            base_T_lidar=from_quaternion(mount[:3], mount[3:]) if mount else None,
            refinements=args.refinements, fit_objects=not args.no_fit_objects, deskew=args.deskew, start=args.start,
            duration=args.duration, assemble_sweeps=args.assemble_sweeps,
            time_name=args.time_field, time_unit=args.time_unit,
            own_vehicle=OwnVehicle(tuple(args.ego_box or ()), args.min_range),
        )  # fmt: skip
        if flow.motion.note:
            print(f'Ego motion by {flow.motion.describe()}: {flow.motion.note}', file=sys.stderr)
        told = flow.motion.note
        with contextlib.ExitStack() as opened:
            results = flow
            if args.out:
                writer = opened.enter_context(BagWriter(args.out, replace=args.replace))
                results = write_flow(flow, bag.path, writer, static_below=args.static_points)
            if has_view:
                view = opened.enter_context(rerun_view.RerunView(args.view_file, replace=args.replace))
                results = show_results(results, view)
            report = {'bag': str(bag.path), 'model': engine.card.name, **_run(flow, bag, results)}
            names = option_names(vars(args))
            summary = flow.summary().with_names(names)
            report |= summary.report()
            if args.report:
                write_json(args.report, report)
            summary.check()  # before the output takes its place
    print('\n'.join(summary.lines()))
    speed, seconds = report['points_per_second'], report['seconds']
    print(f'{speed:,} points per second for {seconds:.1f} s, ego motion by {report["ego_motion"]}')
    print(latency_table(report['latency_ms']))
    print(f'Flow is in {" and ".join(filter(None, [args.out, args.view_file])) or "the Rerun viewer"}')
    if flow.motion.note != told:  # 'auto' gave up a source meanwhile
        print(f'Ego motion by {flow.motion.describe()}: {flow.motion.note}', file=sys.stderr)
    for line in filter(None, [renamed(flow.parts_note, names), *summary.warnings()]):
        print(line, file=sys.stderr)
    return 0


def _run(flow: OfflineFlow, bag: Bag, results: Iterable[SweepResult]) -> dict:
    """Iterate over all results, which computes, writes and shows them; return the report values.

    Raises: KeyboardInterrupt after the sweep during which SIGINT or SIGTERM arrived.
    """
    total = next(topic.num_messages for topic in bag.topics if topic.name == flow.topic)
    num_rows, level = 0, None

    def count(result: SweepResult) -> None:
        nonlocal num_rows, level
        num_rows += len(result.estimate.velocity)
        level = result.estimate.level

    report = report_of_run(results, total, 'sweeps', count)
    return {
        'ego_motion': flow.motion.source,
        'ego_motion_note': flow.motion.note,
        **_level_values(level),
        'points_per_second': round(num_rows / report['seconds']) if report['seconds'] else 0,
        **report,
    }


def _level_values(level: Level | None) -> dict:
    """Return the level of the last sweep with flow for the report; {} without one."""
    if level is None:
        return {}
    return {
        'sensor_height': None if np.isnan(level.height) else round(level.height, 3),
        'roll_deg': round(float(np.degrees(level.roll)), 2),
        'pitch_deg': round(float(np.degrees(level.pitch)), 2),
        'tilt_from': level.tilt_from,
    }
