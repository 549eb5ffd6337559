# SPDX-License-Identifier: Apache-2.0
"""KITTI scene flow 2015 in the official layout, with the multi-view extension if it is there.

ROOT is the folder training or testing:
  image_2/NNNNNN_FF.png, image_3/NNNNNN_FF.png   left and right images of scene NNNNNN; frame FF is 10 or 11, in the
                                                 multi-view extension 00 to 20
  calib_cam_to_cam/NNNNNN.txt                    calibration
  disp_{occ,noc}_{0,1}/, flow_{occ,noc}/, obj_map/NNNNNN_10.png     ground truth of frame 10, in training only

There is no ego motion. The vehicle drives at 10 Hz.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.kitti_calibration import stereo_camera
from training.datasets.kitti_png import check_size, read_disparity, read_flow, read_image, read_labels
from training.datasets.stereo_pairs import StereoDatasetPair, StereoTruth
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.errors import DataError

REFERENCE = 10  # number of the frame that has ground truth
PERIOD = 0.1  # s between frames
TRUTH_FOLDERS = (
    'disp_occ_0', 'disp_noc_0', 'disp_occ_1', 'disp_noc_1', 'flow_occ', 'flow_noc', 'obj_map',
)  # fmt: skip
_LEFT, _RIGHT, _CALIBRATION = 'image_2', 'image_3', 'calib_cam_to_cam'
_NAME = re.compile(r'(\d{6})_(\d\d)\.png')


@dataclass(frozen=True)
class KittiSceneFlowOptions:
    """Options.

    frames: 10 for frame 10 of each scene, which is scored; all for every pair of consecutive frames. scenes: text file
    with the numbers of the scenes, one in a line; '': all that are there.
    """

    frames: str = '10'
    scenes: str = ''


class KittiSceneFlowPairs:
    """Pairs of consecutive frames of all scenes of a split; the older frame is the reference.

    has_truth: whether the split has ground truth, which is of frame 10 only.
    Raises: DataError that names a missing folder or file.
    """

    sensor = 'stereo'

    def __init__(self, root: str | Path, options: KittiSceneFlowOptions = KittiSceneFlowOptions()):
        self.root = Path(root)
        self.name = f'kitti_scene_flow {self.root.resolve().name}'
        if options.frames not in ('10', 'all'):
            raise DataError(f'frames of kitti_scene_flow should be 10 or all, got {options.frames!r}.')
        _check_root(self.root)
        present = [folder for folder in TRUTH_FOLDERS if (self.root / folder).is_dir()]
        self.has_truth = bool(present)
        if self.has_truth and len(present) < len(TRUTH_FOLDERS):
            lacking = ', '.join(folder for folder in TRUTH_FOLDERS if folder not in present)
            raise DataError(
                f'{self.root} has {present[0]}, but lacks {lacking}. Unpack data_scene_flow.zip of KITTI again, or '
                'remove all folders of ground truth.'
            )
        frames = sorted(match.groups() for match in map(_NAME.fullmatch, _names(self.root / _LEFT)) if match)
        frames = {(scene, int(number)) for scene, number in frames}
        if options.scenes:
            named = _read_scenes(Path(options.scenes), {scene for scene, _ in frames}, self.root)
            frames = {(scene, number) for scene, number in frames if scene in named}
        wanted = {(scene, REFERENCE) for scene, _ in frames}
        if options.frames == 'all':
            wanted |= {(scene, number) for scene, number in frames if (scene, number + 1) in frames}
        if not wanted:
            raise DataError(f'{self.root / _LEFT} has no image named NNNNNN_10.png.')
        self._pairs = sorted(wanted)
        self._check_files()
        self._cameras: dict[str, StereoCamera] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return the scene and the frame, as in the names of the files: 000002_10."""
        return '{}_{:02d}'.format(*self._pairs[index])

    def __getitem__(self, index: int) -> StereoDatasetPair:
        scene, number = self._pairs[index]
        reference, other = (self._frame(scene, frame) for frame in (number, number + 1))
        truth = self._truth(scene, reference.left.shape[:2]) if self.has_truth and number == REFERENCE else None
        return StereoDatasetPair(
            self.key(index), reference, other, None, PERIOD, truth, earlier=partial(self._earlier, scene, number)
        )

    def _earlier(self, scene: str, number: int, most: int) -> list[np.ndarray]:
        """Return the left images right before a frame, as far as the multi-view extension has them."""
        images = []
        for earlier in range(number - 1, number - 1 - most, -1):
            path = self.root / _LEFT / f'{scene}_{earlier:02d}.png'
            if earlier < 0 or not path.is_file():
                break
            images.insert(0, read_image(path))
            camera = self._cameras[scene]
            check_size(path, images[0], (camera.height, camera.width), self.root / _CALIBRATION / f'{scene}.txt')
        return images

    def _frame(self, scene: str, number: int) -> StereoFrame:
        calibration = self.root / _CALIBRATION / f'{scene}.txt'
        if scene not in self._cameras:
            self._cameras[scene] = stereo_camera(calibration)
        camera, images = self._cameras[scene], []
        for folder in (_LEFT, _RIGHT):
            path = self.root / folder / f'{scene}_{number:02d}.png'
            images.append(read_image(path))
            check_size(path, images[-1], (camera.height, camera.width), calibration)
        return StereoFrame(*images, camera, round(number * PERIOD * 1e9))

    def _truth(self, scene: str, size: tuple[int, int]) -> StereoTruth:
        found = {}
        for folder in TRUTH_FOLDERS:
            path = self.root / folder / f'{scene}_{REFERENCE}.png'
            read = read_labels if folder == 'obj_map' else read_flow if 'flow' in folder else read_disparity
            found[folder] = read(path)
            check_size(path, found[folder], size, self.root / _LEFT / path.name)
        for occ, noc in (('disp_occ_0', 'disp_noc_0'), ('disp_occ_1', 'disp_noc_1'), ('flow_occ', 'flow_noc')):
            visible, known = (np.isfinite(found[name]) for name in (noc, occ))
            if (visible & ~known).any():
                raise DataError(
                    f'{self.root}: {noc}/{scene}_{REFERENCE}.png has values where {occ} has none. Unpack '
                    'data_scene_flow.zip of KITTI again.'
                )
        return StereoTruth(
            found['disp_occ_0'], found['disp_occ_1'], found['flow_occ'], np.isfinite(found['disp_noc_0']),
            np.isfinite(found['disp_noc_1']), np.isfinite(found['flow_noc'][..., 0]), found['obj_map'] > 0,
        )  # fmt: skip

    def _check_files(self) -> None:
        """Raise DataError when a file that a pair needs is missing."""
        present = {folder: set(_names(self.root / folder)) for folder in (_LEFT, _RIGHT, _CALIBRATION)}
        if self.has_truth:
            present |= {folder: set(_names(self.root / folder)) for folder in TRUTH_FOLDERS}
        needed = []
        for scene, number in self._pairs:
            needed += [(folder, f'{scene}_{n:02d}.png') for n in (number, number + 1) for folder in (_LEFT, _RIGHT)]
            needed.append((_CALIBRATION, f'{scene}.txt'))
            if self.has_truth and number == REFERENCE:
                needed += [(folder, f'{scene}_{number}.png') for folder in TRUTH_FOLDERS]
        missing = [(folder, name) for folder, name in needed if name not in present[folder]]
        if missing:
            raise DataError(
                f'{self.root} lacks {len(missing)} of {len(needed)} files, for example {"/".join(missing[0])}. '
                'Unpack the archives of KITTI scene flow again.'
            )


def open_pairs(text: str) -> KittiSceneFlowPairs:
    """See `open_dataset`."""
    root, options = split_options(text, KittiSceneFlowOptions)
    return KittiSceneFlowPairs(root, options)


def recognises(text: str) -> bool:
    """Return whether a path is a split of KITTI scene flow."""
    root = Path(text.partition('?')[0])
    return (root / _LEFT).is_dir() and (root / _RIGHT).is_dir()


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f'{root} is no folder; expected the folder training or testing of KITTI scene flow.')
    splits = [path.name for path in sorted(root.iterdir()) if (path / _LEFT).is_dir()]
    if not (root / _LEFT).is_dir() and splits:
        raise DataError(f'{root} holds {" and ".join(splits)}; name one of them: kitti_scene_flow:{root / splits[0]}.')
    archives = {
        _LEFT: 'data_scene_flow.zip', _RIGHT: 'data_scene_flow.zip', _CALIBRATION: 'data_scene_flow_calib.zip'
    }  # fmt: skip
    for folder, archive in archives.items():
        if not (root / folder).is_dir():
            raise DataError(f'{root} lacks the folder {folder}. It is in {archive} of KITTI scene flow.')


def _read_scenes(path: Path, present: set[str], root: Path) -> set[str]:
    """Return the scenes, NNNNNN, that a text file names. Raises: DataError for other text, and for scenes not there."""
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{path} should be a text file with numbers of scenes: {error}') from error
    odd = [line for line in lines if not re.fullmatch(r'\d{1,6}', line)]
    if odd or not lines:
        raise DataError(f'{path} should have the number of a scene in each line, as 000002, got {(odd or [""])[0]!r}.')
    named = {f'{int(line):06d}' for line in lines}
    missing = sorted(named - present)
    if missing:
        raise DataError(
            f'{path} names {len(named)} scenes, of which {root} lacks {len(missing)}, for example {missing[0]}. Unpack '
            'data_scene_flow.zip of KITTI there, or give another list.'
        )
    return named


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
