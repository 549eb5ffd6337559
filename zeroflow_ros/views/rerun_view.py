# SPDX-License-Identifier: Apache-2.0
"""Show sweeps with flow in the Rerun viewer, or write a file for it: cloud coloured by speed, arrows, trajectory.

Needs rerun-sdk, which is imported only when a view is opened. The time line shows the stamps of the sweeps.
"""

import os
import sys
import tempfile
from collections import deque
from pathlib import Path

import numpy as np

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.camera.output_frame import BODY_T_OPTICAL, is_optical
from zeroflow_ros.ego_motion.bag_motion import BagMotion
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.transforms import apply, from_quaternion, invert
from zeroflow_ros.views.arrows import pick_arrows, speed_colors
from zeroflow_ros.views.recorded_flow import MOVING, read_velocity

WORLD = 'world'
POINTS, ARROWS, EGO, TRAJECTORY = 'ego/points', 'ego/arrows', 'ego', 'trajectory'  # below a world
IMAGE, DEPTH = 'left_image', 'depth'
TIME_LINE = 'stamp'
STATIC_COLOR, UNKNOWN_COLOR = (120, 130, 145), (52, 58, 70)  # grey: only moving points are coloured; dark: no velocity
_POINT_SIZE = 1.5  # pixels, at any distance
_ARROW_RADIUS = 0.04  # m
_LONGEST_TRAJECTORY = 1000  # poses: 100 s at 10 Hz
_EYE, _LOOK_AT = (-30.0, 0.0, 22.0), (8.0, 0.0, 0.0)  # m in the LiDAR's frame: from behind and above


class RerunView:
    """Shows sweeps one after the other: `with RerunView(...) as view`.

    path: a file ending in .rrd to write instead of opening a viewer; it appears when it is complete.
    replace: replace an existing file. worlds: names of the views that are shown side by side. images: also show those
    of `show_images`.
    Raises: ConfigError when rerun-sdk is not installed or there is no screen; DataError when the file exists.
    """

    def __init__(self, path: str | Path = '', *, replace: bool = False, worlds: tuple[str, ...] = (WORLD,),
                 images: bool = False):  # fmt: skip
        self._rerun = _import_rerun()
        self._worlds, self._blueprint = worlds, _blueprint(self._rerun, worlds, images)
        self.path = Path(path).expanduser().absolute() if str(path) else None
        self._temporary: Path | None = None
        self._trajectory: deque[np.ndarray] = deque(maxlen=_LONGEST_TRAJECTORY)
        self.num_sweeps = 0
        if self.path is None:
            self._recording = self._open_viewer()
        else:
            self._recording = self._open_file(replace)
        for world in worlds:
            self._recording.log(world, self._rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def __enter__(self) -> 'RerunView':
        return self

    def __exit__(self, error_type, *_) -> None:
        self._recording.flush()
        self._recording.disconnect()
        if self._temporary is None:
            return
        if error_type is None and self.num_sweeps:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)

    def show(self, stamp_ns: int, points: np.ndarray, velocity: np.ndarray, world_T_ego: np.ndarray | None, *,
             world: str = WORLD) -> None:  # fmt: skip
        """Show a sweep at its stamp in one of the worlds; show each stamp in the first world first.

        points: (N, 3) float32 [m] in the LiDAR's frame; NaN rows are left out. velocity: (N, 3) float32 [m/s], NaN
        where there is none. world_T_ego: (4, 4) pose of that frame; None: unknown, no trajectory is shown.
        """
        rr, recording = self._rerun, self._recording
        recording.set_time(TIME_LINE, timestamp=np.datetime64(stamp_ns, 'ns'))
        is_valid = np.isfinite(points).all(axis=1)
        points, velocity = points[is_valid], velocity[is_valid]
        radius = rr.Radius.ui_points(_POINT_SIZE)
        recording.log(f'{world}/{POINTS}', rr.Points3D(points, colors=point_colors(velocity), radii=radius))
        segments, colors = pick_arrows(points, velocity, min_speed=MOVING)
        recording.log(f'{world}/{ARROWS}', rr.Arrows3D(origins=segments[:, 0], vectors=segments[:, 1] - segments[:, 0],
                                          colors=_bytes(colors[:, 1, :3]), radii=_ARROW_RADIUS))  # fmt: skip
        if world_T_ego is not None:
            if world == self._worlds[0]:
                self._trajectory.append(world_T_ego[:3, 3].astype(np.float32))
            recording.log(f'{world}/{EGO}', rr.Transform3D(translation=world_T_ego[:3, 3], mat3x3=world_T_ego[:3, :3]))
            recording.log(
                f'{world}/{TRAJECTORY}',
                rr.LineStrips3D([np.stack(self._trajectory)], radii=_ARROW_RADIUS, colors=[STATIC_COLOR]),
            )
        self.num_sweeps += world == self._worlds[0]

    def show_images(self, image: np.ndarray, depth: np.ndarray) -> None:
        """Show the left image, (H, W, 3) uint8 RGB or (H, W), and its depth (H, W) [m] with the last sweep."""
        self._recording.log(IMAGE, self._rerun.Image(image).compress(jpeg_quality=85))
        self._recording.log(DEPTH, self._rerun.DepthImage(np.nan_to_num(depth), meter=1.0))

    def start_over(self) -> None:
        """Begin another trajectory: the motion from the last sweep to the next one is unknown."""
        self._trajectory.clear()

    def _open_viewer(self):
        has_screen = os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')
        if sys.platform == 'linux' and not has_screen:
            raise ConfigError(
                'There is no screen for the Rerun viewer: neither DISPLAY nor WAYLAND_DISPLAY is set. Write a file '
                "with --view-file FILE.rrd and open it elsewhere with 'rerun FILE.rrd'."
            )
        recording = self._rerun.RecordingStream('zeroflow_ros')
        try:
            recording.spawn(default_blueprint=self._blueprint)
        except Exception as error:  # the viewer is another program, and its errors have many types
            raise ConfigError(f'The Rerun viewer does not start: {error}. Use --view-file FILE.rrd.') from error
        return recording

    def _open_file(self, replace: bool):
        if self.path.suffix != '.rrd':
            raise ConfigError(f'--view-file needs a file that ends in .rrd, got {self.path}.')
        if self.path.exists() and not replace:
            raise DataError(f'{self.path} exists already. Remove it, choose another name, or add --replace.')
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f'.{self.path.stem}.', suffix='.rrd', dir=self.path.parent)
        os.close(handle)
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
        self._temporary = Path(name)
        recording = self._rerun.RecordingStream('zeroflow_ros')
        recording.save(name, default_blueprint=self._blueprint)
        return recording


def has_flow(path: str | Path, topic: str = '') -> bool:
    """Return whether the clouds of a bag have velocities."""
    with Bag(path) as bag:
        message = decode_message(next(bag.messages([bag.point_cloud_topic(topic)])).cdr, POINT_CLOUD)
    return {'vx', 'vy', 'vz'} <= {field.name for field in message.fields}


def show_recording(bag: Bag, view: RerunView, *, topic: str = '', odometry_topic: str = '',
                   odometry_T_lidar: np.ndarray | None = None, start: float = 0.0,
                   duration: float = 0.0) -> str:  # fmt: skip
    """Show the recorded flow of a bag.

    topic, odometry_topic, odometry_T_lidar: as for `OfflineFlow`. start, duration: seconds of the bag; duration 0: to
    its end. Returns why the trajectory is not shown, '' if it is.
    Raises: DataError when no sweep lies in that time.
    """
    start_ns, end_ns = bag.window(start, duration)
    clouds = bag.messages([bag.point_cloud_topic(topic)], start_ns=start_ns, end_ns=end_ns)
    motion, note, poses, previous, world_T_ego = None, '', iter(()), None, np.eye(4)
    upright_T_cloud = np.eye(4)  # of pixels in an optical frame
    with Bag(bag.path) as odometry_bag:  # a second reader, with its own position in the bag
        for recorded in clouds:
            message = decode_message(recorded.cdr, POINT_CLOUD)
            sweep, velocity = decode_cloud(message), read_velocity(message)
            if previous is None:
                if is_optical(sweep.points.reshape(message.height, message.width, 3)):
                    upright_T_cloud = BODY_T_OPTICAL
                try:
                    motion = BagMotion(bag, 'odometry', frame_id=sweep.frame_id, odometry_topic=odometry_topic,
                                       odometry_T_lidar=odometry_T_lidar)  # fmt: skip
                    poses = odometry_bag.messages([motion.topic], start_ns=start_ns - 10**9)
                except (DataError, EgoMotionError) as error:
                    note = str(error)
            if motion is not None:
                while not motion.covers(sweep.stamp_ns) and (pose := next(poses, None)) is not None:
                    motion.add_odometry(pose.cdr)
                try:
                    moved = motion.between(previous, sweep) if previous else np.eye(4)
                    world_T_ego = world_T_ego @ upright_T_cloud @ moved @ invert(upright_T_cloud)
                except EgoMotionError:  # the time jumps back, or odometry is missing
                    view.start_over()
                    world_T_ego = np.eye(4)
            points, velocity = (apply(upright_T_cloud, vectors) for vectors in (sweep.points, velocity))
            view.show(sweep.stamp_ns, points, velocity, None if motion is None else world_T_ego)
            previous = sweep
    if previous is None:
        raise DataError(f'There is no cloud in this part of {bag.path}. Choose another --start or --duration.')
    return note


def show_file(args) -> int:
    """Show the recorded flow of a bag, with the parsed arguments of `replay`; return the exit status."""
    pose = args.odometry_T_lidar
    with Bag(args.bag) as bag, RerunView(args.view_file, replace=args.replace) as view:
        note = show_recording(
            bag, view, topic=''.join(args.topic), odometry_topic=args.odometry_topic, start=args.start,
            odometry_T_lidar=from_quaternion(pose[:3], pose[3:]) if pose else None, duration=args.duration,
        )  # fmt: skip
    if note:
        print(f'The trajectory of the vehicle is not shown: {note}', file=sys.stderr)
    print(f'{view.num_sweeps} recorded sweeps with flow are in {view.path or "the Rerun viewer"}')
    return 0


def point_colors(velocity: np.ndarray) -> np.ndarray:
    """Return the colours, (N, 3) uint8, of points with velocity (N, 3) [m/s]: static grey, without velocity dark."""
    speed = np.linalg.norm(velocity, axis=1)
    colors = np.empty((len(speed), 3), np.uint8)
    colors[:] = UNKNOWN_COLOR
    colors[speed < MOVING] = STATIC_COLOR  # False for NaN
    moving = speed >= MOVING
    colors[moving] = _bytes(speed_colors(speed[moving]))
    return colors


def _bytes(colors: np.ndarray) -> np.ndarray:
    return np.round(colors * 255).astype(np.uint8)


def _import_rerun():
    try:
        import rerun
    except ImportError as error:
        raise ConfigError(
            f"--view and --view-file need the Rerun SDK, which cannot be imported ({error}). Run 'pip install "
            "rerun-sdk', or write a rosbag2 with --out and open it in RViz or Foxglove."
        ) from error
    return rerun


def _blueprint(rerun, worlds: tuple[str, ...], images: bool):
    """Return the viewer's first layout: views side by side that follow the vehicle from behind and above."""
    from rerun import blueprint

    views = []
    for world in worlds:
        eye = blueprint.EyeControls3D(position=_EYE, look_target=_LOOK_AT, tracking_entity=f'/{world}/{EGO}')
        name = 'Scene flow' if worlds == (WORLD,) else world
        views.append(blueprint.Spatial3DView(origin=f'/{world}', name=name, background=(12, 15, 23), eye_controls=eye))
    shown = blueprint.Horizontal(*views)
    if images:
        pictures = [blueprint.Spatial2DView(origin=f'/{name}', name=name.replace('_', ' ')) for name in (IMAGE, DEPTH)]
        shown = blueprint.Vertical(blueprint.Horizontal(*pictures), shown, row_shares=[1, 2])
    return blueprint.Blueprint(shown, blueprint.TimePanel(timeline=TIME_LINE), collapse_panels=True)
