# SPDX-License-Identifier: Apache-2.0
"""Simulated LiDAR clips of street scenes, with exact flow for every point, and bags of them.

A clip is a function of its seed alone. Limits: a sweep is taken at one instant, its stamp, where a real LiDAR takes
100 ms; people and wheels are rigid; there is no rain, no snow, and no reflection in glass.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from training.simulation.cameras.camera_messages import camera_topics, static_transforms
from training.simulation.cameras.stereo_drive import StereoDrive, stereo_drive
from training.simulation.sensors.lidar import Category, Scene, SensorCondition, Surfaces
from training.simulation.sensors.lidar_models import LIDAR_MODELS, LidarModel
from training.simulation.streets.street import Street, make_street
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

__all__ = [
    'LIDAR_MODELS',
    'Category',
    'GroundTruth',
    'LidarModel',
    'SimulatedClip',
    'SimulatedSweep',
    'clip_stereo',
    'read_ground_truth',
    'simulate_clip',
    'write_bag',
]

POINTS_TOPIC, ODOMETRY_TOPIC, TF_TOPIC, TF_STATIC_TOPIC = '/lidar/points', '/odometry', '/tf', '/tf_static'
ODOM_FRAME, LIDAR_FRAME = 'odom', 'lidar'
_FIRST_STAMP_NS = 1_700_000_000_000_000_000  # any time but 0, which ROS reads as "unknown"
_GROUND_TRUTH_FILE = 'ground_truth.npz'
_NO_TIME = QosTime(0, 0)
# /tf_static is published once, for whoever comes later too.
_LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, _NO_TIME, _NO_TIME,
    QosLiveliness.AUTOMATIC, _NO_TIME, False,
)  # fmt: skip


@dataclass(frozen=True)
class SimulatedSweep:
    """One sweep, all rays at its stamp.

    points: (N, 3) float32 [m] in the LiDAR frame: x forward, y left, z up, level with the vehicle body.
    intensity: (N,) float32 in [0, 1].
    stamp_ns: ROS time [ns].
    odom_T_lidar: (4, 4) float64.
    category: (N,) uint8, a Category.
    instance: (N,) int32, index of the actor, or -1 on the static world.
    """

    points: np.ndarray
    intensity: np.ndarray
    stamp_ns: int
    odom_T_lidar: np.ndarray
    category: np.ndarray
    instance: np.ndarray


@dataclass(frozen=True)
class SimulatedClip:
    """Consecutive sweeps of one drive through one street.

    seed: seed of simulate_clip.
    street: kind of street, a key of street_kinds.KINDS.
    lidar, lidar_height: the sensor, and its height above the ground [m].
    sweeps: S sweeps, 1 / lidar.rate_hz apart.
    odom_T_actors: (S, A, 4, 4) float64; the last actor is the ego vehicle, visible in some clips (roof, bonnet).
    scenery: the street itself, with its surfaces and actors.
    """

    seed: int
    street: str
    lidar: LidarModel
    lidar_height: float
    sweeps: tuple[SimulatedSweep, ...]
    odom_T_actors: np.ndarray
    scenery: Street

    def flow(self, source: int, target: int) -> np.ndarray:
        """Return the residual flow of sweep `source` to the time of sweep `target`, (N, 3) float32 [m].

        In the LiDAR frame of `source`, ego motion removed: exactly 0 on the static world and on static actors.
        """
        sweep = self.sweeps[source]
        flow = np.zeros((len(sweep.points), 3))
        lidar_T_odom = transforms.invert(sweep.odom_T_lidar)
        for actor in np.unique(sweep.instance[sweep.instance >= 0]):
            odom_T_now, odom_T_then = self.odom_T_actors[source, actor], self.odom_T_actors[target, actor]
            if (odom_T_now == odom_T_then).all():
                continue
            then_T_now = lidar_T_odom @ odom_T_then @ transforms.invert(odom_T_now) @ sweep.odom_T_lidar
            on_actor = sweep.instance == actor
            points = sweep.points[on_actor].astype(np.float64)
            flow[on_actor] = transforms.apply(then_T_now, points) - points
        return flow.astype(np.float32)


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth of one sweep, stored by write_bag beside the messages.

    stamp_ns: ROS time [ns].
    category: (N,) uint8. instance: (N,) int32.
    flow_to_previous, flow_to_next: (N, 3) float32 [m] residual flow, or None at the ends of the clip.
    """

    stamp_ns: int
    category: np.ndarray
    instance: np.ndarray
    flow_to_previous: np.ndarray | None
    flow_to_next: np.ndarray | None


def simulate_clip(
    seed: int, *, lidar: str | None = None, num_sweeps: int = 10, alongside: bool = False, rate_hz: float = 0
) -> SimulatedClip:
    """Return the clip of `seed`.

    lidar: a key of LIDAR_MODELS; None lets the seed choose. num_sweeps: at least 1. alongside: with one
    or two large vehicles close beside the ego vehicle. rate_hz: sweeps per second with the same rays each; 0: those
    of the lidar.
    Raises: DataError on an unknown lidar, no sweeps or a negative rate.
    """
    if lidar is not None and lidar not in LIDAR_MODELS:
        raise DataError(f'There is no LiDAR model {lidar!r}. Choose one of: {", ".join(LIDAR_MODELS)}.')
    if num_sweeps < 1:
        raise DataError(f'A clip needs at least one sweep, got num_sweeps={num_sweeps}. Use 2 or more for flow.')
    if rate_hz < 0:
        raise DataError(f'rate_hz is the sweeps per second, or 0 for those of the LiDAR, got {rate_hz:g}.')
    # Separate streams, so that another sensor of the same rate sees the same street.
    sensor_rng, street_rng, ray_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    model = LIDAR_MODELS[lidar or draw_lidar(seed)]
    if rate_hz:
        model = replace(model, rate_hz=rate_hz)
    lidar_height = float(sensor_rng.uniform(*model.mount_height))
    condition = SensorCondition.draw(sensor_rng, model.num_beams)
    times = np.arange(num_sweeps) / model.rate_hz
    street = make_street(street_rng, times, lidar_height, np.random.default_rng([seed, 4]) if alongside else None)
    scene, moving = _scene(street)
    base_T_lidar = np.eye(4)
    base_T_lidar[2, 3] = lidar_height
    actors = (*street.actors, street.ego)
    odom_T_actors = np.stack([actor.odom_T_body for actor in actors], axis=1)
    sweeps = []
    for k, time in enumerate(times):
        odom_T_lidar = street.ego.odom_T_body[k] @ base_T_lidar
        points, intensity, category, instance = scene.simulate_sweep(
            model, condition, odom_T_lidar, odom_T_actors[k, moving], ray_rng
        )
        stamp_ns = _FIRST_STAMP_NS + round(time * 1e9)
        sweeps.append(SimulatedSweep(points, intensity, stamp_ns, odom_T_lidar, category, instance))
    return SimulatedClip(seed, street.kind, model, lidar_height, tuple(sweeps), odom_T_actors, street)


def draw_lidar(seed: int) -> str:
    """Return the key in LIDAR_MODELS that simulate_clip uses for `seed` if `lidar` is None."""
    return str(np.random.default_rng([seed, 3]).choice(list(LIDAR_MODELS)))


def clip_stereo(clip: SimulatedClip, camera: str = 'kitti', *, varied: bool = False) -> StereoDrive:
    """Return the stereo camera of the vehicle that carries the LiDAR of a clip, with a frame at every sweep's stamp.

    camera, varied: see training.simulation.cameras.stereo_drive.simulate_stereo.
    """
    times = np.array([sweep.stamp_ns - _FIRST_STAMP_NS for sweep in clip.sweeps]) * 1e-9
    return stereo_drive(clip.seed, clip.scenery, times, camera=camera, varied=varied)


def write_bag(
    clip: SimulatedClip, path: str | os.PathLike, stereo: StereoDrive | None = None, progress=lambda steps: steps
) -> None:
    """Write the clip as a rosbag2 directory (mcap, zstd) with its ground truth inside.

    `path` appears only when it is complete.
    Topics: /lidar/points (PointCloud2: x y z intensity float32, frame 'lidar'), /odometry (odom -> lidar), /tf.
    stereo: of clip_stereo; adds its images, CameraInfo, and /tf_static from the LiDAR to both cameras. They are
    rendered while the bag is written. progress: wraps the iteration over the sweeps, for example in a progress bar.
    Raises: DataError when `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f'{path} exists already. Remove it or choose another name.')
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as temporary:
        bag = Path(temporary) / path.name
        _write_messages(clip, bag, stereo, progress)
        _write_ground_truth(clip, bag / _GROUND_TRUTH_FILE)
        shutil.move(bag, path)


def read_ground_truth(path: str | os.PathLike) -> list[GroundTruth]:
    """Return the ground truth of a bag that write_bag wrote, one per sweep, rows as in its points.

    Raises: DataError when the directory holds none.
    """
    file = Path(path) / _GROUND_TRUTH_FILE
    if not file.is_file():
        raise DataError(
            f'{file} does not exist: the bag was not simulated. Make one with python3 -m training.simulate.'
        )
    with np.load(file) as stored:
        splits = np.cumsum(stored['num_points'])[:-1]
        stamps_ns = stored['stamp_ns']
        columns = [
            np.split(stored[name], splits) for name in ('category', 'instance', 'flow_to_previous', 'flow_to_next')
        ]
    last = len(stamps_ns) - 1
    return [
        GroundTruth(int(stamps_ns[k]), category, instance, before if k > 0 else None, after if k < last else None)
        for k, (category, instance, before, after) in enumerate(zip(*columns, strict=True))
    ]


def _scene(street: Street) -> tuple[Scene, list[int]]:
    """Return the scene, and the indices of its moving actors, with the ego vehicle last."""
    resting = [Surfaces.of(street.ground, Category.GROUND, -1), Surfaces.of(street.background, Category.BACKGROUND, -1)]
    moving, moving_indices = [], []
    for k, actor in enumerate(street.actors):
        if actor.is_moving:
            moving.append(Surfaces.of(actor.mesh, actor.category, k))
            moving_indices.append(k)
        else:
            resting.append(Surfaces.of(actor.mesh.transformed(actor.odom_T_body[0]), actor.category, k))
    moving.append(Surfaces.of(street.ego.mesh, Category.EGO, len(street.actors)))
    return Scene(Surfaces.join(resting), moving), [*moving_indices, len(street.actors)]


def _write_ground_truth(clip: SimulatedClip, file: Path) -> None:
    last = len(clip.sweeps) - 1
    np.savez_compressed(
        file,
        stamp_ns=np.array([sweep.stamp_ns for sweep in clip.sweeps]),
        num_points=np.array([len(sweep.points) for sweep in clip.sweeps]),
        category=np.concatenate([sweep.category for sweep in clip.sweeps]),
        instance=np.concatenate([sweep.instance for sweep in clip.sweeps]),
        flow_to_previous=np.concatenate([clip.flow(k, max(k - 1, 0)) for k in range(last + 1)]),
        flow_to_next=np.concatenate([clip.flow(k, min(k + 1, last)) for k in range(last + 1)]),
    )


def _write_messages(clip: SimulatedClip, bag: Path, stereo: StereoDrive | None, progress) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    time_type, header_type = types['builtin_interfaces/msg/Time'], types['std_msgs/msg/Header']
    vector_type, quaternion_type = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Quaternion']
    cloud_type, field_type = types['sensor_msgs/msg/PointCloud2'], types['sensor_msgs/msg/PointField']
    odometry_type, tf_type = types['nav_msgs/msg/Odometry'], types['tf2_msgs/msg/TFMessage']
    pose_type, pose_cov_type = types['geometry_msgs/msg/Pose'], types['geometry_msgs/msg/PoseWithCovariance']
    twist_type, twist_cov_type = types['geometry_msgs/msg/Twist'], types['geometry_msgs/msg/TwistWithCovariance']
    stamped_type, transform_type = types['geometry_msgs/msg/TransformStamped'], types['geometry_msgs/msg/Transform']
    fields = [field_type(name, 4 * k, field_type.FLOAT32, 1) for k, name in enumerate(('x', 'y', 'z', 'intensity'))]

    def odometry(header, k: int):
        pose = clip.sweeps[k].odom_T_lidar
        linear, angular = _twist(clip, k)
        position = types['geometry_msgs/msg/Point'](*pose[:3, 3])
        return odometry_type(
            header,
            LIDAR_FRAME,
            pose_cov_type(pose_type(position, quaternion_type(*transforms.to_quaternion(pose))), np.zeros(36)),
            twist_cov_type(twist_type(vector_type(*linear), vector_type(*angular)), np.zeros(36)),
        )

    def tf(header, k: int):
        pose = clip.sweeps[k].odom_T_lidar
        transform = transform_type(vector_type(*pose[:3, 3]), quaternion_type(*transforms.to_quaternion(pose)))
        return tf_type([stamped_type(header, LIDAR_FRAME, transform)])

    def cloud(header, k: int):
        sweep = clip.sweeps[k]
        rows = np.column_stack([sweep.points, sweep.intensity]).astype(np.float32)
        return cloud_type(
            header, 1, len(rows), fields, False, 16, 16 * len(rows), rows.reshape(-1).view(np.uint8), True
        )

    writer = Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        topics = [(TF_TOPIC, tf_type, tf), (ODOMETRY_TOPIC, odometry_type, odometry), (POINTS_TOPIC, cloud_type, cloud)]
        connections = [writer.add_connection(topic, kind.__msgtype__, typestore=store) for topic, kind, _ in topics]
        cameras = []
        if stereo is not None:
            first, base_T_lidar = clip.sweeps[0], np.eye(4)
            base_T_lidar[2, 3] = clip.lidar_height
            message = static_transforms(store, stereo.rig, base_T_lidar, LIDAR_FRAME, first.stamp_ns)
            connection = writer.add_connection(
                TF_STATIC_TOPIC, tf_type.__msgtype__, typestore=store, offered_qos_profiles=[_LATCHED]
            )
            writer.write(connection, first.stamp_ns, store.serialize_cdr(message, tf_type.__msgtype__))
            cameras = [
                (writer.add_connection(topic, msgtype, typestore=store), msgtype, make)
                for topic, msgtype, make in camera_topics(store, stereo)
            ]
        for k in progress(range(len(clip.sweeps))):
            sweep = clip.sweeps[k]
            stamp = time_type(sweep.stamp_ns // 10**9, sweep.stamp_ns % 10**9)
            for connection, msgtype, make in cameras:
                writer.write(connection, sweep.stamp_ns, store.serialize_cdr(make(stamp, k), msgtype))
            for connection, (topic, kind, make) in zip(connections, topics, strict=True):
                header = header_type(stamp, LIDAR_FRAME if topic == POINTS_TOPIC else ODOM_FRAME)
                writer.write(connection, sweep.stamp_ns, store.serialize_cdr(make(header, k), kind.__msgtype__))


def _twist(clip: SimulatedClip, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return linear [m/s] and angular [rad/s] velocity of the LiDAR in its own frame, by finite difference."""
    if len(clip.sweeps) == 1:
        return np.zeros(3), np.zeros(3)
    a = min(k, len(clip.sweeps) - 2)
    step = transforms.invert(clip.sweeps[a].odom_T_lidar) @ clip.sweeps[a + 1].odom_T_lidar
    return step[:3, 3] * clip.lidar.rate_hz, transforms.rotation_vector(step) * clip.lidar.rate_hz
