# SPDX-License-Identifier: Apache-2.0
"""A colcon workspace with a built copy of this checkout, for the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from processes import ROOT, environment

NOT_SOURCE = shutil.ignore_patterns(
    '.git', '.venv', 'build', 'install', 'log', 'out', 'runs', '__pycache__', '.*_cache', '*.egg-info'
)


class Workspace:
    """A folder with src/zeroflow_ros, build/ and install/; colcon gets the options.

    Raises: AssertionError with colcon's output when the build fails.
    """

    def __init__(self, path: Path, *options: str):
        self.path, self.options = path, options
        self.source = copy_checkout(path / 'src' / 'zeroflow_ros')
        done = self.run('colcon', 'build', *options)
        assert done.returncode == 0, done.stdout + done.stderr
        self.prefix = path / 'install' / 'zeroflow_ros'
        self.share = self.prefix / 'share' / 'zeroflow_ros'
        self.executables = self.prefix / 'lib' / 'zeroflow_ros'

    @property
    def environment(self) -> dict:
        """Environment: private ROS domain, tools of this interpreter first in PATH, checkout not in PYTHONPATH."""
        paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
        hidden = os.pathsep.join(path for path in paths if path and Path(path).resolve() != ROOT)
        tools = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
        return environment() | {'PYTHONPATH': hidden, 'PATH': tools}

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """Run a command in the workspace."""
        return subprocess.run(
            command, cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def run_sourced(self, line: str, *, timeout: float = 60) -> subprocess.CompletedProcess:
        """Run a shell line after sourcing install/setup.bash, as a user does."""
        return self.run('bash', '-c', f'. install/setup.bash && {line}', timeout=timeout)


def copy_checkout(target: Path) -> Path:
    """Copy the tracked and unignored files of this checkout to `target` and return it."""
    return Path(shutil.copytree(ROOT, target, ignore=NOT_SOURCE))
