# SPDX-License-Identifier: Apache-2.0
"""True depth of the pixels of a left image from the LiDAR of the same drive, for scores."""

from pathlib import Path

import numpy as np

from training.datasets.kitti_calibration import camera_T_reference, read_rigid, stereo_camera
from training.datasets.kitti_png import check_size, read_disparity
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.ego_motion.bag_motion import static_transforms
from zeroflow_ros.errors import CloudError, DataError
from zeroflow_ros.lidar.point_cloud import decode_cloud

DEPTH_SOURCES = ('none', 'velodyne', 'improved')  # of a drive of KITTI raw data
_NEAREST = 1.0  # m: closer points are on the own vehicle
_MAX_STAMP_DIFFERENCE_NS = 10_000_000  # of a cloud and its image
_ROWS, _COLUMNS, _PARALLAX = 3, 4, 0.06  # as the teacher `lidar` has them, see `visible_points`
_POINT_BYTES = 16  # x, y, z [m] and reflectance, float32


def depth_image(points: np.ndarray, camera: StereoCamera) -> np.ndarray:
    """Return the depth (H, W) float32 [m] of the points (N, 3) [m] that a camera sees, NaN elsewhere.

    points: in the left optical frame. Of the points of a pixel the nearest counts; points that the LiDAR sees past
    edges of nearer objects are left out, see `visible_points`.
    """
    depth = np.full((camera.height, camera.width), np.nan, np.float32)
    rows = visible_points(points, camera, _ROWS, _COLUMNS, _PARALLAX)
    pixels, _ = camera.project(points[rows])
    u, v = np.rint(pixels).astype(int).T
    depth[v, u] = points[rows, 2]
    return depth


def visible_points(points: np.ndarray, camera: StereoCamera, rows: int, columns: int, parallax: float) -> np.ndarray:
    """Return the rows of points (N, 3) [m], in the left optical frame, that the camera sees: one for each pixel.

    Points of one pixel, or farther than the nearest within `rows` and `columns` [px] by more than the share
    `parallax`, are hidden; NaN points, those behind the camera and those outside the image are not seen.
    """
    with np.errstate(invalid='ignore'):
        ahead = np.flatnonzero(points[:, 2] > _NEAREST)
    pixels, _ = camera.project(points[ahead])
    u, v = np.rint(pixels).T
    with np.errstate(invalid='ignore'):
        inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    ahead = ahead[inside]
    u, v, depth = u[inside].astype(int), v[inside].astype(int), points[ahead, 2].astype(np.float32)
    nearest = np.full((camera.height, camera.width), np.inf, np.float32)
    np.minimum.at(nearest, (v, u), depth)
    window = np.ones((2 * rows + 1, 2 * columns + 1), np.uint8)
    around = load_opencv().erode(np.minimum(nearest, np.float32(1e6)), window)
    seen = (depth == nearest[v, u]) & (depth <= (1 + parallax) * around[v, u])
    _, first = np.unique((v * camera.width + u)[seen], return_index=True)  # two points of one depth
    return np.sort(ahead[seen][first])


class BagDepth:
    """True depth of the frames of a stereo bag from a bag with the clouds of the same drive.

    clouds: the bag. mounts: bags whose /tf_static may connect the clouds with the left camera.
    Raises: DataError when the bag has no clouds, or their frame has no mount.
    """

    def __init__(self, clouds: str | Path, mounts: tuple[str | Path, ...]):
        self.path, self._mounts = Path(clouds), [Path(mount) for mount in mounts]
        with Bag(self.path) as bag:
            self._topic = bag.point_cloud_topic('')
            found = [(recorded.stamp_ns, recorded.time_ns) for recorded in bag.messages([self._topic])]
        self._stamps_ns, self._times_ns = (np.array(part, np.int64) for part in zip(*found, strict=True))
        self._left_T_lidar: dict[tuple[str, str], np.ndarray] = {}

    def of(self, frame: StereoFrame) -> np.ndarray | None:
        """Return the depth (H, W) float32 [m] of the left image, NaN where no point is.

        None where no cloud is within 10 ms of the frame. Raises: DataError when the mount is not known or the cloud
        cannot be read.
        """
        index = int(np.abs(self._stamps_ns - frame.stamp_ns).argmin())
        if abs(int(self._stamps_ns[index]) - frame.stamp_ns) > _MAX_STAMP_DIFFERENCE_NS:
            return None
        time_ns = int(self._times_ns[index])
        with Bag(self.path) as bag:  # reopened: processes must not share an open file
            found = bag.messages([self._topic], start_ns=time_ns, end_ns=time_ns + 1)
            recorded = next((one for one in found if one.stamp_ns == self._stamps_ns[index]), None)
        if recorded is None:
            raise DataError(f'{self.path} has changed since it was opened. Open it again.')
        try:
            sweep = decode_cloud(decode_message(recorded.cdr, POINT_CLOUD))
        except CloudError as error:
            raise DataError(f'{self.path}, cloud {index}: {error}') from error
        left_T_lidar = self._mount(frame.frame_id.lstrip('/'), sweep.frame_id)
        return depth_image(transforms.apply(left_T_lidar, sweep.points), frame.camera)

    def _mount(self, camera_frame: str, lidar_frame: str) -> np.ndarray:
        key = camera_frame, lidar_frame
        for path in self._mounts if key not in self._left_T_lidar else ():
            with Bag(path) as bag:
                found = static_transforms(bag, *key).lookup(*key)
            if found is not None:
                self._left_T_lidar[key] = found
                break
        if key not in self._left_T_lidar:
            raise DataError(
                f'/tf_static of {" and ".join(map(str, self._mounts))} does not connect the clouds, in '
                f'{lidar_frame!r}, with the left images, in {camera_frame!r}. Name the bag that does: mount=BAG.'
            )
        return self._left_T_lidar[key]


class DriveDepth:
    """True depth of the left images of a drive of KITTI raw data.

    source: velodyne (the cloud of the frame) or improved (the maps of KITTI's depth benchmark, which join 11 clouds;
    frames at both ends of a drive have none).
    Raises: DataError for another source or a missing folder.
    """

    def __init__(self, drive: Path, source: str):
        if source not in DEPTH_SOURCES[1:]:
            raise DataError(f'depth of kitti_raw should be one of {", ".join(DEPTH_SOURCES)}, got {source!r}.')
        self._folder = drive / ('velodyne_points/data' if source == 'velodyne' else 'proj_depth/groundtruth/image_02')
        if not self._folder.is_dir():
            raise DataError(
                f'{drive} lacks the folder {self._folder.relative_to(drive)}. It is in '
                f'{"the drive as KITTI offers it" if source == "velodyne" else "data_depth_annotated.zip"}.'
            )
        self._day = drive.resolve().parent
        self._calibration = self._day / 'calib_cam_to_cam.txt'
        self._camera = stereo_camera(self._calibration)
        self._is_cloud = source == 'velodyne'
        if self._is_cloud:
            mount = read_rigid(self._day / 'calib_velo_to_cam.txt')
            self._left_T_lidar = camera_T_reference(self._calibration) @ mount

    def of(self, number: int) -> np.ndarray | None:
        """Return the depth (H, W) float32 [m] of a frame, NaN where it is not known; None where it has no file."""
        path = self._folder / f'{number:010d}.{"bin" if self._is_cloud else "png"}'
        if not path.is_file():
            return None
        if not self._is_cloud:
            depth = read_disparity(path)  # in the format of disparities
            check_size(path, depth, (self._camera.height, self._camera.width), self._calibration)
            return depth
        content = path.read_bytes()
        if len(content) % _POINT_BYTES:
            raise DataError(f'{path} has {len(content)} bytes, expected {_POINT_BYTES} for each point. Copy it again.')
        points = np.frombuffer(content, np.float32).reshape(-1, 4)[:, :3]
        return depth_image(transforms.apply(self._left_T_lidar, points), self._camera)
