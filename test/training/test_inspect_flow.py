# SPDX-License-Identifier: Apache-2.0
"""Flow side by side: whose, in which order, with which errors; pictures and the file for the viewer."""

import numpy as np
import pytest
from tiny_bag import write_bag

pytest.importorskip('torch', reason='training needs torch')

from training import inspect_flow
from training.datasets.pairs import DatasetPair, GroundTruthFlow, MetaClass
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.lidar.sweep import SweepPair


class Constant:
    """An estimator that says the same of every point."""

    def __init__(self, name, flow):
        self.name, self._flow = name, flow

    def flow(self, item):
        return np.tile(np.float32(self._flow), (len(item.pair.points0), 1))


def labelled_pair():
    points = np.float32([[0, 0, 0], [1, 0, 1], [2, 0, 1], [3, 0, 1]])
    flow = np.float32([[9, 9, 9], [1, 0, 0], [0, 0, 0], [7, 7, 7]])
    truth = GroundTruthFlow(flow, np.full(4, MetaClass.CAR, np.uint8), np.array([True, True, True, False]))
    is_ground = np.array([True, False, False, False])
    return DatasetPair('a/b', SweepPair(points, points, np.eye(4), 0.1), is_ground, is_ground, truth)


def test_the_truth_comes_first_and_what_is_unknown_is_nan():
    flows = inspect_flow.compute_flows(labelled_pair(), [Constant('one', [1, 0, 0])])
    assert list(flows) == [inspect_flow.TRUTH, 'one']
    assert np.isnan(flows[inspect_flow.TRUTH][3]).all() and flows[inspect_flow.TRUTH][1, 0] == 1


def test_errors_are_over_known_points_above_the_ground():
    item = labelled_pair()
    flows = inspect_flow.compute_flows(item, [Constant('one', [1, 0, 0]), Constant('none', [np.nan] * 3)])
    assert inspect_flow.flow_errors(item, flows) == {'one': 0.5, 'none': 0.5}
    without = DatasetPair('c', item.pair, item.is_ground0, item.is_ground1)
    assert inspect_flow.flow_errors(without, inspect_flow.compute_flows(without, [Constant('one', [1, 0, 0])])) == {}


def test_pictures_of_a_drive(tmp_path, capsys):
    bag = write_bag(tmp_path / 'drive', num_sweeps=5)
    arguments = [str(bag), '--estimator', 'zero', 'embedded', '--out', str(tmp_path / 'pictures'), '--pairs', '2']
    assert inspect_flow.main(arguments) == 0
    pictures = list((tmp_path / 'pictures').iterdir())
    assert len(pictures) == 2 and all(path.read_bytes()[:4] == b'\x89PNG' for path in pictures)
    assert '2 pairs in' in capsys.readouterr().out


def test_a_drive_for_the_viewer(tmp_path):
    reader = pytest.importorskip('rerun.chunk', reason="needs rerun-sdk (170 MB, not installed by 'make test')")
    bag = write_bag(tmp_path / 'drive', num_sweeps=5)
    file = tmp_path / 'drive.rrd'
    assert inspect_flow.main([str(bag), '--estimator', 'zero', 'embedded', '--view-file', str(file)]) == 0
    entities = {chunk.entity_path for chunk in reader.RrdReader(file).stream()}
    assert {'/zero/ego/points', '/embedded/ego/points', '/embedded/trajectory', '/zero/ego'} <= entities


@pytest.fixture(scope='module')
def mono_checkpoint(tmp_path_factory):
    """Return a checkpoint of mono_lite that has learned nothing."""
    from training.learning.checkpoint import Checkpoint
    from training.students import build_student

    path = tmp_path_factory.mktemp('mono') / 'last.pt'
    Checkpoint('mono_lite', build_student('mono_lite').state_dict(), {'config': {'width': 64, 'height': 32}}).save(path)
    return path


def write_video(path, num=5):
    cv2 = load_opencv()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10.0, (96, 48))
    rng = np.random.default_rng(0)
    for _ in range(num):
        writer.write(rng.integers(0, 255, (48, 96, 3)).astype(np.uint8))
    writer.release()
    return path


def test_pictures_of_a_video_of_one_camera(mono_checkpoint, tmp_path, capsys):
    video, out = write_video(tmp_path / 'drive.avi'), tmp_path / 'pictures'
    arguments = [f'images:{video}', '--estimator', str(mono_checkpoint), '--out', str(out)]
    assert inspect_flow.main([*arguments, '--focal', '60deg', '--pairs', '2']) == 0
    assert sorted(path.name for path in out.iterdir()) == ['000001.png', '000002.png']  # the first has no image before
    assert '2 images in' in capsys.readouterr().out
    assert inspect_flow.main(arguments) == 1
    assert 'does not say its focal length, without which there are no metres. Give --focal' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, says',
    [
        (['--out', 'x'], 'Images need a model of one camera'),
        (['--estimator', 'classical', '--out', 'x'], 'classical takes stereo pairs'),
        (['--estimator', 'x.pt', '--view'], 'images are drawn with --out FOLDER'),
        (['--estimator', 'x.pt', '--out', 'x', '--pairs', '-1'], 'should be 0 (all) or more, got -1'),
    ],
)
def test_what_images_cannot_have_is_said(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert inspect_flow.main([f'images:{write_video(tmp_path / "drive.avi", 3)}', '--focal', '90', *arguments]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, says',
    [
        (['simulation:1000000-1000000'], 'Nothing to write'),
        (['simulation:1000000-1000000', '--out', 'x', '--focal', '9'], '--focal is for images:FOLDER'),
        (['simulation:1000000-1000000', '--out', 'x', '--estimator', 'nobody'], 'Unknown estimator'),
        (['nothing:here', '--out', 'x'], 'nothing:here'),
    ],
)
def test_errors_are_a_sentence(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inspect_flow.main(arguments) == 1
    assert says in capsys.readouterr().err
