# SPDX-License-Identifier: Apache-2.0
"""The cross-sensor teacher of stereo cameras: the LiDAR of the same drive gives depth and motion, pixel by pixel.

1. The sweeps of the LiDAR at the stamps of the two stereo frames are found; other stamps are refused.
2. The older or newer sweep, as the reference frame is, is projected into the left image: the nearest point of a pixel.
   Points that are farther than a neighbour are dropped: the LiDAR sees past edges that the camera does not.
3. The `rigid` teacher gives the residual flow of the points, the drive its ego motion; both frames give pixel, optical
   flow and second disparity.

Labels are sparse: 3 to 5 % of the pixels of a KITTI image.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from training.datasets import split_options
from training.datasets.lidar_depth import visible_points
from training.datasets.pairs import DatasetPair
from training.datasets.rosbag import BagOptions, BagPairs
from training.teachers.rigid import Rigid, RigidConfig
from training.teachers.semi_global_matching import census
from training.teachers.teacher import run_teacher
from training.teachers.teacher_input import Crop, teacher_input
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoFlow, StereoFrame
from zeroflow_ros.ego_motion.bag_motion import static_transforms
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError

_CHECKED = 5000  # pixels whose images are compared
_SIMILAR = 0.85  # of the differing bits that wrong disparities give: most that the LiDAR's may give


@dataclass(frozen=True)
class LidarTeacherConfig:
    """Settings of the LiDAR teacher.

    clouds: PATH of the bag with the clouds of the same drive, with options as of `bag:` datasets behind a question
    mark; ego motion is from registration unless they say otherwise, because odometry is some centimetres off, which
    is several pixels of a near point. mount: PATH of the bag whose /tf_static connects the clouds with the left
    camera; '': that of the clouds. max_stamp_difference: largest difference between the stamps of a sweep and of its
    image [s]. rows, columns: half size of the window in which a nearer point hides farther ones [px]. parallax: points
    farther than the nearest of their window by more than this share are dropped. max_motion_difference,
    max_turn_difference: largest difference between the ego motion of clouds and images [m, rad]. disparity_sigma,
    flow_sigma: standard deviations of calibration and range [px]. rigid: settings of the teacher of flow. crop: region
    in which it gives flow.
    """

    clouds: str = ''
    mount: str = ''
    max_stamp_difference: float = 0.01
    rows: int = 3
    columns: int = 4
    parallax: float = 0.06
    max_motion_difference: float = 0.3
    max_turn_difference: float = 0.02
    disparity_sigma: float = 0.5
    flow_sigma: float = 0.7
    rigid: RigidConfig = field(default_factory=RigidConfig)
    crop: Crop = field(default_factory=Crop)

    def __post_init__(self):
        for name in ('max_stamp_difference', 'parallax', 'max_motion_difference', 'max_turn_difference',
                     'disparity_sigma', 'flow_sigma'):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name} of the teacher lidar must be above 0, got {getattr(self, name)}.')
        if self.rows < 0 or self.columns < 0:
            raise ConfigError(f'The window of the teacher lidar must be 0 px or more, got {self.rows}, {self.columns}.')


class LidarTeacher:
    """Labels stereo pairs with the LiDAR of the same drive.

    The bag is opened with the first pair. Raises: ConfigError when the settings name no bag of clouds.
    """

    name = 'lidar'

    def __init__(self, config: LidarTeacherConfig):
        if not config.clouds:
            raise ConfigError(
                'The teacher lidar needs the bag with the clouds of the same drive: --config FILE with the line '
                '`clouds: PATH`.'
            )
        self.config = config
        self._rigid = Rigid(config.rigid)

    @cached_property
    def _pairs(self) -> BagPairs:
        path, options = split_options(self.config.clouds, BagOptions)
        if options.ego_motion == 'auto':
            options = replace(options, ego_motion='registration')
        # Points stay in the frame of their clouds, which /tf_static connects with the camera.
        return BagPairs(path, None, replace(options, base_frame='', base_T_lidar=''))

    @cached_property
    def _stamps_ns(self) -> np.ndarray:
        """Stamps of the older sweeps of all pairs, (N,) int64 [ns]."""
        return np.array([int(self._pairs.key(k).rpartition('_')[2]) for k in range(len(self._pairs))])

    @cached_property
    def _mount(self):
        """The frame of the clouds, and the static transforms."""
        with Bag(self._pairs.path) as bag:
            first = decode_message(bag.first(self._pairs.topic).cdr, POINT_CLOUD)
        with Bag(self.config.mount or self._pairs.path) as bag:
            return first.header.frame_id.lstrip('/'), static_transforms(bag)

    def estimate(
        self, reference: StereoFrame, other: StereoFrame, other_T_reference: np.ndarray | None = None
    ) -> StereoFlow:
        """Return the scene flow as `label` does; the stamps of the frames say which is earlier."""
        return self.label(reference, other, (other.stamp_ns - reference.stamp_ns) * 1e-9, other_T_reference)

    def label(
        self, reference: StereoFrame, other: StereoFrame, dt: float, other_T_reference: np.ndarray | None = None
    ) -> StereoFlow:
        """Return the scene flow of the pixels of `reference` that the LiDAR sees, to the time of `other`.

        Values and is_measured as in `StereoFlow`; NaN where no point is. dt: seconds from the reference to the other
        frame, negative where that is earlier. other_T_reference: (4, 4), ego motion between the optical frames where it
        is known; that of the clouds, which must agree with it, is used.

        Raises: DataError when there is no sweep at the time of the images, mount or ego motion do not fit, or clouds
        and images show different scenes.
        """
        camera = reference.camera
        if camera != other.camera:
            raise DataError(f'Both stereo frames must be of one camera, got {camera} and {other.camera}.')
        left_T_lidar = self._left_T_lidar(reference.frame_id)
        item = self._sweeps(reference.stamp_ns, other.stamp_ns, dt)
        flow = self._residual_flow(item)
        other_T_ego = transforms.invert(item.pair.ego0_T_ego1)
        motion = left_T_lidar @ other_T_ego @ transforms.invert(left_T_lidar)
        self._check_motion(motion, other_T_reference)
        points = transforms.apply(left_T_lidar, item.pair.points0)
        rows = visible_points(points, camera, self.config.rows, self.config.columns, self.config.parallax)
        moved = transforms.apply(left_T_lidar @ other_T_ego, item.pair.points0[rows] + flow[rows])
        pixels, disparities = camera.project(points[rows])
        other_pixels, other_disparities = camera.project(moved)
        labels = self._labels(camera, pixels, disparities, other_pixels, other_disparities, motion)
        check_same_scene(reference, labels.disparity)
        return labels

    def _left_T_lidar(self, frame_id: str) -> np.ndarray:
        lidar_frame, tf = self._mount
        left_T_lidar = tf.lookup(frame_id.lstrip('/'), lidar_frame)
        if left_T_lidar is None:
            raise DataError(
                f'/tf_static of {self.config.mount or self.config.clouds} does not connect the clouds, in '
                f'{lidar_frame!r}, with the left images, in {frame_id!r}; it has '
                f'{", ".join(tf.frames) or "nothing"}. Name the bag that has it: `mount: PATH`.'
            )
        return left_T_lidar

    def _sweeps(self, reference_ns: int, other_ns: int, dt: float) -> DatasetPair:
        """Return the sweeps at the times of both frames; sweep 0 is that of the reference."""
        older_ns, newer_ns = sorted((reference_ns, other_ns))
        index = int(np.abs(self._stamps_ns - older_ns).argmin())
        _, seconds = self._pairs.motion(index)
        off = abs(int(self._stamps_ns[index]) - older_ns) * 1e-9
        newer_off = abs(int(self._stamps_ns[index]) + round(seconds * 1e9) - newer_ns) * 1e-9
        if max(off, newer_off) > self.config.max_stamp_difference:
            raise DataError(
                f'{self.config.clouds} has no sweep pair at the times of the images: the nearest is {off:.3f} s and '
                f'{newer_off:.3f} s away, {self.config.max_stamp_difference:g} s is allowed. Use the clouds of the '
                'same drive, with stamps of one clock.'
            )
        if (dt < 0) != (other_ns < reference_ns):
            raise DataError(f'dt is {dt:g} s, but the stamps of the images say {(other_ns - reference_ns) * 1e-9:g} s.')
        return self._pairs[index] if dt > 0 else self._pairs.latest(index)

    def _residual_flow(self, item: DatasetPair) -> np.ndarray:
        """Return the residual flow (N, 3) [m] of sweep 0; NaN outside the crop."""
        return run_teacher(self._rigid, teacher_input(item, self.config.crop)).flow0

    def _check_motion(self, motion: np.ndarray, given: np.ndarray | None) -> None:
        if given is None:
            return
        difference = transforms.invert(given) @ motion
        metres = float(np.linalg.norm(difference[:3, 3]))
        turn = float(np.linalg.norm(transforms.rotation_vector(difference)))
        if metres > self.config.max_motion_difference or turn > self.config.max_turn_difference:
            raise EgoMotionError(
                f'The ego motion of the clouds differs from that of the images by {metres:.2f} m and {turn:.3f} rad. '
                'Use the clouds of the same drive, and check the odometry of both.'
            )

    def _labels(self, camera, pixels, disparities, other_pixels, other_disparities, motion) -> StereoFlow:
        config, size = self.config, (camera.height, camera.width)

        def maps(*more):
            return np.full((*size, *more), np.nan, np.float32)

        disparity, other_disparity, flow = maps(), maps(), maps(2)
        columns, rows = np.rint(pixels).astype(int).T
        disparity[rows, columns] = disparities
        other_disparity[rows, columns] = other_disparities
        flow[rows, columns] = other_pixels - pixels
        has_disparity = np.isfinite(disparity)
        is_measured = has_disparity & np.isfinite(other_disparity) & np.isfinite(flow).all(axis=-1)
        disparity_sigma = np.full(size, config.disparity_sigma, np.float32)
        flow_sigma = np.full(size, config.flow_sigma, np.float32)
        return StereoFlow(
            disparity, other_disparity, flow, disparity_sigma, disparity_sigma, flow_sigma, is_measured, motion,
            has_disparity,
        )  # fmt: skip


def check_same_scene(frame: StereoFrame, disparity: np.ndarray) -> None:
    """Check that left and right image look alike where disparity (H, W) [px], NaN where not known, says so.

    Raises: DataError when they look no more alike than with the same disparities at other pixels, or when there is
    hardly any disparity.
    """
    rows, columns = np.nonzero(disparity > 0)
    values = disparity[rows, columns]
    if len(rows) < 100:
        raise DataError(
            f'The LiDAR shows {len(rows)} points in the image, too few for a label. Check the mount of LiDAR and '
            'camera in /tf_static.'
        )
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(rows))[:_CHECKED]
    rows, columns, values = rows[chosen], columns[chosen], values[chosen]
    grey = [
        image if image.ndim == 2 else load_opencv().cvtColor(image, load_opencv().COLOR_RGB2GRAY)
        for image in (frame.left, frame.right)
    ]
    left, right = map(census, grey)
    different = []
    for candidates in (values, rng.permutation(values)):
        opposite = np.rint(columns - candidates).astype(int)
        seen = opposite >= 0
        bits = left[rows[seen], columns[seen]] ^ right[rows[seen], opposite[seen]]
        different.append(np.bitwise_count(bits).mean() if seen.any() else np.inf)
    if not different[0] <= _SIMILAR * different[1]:
        raise DataError(
            'The clouds and the images show different scenes: at the distances of the LiDAR, left and right image look '
            f'no more alike ({different[0]:.1f} of 62 bits differ) than at random ones ({different[1]:.1f}). Use the '
            'clouds of the same drive, and check the mount of LiDAR and camera.'
        )
