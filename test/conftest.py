# SPDX-License-Identifier: Apache-2.0
"""What all tests share: a private ROS domain, and the recordings beside the checkout."""

import os
from pathlib import Path

import pytest
from processes import DOMAIN_ID

# Before the first context: this process and every one that it starts talk among themselves only.
os.environ['ROS_DOMAIN_ID'] = str(DOMAIN_ID)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Return the folder of recordings; skips where it is absent."""
    path = Path(__file__).resolve().parents[2] / 'shared' / 'data'
    if not path.is_dir():
        pytest.skip(f'needs the recordings in {path}')
    return path


@pytest.fixture(scope='session')
def clips(tmp_path_factory) -> Path:
    """Return a folder with one simulated clip in which something moves."""
    from training.datasets.clip_store import ClipStore

    folder = tmp_path_factory.mktemp('clips')
    ClipStore(folder, 2).ensure(0)
    return folder


@pytest.fixture
def labels(clips):
    """Return a store of labels of that clip."""
    from train_world import make_labels

    return make_labels(clips)


@pytest.fixture(params=['compiled', 'numpy'])
def compiled_or_not(request, monkeypatch):
    """Run a test with the compiled loops and without."""
    from zeroflow_ros import pipeline
    from zeroflow_ros.lidar import deskew, numba_support, pillars, point_cloud, point_head

    if numba_support.numba_kernels is None and request.param == 'compiled':
        pytest.skip('numba is not installed')
    if request.param == 'numpy':
        for module in (deskew, pillars, pipeline, point_cloud, point_head):
            monkeypatch.setattr(module, 'numba_kernels', None)
