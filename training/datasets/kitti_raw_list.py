# SPDX-License-Identifier: Apache-2.0
"""Frames of many drives of KITTI raw data, by a list as publications share them: kitti_raw_list:ROOT+LIST.txt.

ROOT holds the days, see training.datasets.kitti_raw. A line of the list names a frame, or a drive with all its frames:
  2011_09_26/2011_09_26_drive_0002_sync 0000000069 l                          as Zhou et al. and monodepth2
  2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png ...      as Eigen et al. and monodepth
  2011_09_26_drive_0002_sync 0000000069                                       as self-mono-sf
  2011_09_26_drive_0002_sync                                                  as multi-mono-sf
"""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from training.datasets import split_options
from training.datasets.kitti_raw import KittiRawOptions, KittiRawPairs
from training.datasets.stereo_pairs import StereoDatasetPair
from zeroflow_ros.errors import DataError

_DRIVE = re.compile(r'(?:\S*/)?(\d{4}_\d\d_\d\d)_drive_(\d{4})_(sync|extract)')
_FRAME = re.compile(r'(?:/image_(\d\d)/data/|\s+)(\d{1,10})(?:\.(?:png|jpg))?(?:\s+([lr])\b)?(?:\s.*)?')


@dataclass(frozen=True)
class KittiRawListOptions:
    """Options, as those of kitti_raw. ego_motion: oxts or none. depth: velodyne, improved or none."""

    ego_motion: str = 'none'
    depth: str = 'none'


def read_list(path: str | Path) -> list[tuple[str, int | None]]:
    """Return (drive, number of the frame) of each line of a list, in its order; None for all frames of the drive.

    Frames of the right camera are left out: the left one is the reference. Empty lines are, too.
    Raises: DataError for a file that cannot be read, and for a line of another form.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{path} should be a list of frames of KITTI raw data: {error}') from error
    found = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        drive = _DRIVE.match(line)
        rest = line[drive.end() :] if drive else ''
        frame = _FRAME.fullmatch(rest)
        if drive is None or (rest and frame is None):
            raise DataError(
                f'{path}, line {number} should name a frame, as in 2011_09_26_drive_0002_sync 0000000069, or a drive, '
                f'got {line[:100]!r}.'
            )
        if frame and (frame[1] == '03' or frame[3] == 'r'):
            continue
        name = '{}_drive_{}_{}'.format(*drive.groups())
        found.append((name, int(frame[2]) if frame else None))
    if not found:
        raise DataError(f'{path} names no frame.')
    return found


class KittiRawList:
    """The pairs whose older frame a list names, in its order; frames at the end of a drive make no pair.

    skipped: number of named frames without a pair.
    Raises: DataError when the list names a drive or an image that is not there.
    """

    sensor = 'stereo'

    def __init__(self, root: str | Path, path: str | Path, options: KittiRawListOptions = KittiRawListOptions()):
        self.root, self.name = Path(root), f'kitti_raw {Path(path).stem}'
        named = read_list(path)
        self._check_drives(path, list(dict.fromkeys(drive for drive, _ in named)))
        kept = KittiRawOptions(ego_motion=options.ego_motion, depth=options.depth)
        self._drives = {drive: KittiRawPairs(self._folder(drive), kept) for drive in dict.fromkeys(d for d, _ in named)}
        indices = {
            drive: {int(pairs.key(k).partition('_')[0]): k for k in range(len(pairs))}
            for drive, pairs in self._drives.items()
        }
        self._check_images(path, named)
        self._places: list[tuple[str, int]] = []
        self.skipped: Counter[str] = Counter()
        for drive, number in named:
            if number is None:
                self._places += [(drive, index) for index in indices[drive].values()]
            elif number in indices[drive]:
                self._places.append((drive, indices[drive][number]))
            else:
                self.skipped['no_next_frame'] += 1
        if not self._places:
            raise DataError(f'{path}: none of {len(named)} frames makes a pair with the next frame.')

    def __len__(self) -> int:
        return len(self._places)

    def key(self, index: int) -> str:
        """Return the drive, and the key of the pair in it."""
        drive, place = self._places[index]
        return f'{drive}/{self._drives[drive].key(place)}'

    def __getitem__(self, index: int) -> StereoDatasetPair:
        drive, place = self._places[index]
        return dataclasses.replace(self._drives[drive][place], key=self.key(index))

    @property
    def warnings(self) -> list[str]:
        """Sentences on the frames that make no pair."""
        return [f'{number} frames of the list make no pair ({name}).' for name, number in self.skipped.items()]

    def _folder(self, drive: str) -> Path:
        return self.root / drive[:10] / drive

    def _check_drives(self, path, drives: list[str]) -> None:
        missing = [drive for drive in drives if not self._folder(drive).is_dir()]
        if missing:
            raise DataError(
                f'{path} names {len(drives)} drives, of which {self.root} lacks {len(missing)}, for example '
                f'{missing[0][:10]}/{missing[0]}. Unpack them there from KITTI raw data, synced and rectified.'
            )

    def _check_images(self, path, named: list[tuple[str, int | None]]) -> None:
        images = [
            self._folder(drive) / 'image_02' / 'data' / f'{number:010d}.png'
            for drive, number in named
            if number is not None
        ]
        missing = [image for image in images if not image.is_file()]
        if missing:
            raise DataError(
                f'{path} names {len(images)} images, of which {len(missing)} are not there, for example '
                f'{missing[0].relative_to(self.root)}. Unpack the drives again; images that were written as .jpg need '
                'to be .png.'
            )


def open_pairs(text: str) -> KittiRawList:
    """Open ROOT+LIST.txt, with the options of `KittiRawListOptions` behind a question mark."""
    text, options = split_options(text, KittiRawListOptions)
    root, plus, path = text.rpartition('+')
    if not plus:
        raise DataError(f'A list of frames is named ROOT+LIST.txt, got {text!r}.')
    return KittiRawList(root, path, options)


def recognises(text: str) -> bool:
    """Return False: a list needs a root."""
    return False
