# SPDX-License-Identifier: Apache-2.0
"""Input and output checks that warn without dropping the sweep. Independent of ROS."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.ego_motion.world_clouds import REGISTERED_REMEDY, far_from_origin
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.lidar.cloud_layout import check_rows
from zeroflow_ros.lidar.level import Level as GroundLevel
from zeroflow_ros.lidar.level import SensorLevel
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.point_cloud import FLOW_FIELDS
from zeroflow_ros.lidar.point_times import no_times_text, time_field
from zeroflow_ros.lidar.stray_returns import stray_share
from zeroflow_ros.lidar.sweep import DropReason, Sweep
from zeroflow_ros.pipeline import FlowEstimate
from zeroflow_ros.runtime.health import Health, Level
from zeroflow_ros.runtime.level_check import LevelCheck

NODE_CLOCK = 'the clock of this node'
_OTHER_CLOCK_S = 10.0  # a stamp this far from now was made by another clock, not by a slow network
_NEAR_DT = 0.3  # a dt within 30 % of the trained one gets no warning
_STRAY_EVERY, _MOST_STRAY = 50, 0.012  # sweeps: 10 ms in 5 s; 1 % stray returns in the whole sweep still do no harm
_SAMPLE = 8192  # rows that are checked for non-finite model output


class InputChecks:
    """Checks clouds and flow, and reports issues to the health.

    card: the model card; None where flow is not checked. deskews: whether clouds are deskewed. now_ns: the clock that
    the clouds are stamped by; of a bag the time when they were recorded. clock: what that time is, after 'stamped 3 s
    before'. time_name: field of the point times; '' for the one that is recognised.
    facts: values of the last sweep, for the diagnostics.
    """

    def __init__(self, health: Health, card: ModelCard | None, *, deskews: bool, now_ns: Callable[[], int],
                 clock: str = NODE_CLOCK, time_name: str = ''):  # fmt: skip
        self._health, self._card, self._deskews, self._now_ns, self._clock = health, card, deskews, now_ns, clock
        self._layout, self._time_name = None, time_name
        self._level, self._dropped_level = LevelCheck(), SensorLevel()
        self._num_checked = 0
        self.facts: dict = {}

    def check_cloud(self, msg, sweep: Sweep) -> None:
        """Check a cloud and its sweep for usable but suspicious input: point times, frame_id, NaN points, stamps."""
        health = self._health
        layout = (msg.point_step, msg.is_bigendian, tuple((f.name, f.offset, f.datatype) for f in msg.fields))
        if layout != self._layout:
            names = [field.name for field in msg.fields]
            if self._layout is not None:
                health.report_issue(
                    'layout', 'input', Level.OK, f'The layout of the clouds changed; fields now: {names}.', 'info'
                )
            self._layout = layout
            if msg.is_bigendian:
                health.log_once('big endian', 'Clouds are big-endian; they are decoded as such.', 'info')
            if replaced := [name for name in names if name in FLOW_FIELDS]:
                text = f'The clouds have fields {", ".join(replaced)} already; the output has new values in them.'
                health.log_once('flow fields', text)
            if (name := time_field(msg)) and not self._deskews:
                text = f'The clouds have point times ({name}); set deskew to true unless the driver deskews them.'
                health.log_once('time field', text, 'info')
        if correction := check_rows(msg).correction:
            self._warn_once('header', correction)
        if sweep.no_return_note:
            self._warn_once('no returns', sweep.no_return_note)
        if self._deskews:
            self._check_times(msg, sweep)
        if far := far_from_origin(sweep):
            health.report_issue('far from origin', 'input', Level.WARN, far)
        if not sweep.frame_id:
            text = 'The clouds have no frame_id; it is taken to be that of the ego motion. Set it in the driver.'
            health.report_issue('no frame_id', 'input', Level.WARN, text)
        num_own = len(sweep.own_rows)
        num_nan = int(np.count_nonzero(np.isnan(sweep.points[:, 0]))) - num_own
        if 2 * num_nan > len(sweep.points):
            text = f'{num_nan} of {len(sweep.points)} points have no return (NaN, infinite, or 0 0 0).'
            health.report_issue('nan', 'input', Level.WARN, text)
        behind = report_other_clock(health, self._now_ns(), sweep.stamp_ns, self._clock)
        self.facts = {'frame_id': sweep.frame_id, 'points': len(sweep.points), 'nan_points': num_nan,
                      'own_points': num_own, 'lost_times': sweep.num_lost_times,
                      'behind_clock_s': f'{behind:.3f}'}  # fmt: skip

    def check_ego_box(self, own_vehicle: OwnVehicle, frame_id: str, base_frame: str, mount: np.ndarray | None) -> None:
        """Warn where ego_box is taken in the frame of the clouds because their mount on base_frame is not known."""
        if own_vehicle.ego_box and mount is None and base_frame not in ('', frame_id):
            self._warn_once('ego_box', (
                f"ego_box is in the frame of the clouds, '{frame_id}', because nothing says how it is mounted on "
                f"'{base_frame}'. Publish this on /tf_static or set base_T_lidar; if the box is meant in the frame of "
                'the clouds, set base_frame to an empty text.'
            ))  # fmt: skip

    def report_motion(self, text: str) -> None:
        """Report what is wrong with an ego motion that is used, '' for nothing."""
        if text:
            self._health.report_issue('measured motion', 'ego_motion', Level.WARN, text)

    def _check_times(self, msg, sweep: Sweep) -> None:
        """Check the times of the points, where clouds are deskewed."""
        if not time_field(msg, self._time_name) and sweep.times is None:  # parts of a sweep have that of their stamp
            text = no_times_text(msg, self._time_name)
            self._health.log_once('no times', f'{text} They are used without deskewing.')
            self._health.report_issue('no times', 'input', Level.WARN, text, log='debug')
        if sweep.num_lost_times:
            text = (
                f'{sweep.num_lost_times} of {len(sweep.points)} points have a time in '
                f'{time_field(msg, self._time_name)!r} that makes no sense; they are deskewed with the time of the row '
                'before them.'
            )
            self._health.report_issue('lost times', 'input', Level.WARN, text)
        if sweep.times_note:
            self._warn_once('times origin', sweep.times_note)

    def _warn_once(self, kind: str, text: str) -> None:
        """Log a warning once, and show it in the diagnostics as long as it lasts."""
        self._health.log_once(kind, text)
        self._health.report_issue(kind, 'input', Level.WARN, text, log='debug')

    def check_level(self, sweep: Sweep, mount: np.ndarray | None) -> None:
        """Check the level of a sweep that gets no flow: registration fails where z does not point up.

        mount: base_T_sensor of the frame of the sweep, or None; see `FlowPipeline`.
        """
        self._dropped_level.set_mount(mount)
        self.report_level(self._dropped_level.update(sweep.points), sweep.points)

    def report_level(self, level: GroundLevel, points: np.ndarray) -> None:
        """Report what is wrong with the level of points (N, 3)."""
        card = self._card
        needs_height = card is None or not (card.z_origin == 'sensor' and card.ground == 'keep')
        kind, text = self._level.problem(level, self.facts.get('frame_id', ''), points, needs_height=needs_height)
        if kind:
            self._health.report_issue(kind, 'input', Level.WARN, text)

    def _check_stray_returns(self, points: np.ndarray) -> None:
        if self._num_checked % _STRAY_EVERY == 0 and (share := stray_share(points)) > _MOST_STRAY:
            text = (
                f'{100 * share:.1f} % of the points within 12 m are alone: rain, snow, dust or interference. '
                'Velocities are less accurate. Filter stray returns, in the driver or before this program.'
            )
            self._health.report_issue('stray returns', 'input', Level.WARN, text)
        self._num_checked += 1

    def check_flow(self, points: np.ndarray, estimate: FlowEstimate) -> None:
        """Check points (N, 3) and their velocities: dt, level, non-finite model output, points outside the grid."""
        card = self._card
        if abs(estimate.dt / card.nominal_dt - 1) > _NEAR_DT:
            text = f'{estimate.dt:.3f} s between sweeps; the model was trained on {card.nominal_dt} s.'
            self._health.log_once('other dt', text)
            self._health.report_issue('other dt', 'input', Level.WARN, text, log='debug')
        num_valid = int(np.count_nonzero(estimate.flow_valid))
        level = estimate.level
        self.facts = {**self.facts, 'valid_points': num_valid, 'dt_s': f'{estimate.dt:.4f}',
                      'sensor_height_m': f'{level.height:.2f}', 'roll_deg': f'{np.degrees(level.roll):.1f}',
                      'pitch_deg': f'{np.degrees(level.pitch):.1f}', 'tilt_from': level.tilt_from}  # fmt: skip
        self.report_level(level, points)
        self._check_stray_returns(points)
        # Rows inside the grid without a velocity: the output of the network is not finite.
        step = max(1, len(points) // _SAMPLE)
        with np.errstate(invalid='ignore', over='ignore'):  # rows that are infinite or huge are outside
            inside = card.grid.assign(transforms.apply(estimate.network_T_points, points[::step])) >= 0
        failed = np.count_nonzero(inside & (estimate.flow_valid[::step] == 0))
        if failed and card.ground == 'keep':
            level = Level.ERROR if failed > 0.01 * np.count_nonzero(inside) else Level.WARN
            text = f'The model output is NaN or infinite for {failed} of {np.count_nonzero(inside)} points in its grid.'
            self._health.report_issue('network nan', 'inference', level, text)
        elif num_valid == 0:
            text = f'No point is {card.grid.z_min} to {card.grid.z_max} m high above the ground. Check that z is up.'
            self._health.report_issue('out of range', 'input', Level.WARN, text)


def report_other_clock(health: Health, now_ns: int, stamp_ns: int, clock: str) -> float:
    """Warn of stamps that were made by another clock; return by how many seconds the stamp is behind.

    clock: what now_ns is, after 'stamped 3 s before'.
    """
    behind = (now_ns - stamp_ns) * 1e-9
    if now_ns and stamp_ns and abs(behind) > _OTHER_CLOCK_S:
        live = clock == NODE_CLOCK
        played = ', or a bag is played and use_sim_time is not set (or set without need)' if live else ''
        text = (
            f'Clouds are stamped {behind:.1f} s before {clock}: the sensor has another clock{played}. Flow needs '
            'differences of stamps only, but tf will fail.'
        )
        health.log_once('other clock', text)
        health.report_issue('other clock', 'input', Level.WARN, text, log='debug')
    return behind


def any_within(points: np.ndarray, reach: float) -> bool:
    """Return whether any of points (N, 3) has all coordinates within reach [m]; a sample is tried first."""
    return any(bool((np.abs(some) < reach).all(axis=1).any()) for some in (points[::64], points))


def without_points(sweep: Sweep) -> Sweep:
    """Return a sweep without its points, none of which is on the grid, and how far away they were."""
    with np.errstate(over='ignore', invalid='ignore'):
        distance = np.linalg.norm(sweep.points.astype(np.float64), axis=1)
    distance = distance[np.isfinite(distance)]
    nearest = float(distance.min()) if len(distance) else None
    return replace(sweep, points=sweep.points[:0], times=None, nearest=nearest)


def _nearest_text(sweep: Sweep) -> str:
    if sweep.nearest is None:
        return ''
    remedy = REGISTERED_REMEDY.format(frame_id=sweep.frame_id)
    return f"Its nearest point lies {sweep.nearest:.0f} m from the origin of its frame '{sweep.frame_id}'. {remedy} "


def drop_text(
    reason: DropReason, sweep: Sweep, last: Sweep | None, *, dt_range: tuple[float, float], reach: float
) -> str:
    """Return what to say of a sweep that makes no pair with the one before.

    reason: of `SweepBuffer`. last: the last sweep that was kept, or None. dt_range: (shortest, longest) seconds of a
    pair. reach: of the grid of the model [m].
    """
    dt = (sweep.stamp_ns - last.stamp_ns) * 1e-9 if last is not None else 0.0
    low, high = dt_range
    own = (
        f'{len(sweep.own_rows)} of its points are in ego_box or closer than min_range. ' if len(sweep.own_rows) else ''
    )
    return {
        DropReason.FIRST: 'The first sweep waits for the second.',
        DropReason.EMPTY: f'A cloud without a point within {reach:.0f} m is published without flow. '
        f'{own}{_nearest_text(sweep)}Check the sensor and its filters, and that clouds are in metres, x forward, z up.',
        DropReason.ZERO_STAMP: 'A cloud is stamped 0, so the time between sweeps is unknown. Make the driver '
        'stamp its clouds.',
        DropReason.DUPLICATE: f'Two clouds have the stamp {sweep.stamp_ns * 1e-9:.6f} s; the second is dropped.',
        DropReason.OUT_OF_ORDER: f'A cloud is {-dt:.3f} s older than the one before; it is dropped.',
        DropReason.TIME_RESET: f'Time went back by {-dt:.3f} s, as when a bag loops: starting over.',
        DropReason.FRAME_CHANGED: f"The frame_id changed from '{last.frame_id if last else ''}' to "
        f"'{sweep.frame_id}': no flow across the change. Two sensors on one topic need a topic each.",
        DropReason.GAP: f'{dt:.3f} s from one sweep to the next; this model works up to {high} s. Sweeps are lost, '
        "or the sensor's rate is too low for the model.",
        DropReason.TOO_CLOSE: f'{dt:.3f} s from one sweep to the next; this model works from {low} s. It is '
        'dropped.',
    }[reason]  # fmt: skip
