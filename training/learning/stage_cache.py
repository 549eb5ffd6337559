# SPDX-License-Identifier: Apache-2.0
"""Cached stages of a long job: one folder per stage, named after its inputs, with checksums of its results."""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zeroflow_ros.errors import DataError
from zeroflow_ros.views.report import write_json

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
_MANIFEST = 'manifest.json'


@dataclass(frozen=True)
class StageResult:
    """Result of a stage. folder: its files. checksum: over the names and contents of all result files."""

    folder: Path
    checksum: str


def run_cached_stage(
    work: Path, name: str, inputs: dict, make: Callable[[Path], None], *, results: tuple[str, ...]
) -> StageResult:
    """Run a stage and return its result; return the stored result if it is complete and intact.

    inputs: other inputs get another folder.
    make: fills the folder passed to it. The folder may hold files of an interrupted run; damaged results are removed.
    results: glob patterns of the result files, which get checksums.
    Raises: DataError when the stage leaves no result; errors of `make`.
    """
    inputs = json.loads(json.dumps(inputs))
    folder = Path(work) / f'{name}_{_digest(inputs)[:12]}'
    manifest = folder / _MANIFEST
    with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged manifest counts as missing
        files = json.loads(manifest.read_text())['files']
        damaged = [folder / path for path, sha256 in files.items() if _sha256(folder / path) != sha256]
        if not damaged:
            print(f'{name}: already done, in {folder}', file=sys.stderr)
            return StageResult(folder, _digest(files))
        manifest.unlink()
        for path in damaged:
            path.unlink(missing_ok=True)
    print(f'{name}: into {folder}', file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    make(folder)
    found = sorted({path for pattern in results for path in folder.rglob(pattern) if path.name[0] != '.'})
    if not found:
        raise DataError(f'The stage {name} left none of {", ".join(results)} in {folder}. Run the same command again.')
    files = {path.relative_to(folder).as_posix(): _sha256(path) for path in found}
    write_json(manifest, {'inputs': inputs, 'files': files})
    return StageResult(folder, _digest(files))


class Checksums:
    """sha256 of files and folders; a file is read again only when its size or modification time changes.

    path: JSON file that stores the checksums.
    """

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads(path.read_text())

    def __call__(self, path: Path) -> str:
        """Return the checksum of a file, or of a folder: names and contents of all files in it."""
        if path.is_dir():
            files = sorted(file for file in path.rglob('*') if file.is_file())
            return _digest([[file.relative_to(path).as_posix(), self(file)] for file in files])
        status = path.stat()
        key = f'{path.resolve()} {status.st_size} {status.st_mtime_ns}'
        if key not in self._known:
            self._known[key] = _sha256(path)
            write_json(self.path, self._known)
        return self._known[key]


@contextlib.contextmanager
def lock_work_folder(work: Path) -> Iterator[None]:
    """Hold the lock of a work folder. Raises: DataError when another process holds it."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / 'lock', 'a+') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it, however the process ends
        except OSError as error:
            raise DataError(
                f'{work}: another distillation uses this folder. Wait for it, or choose another --work.'
            ) from error
        yield


def run_program(module: str, *words) -> int:
    """Run `python -m module words` and return its exit status; it ends with this process, even on SIGKILL."""
    parent = os.getpid()

    def end_with_parent():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    command = [sys.executable, '-m', module, *map(str, words)]
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    return subprocess.run(
        command, preexec_fn=end_with_parent, env={**os.environ, 'PYTHONPATH': path}, check=False
    ).returncode


def _sha256(path: Path) -> str:
    """Return the checksum of a file, '' if there is no file."""
    if not path.is_file():
        return ''
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
