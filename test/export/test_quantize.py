# SPDX-License-Identifier: Apache-2.0
"""The 8-bit form of a model: what it says of itself, how far its flow is from that of its source, what is refused."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from processes import ROOT
from tiny_bag import write_bag

pytest.importorskip('torch', reason='export needs torch')
pytest.importorskip('onnx', reason='export needs onnx')

from export import quantize
from zeroflow_ros.engines.selection import MODELS, load_engine
from zeroflow_ros.engines.stopwatch import Stopwatch

FLOAT = MODELS / 'fastflow3d_lite_5.onnx'


def street_flow(path):
    """Return the flow [m] of a wall that has moved by half a metre, above ground that has not."""
    rng = np.random.default_rng(0)
    ground = np.stack([*rng.uniform(-30, 30, (2, 8000)), np.zeros(8000)], 1)
    wall = np.stack([rng.uniform(5, 9, 1000), np.full(1000, 4.0), rng.uniform(0.2, 1.6, 1000)], 1)
    before = np.concatenate([ground, wall]).astype(np.float32)
    after = np.concatenate([ground, wall + [0.5, 0, 0]]).astype(np.float32)
    return load_engine(path).infer(after, before, Stopwatch())


def test_the_8_bit_form_is_close_smaller_and_says_what_it_is(tmp_path, capsys):
    out = tmp_path / 'new' / 'int8.onnx'
    bag = write_bag(tmp_path / 'drive', num_sweeps=6)
    level = logging.getLogger().level
    assert quantize.main([str(FLOAT), '--out', str(out), '--bag', str(bag), '--pairs', '3']) == 0
    assert logging.getLogger().level == level
    assert 'int8, 0.8 MB, 3 sweep pairs of drive' in capsys.readouterr().out
    card, source = load_engine(out).card, load_engine(FLOAT).card
    assert (card.precision, card.form, card.grid) == ('int8', 'dense', source.grid)
    assert card.training == {**source.training, 'calibration': '3 sweep pairs of drive'}
    assert card.checksum != source.checksum and out.stat().st_size < 0.4 * FLOAT.stat().st_size
    assert [path.name for path in out.parent.iterdir()] == ['int8.onnx']


def test_memory_does_not_grow_with_the_pairs_to_calibrate_on(tmp_path):
    bag = write_bag(tmp_path / 'drive', num_sweeps=18)
    code = (
        'import resource\nfrom export import quantize\n'
        'for pairs in (2, 17):\n'
        f"    quantize.main(['{FLOAT}', '--out', '{tmp_path}/int8.onnx', '--bag', '{bag}', '--pairs', str(pairs)])\n"
        '    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    [few, many] = [int(line) for line in out.stdout.splitlines() if line.isdigit()]
    assert '17 sweep pairs' in out.stdout
    assert many - few < 500, (few, many)  # MB; the maps of the 15 pairs more are 1,500


def test_the_embedded_8_bit_model_comes_from_the_embedded_model_and_flows_like_it():
    ours, source = (load_engine(path).card for path in (MODELS / 'fastflow3d_lite_5_int8.onnx', FLOAT))
    assert {**source.training, 'calibration': ours.training['calibration']} == ours.training
    np.testing.assert_array_equal(ours.encoder_weight, source.encoder_weight)
    flows = [street_flow(MODELS / 'fastflow3d_lite_5_int8.onnx'), street_flow(FLOAT)]
    error = np.linalg.norm(flows[0] - flows[1], axis=1)
    assert np.median(error) < 0.02 and np.percentile(error, 99) < 0.15  # m


def test_the_symmetric_form_is_one_that_tensorrt_builds(tmp_path, capsys):
    pytest.importorskip('tensorrt_rtx_bindings', reason='TensorRT-RTX is not installed (Makefile: TENSORRT_GATE)')
    from export import to_tensorrt

    out, bag = tmp_path / 'symmetric.onnx', write_bag(tmp_path / 'drive', num_sweeps=6)
    assert quantize.main([str(FLOAT), '--out', str(out), '--bag', str(bag), '--pairs', '3', '--symmetric']) == 0
    assert to_tensorrt.main([str(out), '--check']) == 0
    flows = [street_flow(out), street_flow(FLOAT)]
    assert np.median(np.linalg.norm(flows[0] - flows[1], axis=1)) < 0.02  # m


def test_calibration_on_simulated_clips_sees_both_directions_of_time(tmp_path, monkeypatch):
    from training.datasets import clip_store

    rng = np.random.default_rng(0)
    clouds = [rng.uniform(-5, 5, (500, 3)).astype(np.float32) * np.float32([1, 1, 0.1]) for _ in range(2)]
    pair = clip_store.TrainingPair(*clouds, *clouds, 0.1)
    monkeypatch.setattr(clip_store.ClipStore, 'window', lambda *_: pair)
    first, second = quantize.simulated_images(load_engine(FLOAT).card, tmp_path, 2)
    num_sweeps = load_engine(FLOAT).card.num_sweeps
    slots = [images.reshape(num_sweeps, -1) for images in (first, second)]
    np.testing.assert_array_equal(slots[0][0], slots[1][1])
    np.testing.assert_array_equal(slots[0][1], slots[1][0])
    assert not slots[0][2:].any()  # of sweeps that the window lacks
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    'label, model, bag, says',
    [
        ('already 8 bits', MODELS / 'fastflow3d_lite_5_int8.onnx', 6, 'int8; only a dense or gather float32 model'),
        ('no model', 'none.onnx', 6, 'No model file'),
        ('no pair', FLOAT, 1, 'no pair of sweeps'),
        ('none asked for', FLOAT, 6, '--pairs must be 1 or more'),
    ],
)
def test_what_cannot_be_quantised_is_refused(label, model, bag, says, tmp_path, capsys):
    path = write_bag(tmp_path / 'drive', num_sweeps=bag)
    pairs = ['--pairs', '0'] if label == 'none asked for' else []
    assert quantize.main([str(model), '--out', str(tmp_path / 'x.onnx'), '--bag', str(path), *pairs]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / 'x.onnx').exists()
