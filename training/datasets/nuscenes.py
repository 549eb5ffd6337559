# SPDX-License-Identifier: Apache-2.0
"""nuScenes in the official layout, as sweep pairs: LIDAR_TOP sweeps and keyframes, in the ego frame.

The root folder holds samples/LIDAR_TOP and sweeps/LIDAR_TOP (*.pcd.bin: x y z intensity ring, float32), and a version
folder such as v1.0-trainval with the tables. Boxes are annotated at keyframes, 2 Hz; between them they are interpolated
at constant linear and angular velocity. Ground truth exists from the first to the last keyframe of a scene.
"""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.box_flow import BOX_MARGIN, MovingBox, box_flow
from training.datasets.drive_pairs import NO_FILE, Drive, DrivePairs
from training.datasets.nuscenes_tables import AnnotatedBox, SceneTables, SweepRow, read_tables
from training.datasets.pairs import GroundTruthFlow, MetaClass
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.sweep import DropReason

_COLUMNS = 5  # float32 of a point: x y z intensity ring
_SPREAD = 1.0  # m added around boxes that only one of two keyframes has: where they are between is not known
# As Argoverse 2's categories are scored; categories not listed here, and all movable_object, are ignored.
_META_CLASS = {
    'vehicle.car': MetaClass.CAR, 'vehicle.emergency.police': MetaClass.CAR,
    'vehicle.bus.bendy': MetaClass.OTHER_VEHICLES, 'vehicle.bus.rigid': MetaClass.OTHER_VEHICLES,
    'vehicle.construction': MetaClass.OTHER_VEHICLES, 'vehicle.emergency.ambulance': MetaClass.OTHER_VEHICLES,
    'vehicle.trailer': MetaClass.OTHER_VEHICLES, 'vehicle.truck': MetaClass.OTHER_VEHICLES,
    'vehicle.bicycle': MetaClass.WHEELED_VRU, 'vehicle.motorcycle': MetaClass.WHEELED_VRU,
    'human.pedestrian.personal_mobility': MetaClass.WHEELED_VRU,
}  # fmt: skip
_PEDESTRIAN = 'human.pedestrian.'  # adult, child, police_officer, construction_worker, stroller, wheelchair


@dataclass(frozen=True)
class NuScenesOptions:
    """Options.

    version: name of the version folder, '' for the only one. scene: name of the only scene to use, '' for all.
    rate: sweeps a second to use, at most [Hz], 10 for every second one; 0: all, 20. ego_box: x_min,x_max,y_min,y_max,
    z_min,z_max of the own vehicle in the ego frame [m], whose points count as no returns; '' for none. The default is
    the recording vehicle, a Renault Zoe of 4.08 m x 1.95 m with mirrors, with a margin and the sensors on its roof.
    """

    version: str = ''
    scene: str = ''
    rate: float = 0.0
    ego_box: str = '-0.9,3.6,-1.1,1.1,-0.3,2.2'


class NuScenesScene(Drive):
    """The LiDAR sweeps of one scene; see `Drive`."""

    ground_z = 0.0  # the ego frame lies on the ground

    def __init__(self, root: Path, tables: SceneTables, options: NuScenesOptions):
        self.name, self.dropped = tables.name, tables.dropped
        self._root, self._own_vehicle = root, OwnVehicle.from_text(options.ego_box)
        self._sweeps: list[SweepRow] = []
        for sweep in tables.sweeps:
            too_early = options.rate and self._sweeps and (
                sweep.stamp_us - self._sweeps[-1].stamp_us < 0.75e6 / options.rate
            )  # fmt: skip
            if not too_early and self._is_readable(sweep):
                self._sweeps.append(sweep)
        self.stamps_ns = [sweep.stamp_us * 1000 for sweep in self._sweeps]
        self.world_T_ego = [sweep.world_T_ego for sweep in self._sweeps]
        self._keyframe_stamps = sorted(tables.keyframes)
        self._keyframes = [tables.keyframes[stamp] for stamp in self._keyframe_stamps]

    def _is_readable(self, sweep: SweepRow) -> bool:
        path = self._root / sweep.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            self.dropped.add(NO_FILE, f'There is no {path}')
        elif size % (4 * _COLUMNS) or not size:
            text = f'{path} has {size} bytes, expected a multiple of {4 * _COLUMNS}: it is cut'
            self.dropped.add(DropReason.MALFORMED.value, text)
        else:
            return True
        return False

    def read(self, number: int) -> tuple[np.ndarray, None]:
        """See `Drive`. nuScenes stores no times of points; its sweeps are deskewed."""
        sweep = self._sweeps[number]
        path = self._root / sweep.file
        try:
            values = np.fromfile(path, np.float32)
        except OSError as error:
            raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
        if len(values) % _COLUMNS:
            raise DataError(f'{path} should hold {_COLUMNS} float32 a point, found {len(values)} numbers: it is cut.')
        points = values.reshape(-1, _COLUMNS)[:, :3]
        no_return = ~np.isfinite(points).all(1) | ~points.any(1)
        in_ego = transforms.apply(sweep.ego_T_lidar, points.astype(np.float64)).astype(np.float32)
        in_ego[no_return] = np.nan
        in_ego[self._own_vehicle.rows(in_ego, None)] = np.nan
        return in_ego, None

    def truth(self, number: int, other: int, points: np.ndarray) -> GroundTruthFlow | None:
        """See `Drive`. Points near boxes that only one of the keyframes around them has are not valid."""
        stamps = self._sweeps[number].stamp_us, self._sweeps[other].stamp_us
        now, then = self._boxes_at(*stamps), self._boxes_at(*stamps[::-1])
        if now is None or then is None:
            return None
        unseen = {instance: (box, False) for instance, (box, _) in then.items() if instance not in now}
        ego0_T_world = transforms.invert(self.world_T_ego[number])
        boxes = []
        for instance, (box, is_certain) in sorted((now | unseen).items(), key=lambda item: not item[1][1]):
            later, is_certain_later = then.get(instance, (None, False))
            margin = [BOX_MARGIN / 2, BOX_MARGIN / 2, 0] if is_certain else [_SPREAD] * 3
            known = is_certain and is_certain_later
            boxes.append(  # uncertain ones come last and prevail
                MovingBox(
                    ego0_T_world @ box.world_T_box, ego0_T_world @ later.world_T_box if known else None,
                    box.half_size + margin, meta_class_of(box.category),
                )
            )  # fmt: skip
        return box_flow(points, boxes)

    def _boxes_at(self, stamp_us: int, toward_us: int) -> dict[str, tuple[AnnotatedBox, bool]] | None:
        """Return the boxes by instance at a time, each with whether both keyframes around it have the box.

        toward_us: at the time of a keyframe, the keyframe on this side of it is the other one. None before the first
        keyframe, after the last, or without any annotation.
        """
        stamps, boxes = self._keyframe_stamps, self._keyframes
        if len(stamps) < 2 or not stamps[0] <= stamp_us <= stamps[-1] or not any(boxes):
            return None
        k = bisect_right(stamps, stamp_us) - 1
        if k == len(stamps) - 1 or (stamp_us == stamps[k] and toward_us < stamp_us and k > 0):
            k -= 1
        found = {}
        fraction = (stamp_us - stamps[k]) / (stamps[k + 1] - stamps[k])
        for instance in boxes[k].keys() | boxes[k + 1].keys():
            before, after = boxes[k].get(instance), boxes[k + 1].get(instance)
            if before and after:
                found[instance] = _between(before, after, fraction), True
                continue
            # Carried on at the velocity that it has on the other side of its only keyframe here.
            near, beyond, here = (k, k - 1, before) if before else (k + 1, k + 2, after)
            other = boxes[beyond].get(instance) if 0 <= beyond < len(boxes) else None
            if other:
                fraction_on = (stamp_us - stamps[beyond]) / (stamps[near] - stamps[beyond])
                here = _between(other, here, fraction_on)
            found[instance] = here, False
        return found


def meta_class_of(category: str) -> MetaClass:
    """Return the class by which a category is scored."""
    if category.startswith(_PEDESTRIAN) and category not in _META_CLASS:
        return MetaClass.PEDESTRIAN
    return _META_CLASS.get(category, MetaClass.IGNORED)


def open_pairs(text: str) -> DrivePairs:
    """Open ROOT, with the options of `NuScenesOptions` behind a question mark. Raises: DataError."""
    text, options = split_options(text, NuScenesOptions)
    root = Path(text)
    if options.rate < 0:
        raise DataError(f'rate is in sweeps a second, 0 for all, got {options.rate:g}.')
    folder = root / (options.version or _version(root))
    if not folder.is_dir():
        raise DataError(f'{root} has no folder {folder.name}. It has: {", ".join(_versions(root)) or "no v1.0-*"}.')
    scenes = [NuScenesScene(root, tables, options) for tables in read_tables(folder, options.scene)]
    return DrivePairs(root.resolve().name, scenes)


def recognises(text: str) -> bool:
    """Return whether a path is the root folder of nuScenes."""
    return bool(_versions(Path(text.partition('?')[0])))


def _versions(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob('v1.0-*/sample_data.json'))


def _version(root: Path) -> str:
    versions = _versions(root)
    if len(versions) != 1:
        found = ', '.join(versions) or 'none'
        example = f' Choose one: nuscenes:{root}?version={versions[0]}' if versions else ''
        raise DataError(f'{root} needs one version folder with tables, such as v1.0-mini, found {found}.{example}')
    return versions[0]


def _between(before: AnnotatedBox, after: AnnotatedBox, fraction: float) -> AnnotatedBox:
    pose = transforms.interpolate(before.world_T_box, after.world_T_box, fraction)
    return AnnotatedBox(pose, np.maximum(before.half_size, after.half_size), after.category)
