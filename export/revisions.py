# SPDX-License-Identifier: Apache-2.0
"""Runs another git revision of the vehicle package, so that both revisions are timed in one benchmark."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.sweep import SweepPair

_ROOT = Path(__file__).parents[1]
_WORKER = Path(__file__).with_name('revision_worker.py')


class RevisionRun:
    """The pipeline of a git revision of this checkout, in a separate process, timed by stage.

    revision: any git revision name. model: a model file; empty for the revision's bundled model.
    Raises: ConfigError for an unknown revision.
    """

    def __init__(self, revision: str, model: str, num_threads: int):
        self.name = f'{revision}: {model or "embedded"}'
        self.num_sweeps = 2  # that every revision takes
        self.runs_on = f'zeroflow_ros of {revision}, {num_threads} CPU threads'
        self._folder = tempfile.TemporaryDirectory(prefix='revision-')
        archive = subprocess.run(
            ['git', 'archive', '--format=tar', revision, 'zeroflow_ros'], cwd=_ROOT, capture_output=True, check=False
        )
        if archive.returncode:
            said = archive.stderr.decode(errors='replace').strip()
            raise ConfigError(f'git cannot read zeroflow_ros of revision {revision!r}: {said}')
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(self._folder.name, filter='data')
        path = str(Path(model).resolve()) if model else ''
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), path, str(num_threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=self._folder.name, env={**os.environ, 'PYTHONPATH': self._folder.name},
        )  # fmt: skip

    def __call__(self, pair: SweepPair) -> dict[str, float]:
        """Return milliseconds by stage.

        Raises: DataError with the last error line of the other revision when its process ends.
        """
        clouds = pair.points1, pair.points0
        try:
            about = {
                'points': [len(points) for points in clouds], 'ego0_T_ego1': pair.ego0_T_ego1.tolist(), 'dt': pair.dt,
            }  # fmt: skip
            self._process.stdin.write(json.dumps(about).encode() + b'\n')
            for points in clouds:
                self._process.stdin.write(points.astype('float32').tobytes())
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self._process.kill()
            said = self._process.stderr.read().decode(errors='replace').strip().splitlines()
            raise DataError(f'{self.name} ended: {said[-1] if said else error}') from error

    def close(self) -> None:
        """End the process and remove its files."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()
