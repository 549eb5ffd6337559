# SPDX-License-Identifier: Apache-2.0
"""A model card of a small dense model."""

import numpy as np

from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.lidar.pillars import PillarGrid

CARD = ModelCard(
    name='m',
    student='fastflow3d_lite',
    form='dense',
    precision='float32',
    grid=PillarGrid(8, 0.5, -1.0, 3.0),
    ground='keep',
    z_origin='ground',
    direction='both',
    nominal_dt=0.1,
    dt_range=(0.05, 0.25),
    num_sweeps=2,
    inputs={'images': [1, 4, 8, 8]},
    outputs={'hidden': [4, 4, 2, 2, 5]},
    training={'data': 'test'},
    licence='Apache-2.0',
    versions={},
    encoder_weight=np.linspace(0, 1 / 3, 18, dtype=np.float32).reshape(2, 9),
    encoder_bias=np.array([0.1, 1e-30], np.float32),
    head_offset_weight=np.linspace(-1, 1 / 7, 15, dtype=np.float32).reshape(5, 3),
    head_weight=np.linspace(-1, 1 / 9, 15, dtype=np.float32).reshape(3, 5),
    head_bias=np.array([0, -0.1, 1e9], np.float32),
    head_activation='gelu',
)
