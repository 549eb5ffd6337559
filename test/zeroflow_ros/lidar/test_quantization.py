# SPDX-License-Identifier: Apache-2.0
"""Numbers stored in 8 bits."""

import numpy as np
import pytest

from zeroflow_ros.lidar.quantization import Quantization


@pytest.mark.parametrize(
    ('real', 'stored', 'back'),
    [
        ([], [], []),
        ([0.0, 0.5, 1.0], [10, 11, 12], [0.0, 0.5, 1.0]),
        ([0.25, 0.75], [10, 12], [0.0, 1.0]),  # halves to even
        ([-1e9, 1e9], [0, 255], [-5.0, 122.5]),
    ],
    ids=['none', 'exact', 'halves', 'beyond'],
)
def test_stored_and_real(real, stored, back):
    quantization = Quantization(scale=0.5, zero_point=10)
    found = quantization.stored(np.float32(real))
    assert found.dtype == np.uint8 and found.tolist() == stored
    assert quantization.real(found).tolist() == back and quantization.real(found).dtype == np.float32
