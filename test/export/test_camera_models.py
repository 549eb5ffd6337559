# SPDX-License-Identifier: Apache-2.0
"""Programs for models of LiDARs say what a model of a camera is, and what to do with it."""

import pytest

pytest.importorskip('onnxruntime', reason='models need ONNX Runtime')

from export import quantize, to_tensorrt
from zeroflow_ros.engines import mono_card, stereo_card


@pytest.mark.parametrize('key, camera', [
    (stereo_card.METADATA_KEY, 'a stereo camera'), (mono_card.METADATA_KEY, 'one camera'),
])  # fmt: skip
def test_a_camera_model_is_not_quantised_and_has_no_engine(key, camera, tmp_path, capsys):
    path, out = tmp_path / 'm.onnx', tmp_path / 'int8.onnx'
    path.write_bytes(b'\n\x07' + key.encode() + b'{}')
    assert quantize.main([str(path), '--out', str(out)]) == 1 and not out.exists()
    assert f'{path} is a model for {camera}. Camera models have no 8-bit form' in capsys.readouterr().err
    assert to_tensorrt.main([str(path)]) == 1
    assert f'{path} is a model for {camera}. The camera node runs it with ONNX Runtime' in capsys.readouterr().err
