# SPDX-License-Identifier: Apache-2.0
"""Which files a recording consists of: a folder with or without metadata.yaml, or a single file."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from zeroflow_ros.bags.storage_file import SUFFIXES, is_storage_name
from zeroflow_ros.errors import DataError

METADATA = 'metadata.yaml'
_PACKED = ('.zstd', '.zst')
# drive_0.db3 and drive_1.db3 (rosbag2), or drive_2024-05-01-10-00-00_0.bag (rosbag1 --split): name, number
_SPLIT = re.compile(r'(?P<name>.*?)(_\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d)?_(?P<number>\d+)$')
_MOST_LISTED = 20


@dataclass(frozen=True)
class Recording:
    """The files of a recording, in order.

    path: of the folder or the file. num_expected: messages by metadata.yaml; 0: not known. notes: sentences on what is
    missing.
    """

    path: Path
    files: tuple[Path, ...]
    num_expected: int
    notes: tuple[str, ...]


def find_recording(path: Path) -> Recording:
    """Return the files that belong to a folder or a file.

    Raises: DataError when there is none, or the folder holds several recordings.
    """
    if not os.path.lexists(path):
        raise DataError(f'There is no bag at {path}. Give a rosbag2 directory, or a .mcap, .db3 or .bag file.')
    try:
        if not path.exists():
            target = os.readlink(path)
            remedy = 'Fetch it: `git annex get`' if '.git/annex' in target else 'Mount or copy what it points to'
            raise DataError(f'There is no bag at {path}: it is a link to {target}, which does not exist. {remedy}.')
        if path.name == METADATA:
            path = path.parent
        if not path.is_dir():
            return Recording(path, (path,), 0, ())
        return _of_folder(path)
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error


def looks_like_recording(path: Path) -> bool:
    """Return whether a path is a rosbag2 folder, or a file or a folder of files named as recordings."""
    if path.is_dir():
        return (path / METADATA).is_file() or any(is_storage_name(file) for file in path.iterdir())
    return path.is_file() and is_storage_name(path)


def _of_folder(folder: Path) -> Recording:
    present = _without_packed_twins(
        [file for file in sorted(folder.iterdir()) if file.is_file() and is_storage_name(file)]
    )
    if not (folder / METADATA).exists():
        return Recording(_single(folder, present), tuple(_of_one_recording(folder, present)), 0, ())
    names, num_expected, problem = _read_metadata(folder / METADATA)
    if problem:
        files = _of_one_recording(folder, present)
        return Recording(folder, tuple(files), 0, (f'{folder / METADATA} is not used: {problem}.',))
    by_name = {_unpacked_name(file.name): file for file in present}
    listed = [by_name.get(_unpacked_name(name)) or _with_any_case(name, folder, present) for name in names]
    missing = [name for name, file in zip(names, listed, strict=True) if file is None]
    files, notes = [file for file in listed if file is not None], []
    if not files:  # renamed, most likely
        files = _of_one_recording(folder, present)
        missing = [f'{", ".join(missing)} (but {", ".join(file.name for file in files)} is there and is read)']
    if missing:
        notes.append(f'{folder / METADATA} names files that are not there: {", ".join(missing)}. Copy them, too.')
    known = {_split_name(file) for file in files}
    more = [file for file in present if file not in files and _split_name(file) in known - {''}]
    if more:
        notes.append(
            f'{", ".join(file.name for file in more)} in {folder} is missing in {METADATA}, and is read, too: the '
            'recorder was killed.'
        )
    files += more
    return Recording(folder, tuple(files), 0 if more else num_expected, tuple(notes))


def _single(folder: Path, files: list[Path]) -> Path:
    return files[0] if len(files) == 1 else folder


def _of_one_recording(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files in order when they are parts of one recording. Raises: DataError that lists them otherwise."""
    if not files:
        inside = sorted(place for place in folder.iterdir() if place.is_dir() and looks_like_recording(place))
        if inside:
            raise DataError(f'{folder} holds {len(inside)} bags. Give one of them: {_listed(inside)}')
        what = 'no file' if not any(folder.iterdir()) else 'no .mcap, .db3 or .bag file'
        raise DataError(f'{folder} is not a bag: it has {what}. Give a rosbag2 directory, or a bag file.')
    if len(files) == 1:
        return files
    splits = [_SPLIT.match(_stem(file)) for file in files]
    if all(splits):
        names = {match['name'] for match in splits}
        numbers = [int(match['number']) for match in splits]
        is_one = len(names) == 1 and len(set(numbers)) == len(numbers) and len({_format(file) for file in files}) == 1
        if is_one and (0 in numbers or names == {folder.name}):
            return [file for _, file in sorted(zip(numbers, files, strict=True))]
    raise DataError(f'{folder} holds {len(files)} bag files that are not parts of one bag. Give one of them: '
                    f'{_listed(files)}')  # fmt: skip


def _read_metadata(path: Path) -> tuple[list[str], int, str]:
    """Return the names of files, the number of messages, and '' or why it cannot be used."""
    import yaml

    try:
        text = path.read_bytes().decode()
        if not text.strip('\0 \n\r\t'):
            return [], 0, 'it is empty'
        information = yaml.safe_load(text)['rosbag2_bagfile_information']
        names = [PurePath(name).name for name in information['relative_file_paths']]
        num_expected = int(information['message_count'])
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
    except Exception:  # yaml raises many types; the content may be of any type
        return [], 0, 'it is cut or damaged'
    return names, max(num_expected, 0), '' if names else 'it names no file'


def _without_packed_twins(files: list[Path]) -> list[Path]:
    """Leave out x.db3.zstd where x.db3 is there, too."""
    names = {file.name for file in files}
    return [file for file in files if file.suffix.lower() not in _PACKED or _unpacked_name(file.name) not in names]


def _unpacked_name(name: str) -> str:
    for ending in _PACKED:
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name


def _with_any_case(name: str, folder: Path, files: list[Path]) -> Path | None:
    if (folder / name).is_file():  # with a suffix that is not usual
        return folder / name
    return next((file for file in files if _unpacked_name(file.name).lower() == _unpacked_name(name).lower()), None)


def _stem(file: Path) -> str:
    name = file.name
    while PurePath(name).suffix.lower() in (*SUFFIXES, *_PACKED, '.active'):
        name = PurePath(name).stem
    return name


def _format(file: Path) -> str:
    return next((suffix for suffix in SUFFIXES if suffix in file.name.lower()), '')


def _split_name(file: Path) -> str:
    match = _SPLIT.match(_stem(file))
    return match['name'] if match else ''


def _listed(paths: list[Path]) -> str:
    more = f' and {len(paths) - _MOST_LISTED} more' if len(paths) > _MOST_LISTED else ''
    return ', '.join(str(path) for path in paths[:_MOST_LISTED]) + more
