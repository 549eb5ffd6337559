# SPDX-License-Identifier: Apache-2.0
"""Provenance of results: versions of the code and its dependencies."""

import platform
import subprocess
from pathlib import Path

import zeroflow_ros


def provenance() -> dict:
    """Return the version of the code, its commit in a git checkout, and the versions of its dependencies."""
    import numpy
    import torch

    def git(*words: str) -> str:
        done = subprocess.run(['git', *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ''

    return {
        'version': zeroflow_ros.__version__,
        'commit': git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain', '--untracked-files=no') else ''),
        'python': platform.python_version(),
        'torch': str(torch.__version__),  # a str subclass, which safe loading refuses
        'numpy': numpy.__version__,
    }
