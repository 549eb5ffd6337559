# SPDX-License-Identifier: Apache-2.0
"""Weights and images by formulas, and what the published code of multi_mono_sf makes of them.

The figures are those that its public code gives on a CPU (torch 2.13, float32) for these inputs.
"""

import functools

import numpy as np
import torch

from training.students.multi_mono_sf import MultiMonoSf

HEIGHT, WIDTH, NUM_IMAGES = 128, 416, 5
PIXELS = (10, 20), (64, 208), (100, 400)  # (row, column)
# Mean and standard deviation.
FEATURES = [  # of image 1, from 1/32 to 1/2 of the size
    (0.190864, 0.351650), (0.253112, 0.376968), (0.225732, 0.371619), (0.205725, 0.373727), (0.316765, 0.444508),
]  # fmt: skip
FIRST_STEP = {  # from the full size to 1/8
    'forward': [(0.054962, 0.051721), (0.030358, 0.050729), (-0.003629, 0.047780), (0.005410, 0.019811)],
    'backward': [(0.054621, 0.051821), (0.029496, 0.050852), (-0.003528, 0.048293), (0.005503, 0.019906)],
    'disparity': [(0.050453, 0.013049), (0.015434, 0.005578), (0.034756, 0.013604), (0.087925, 0.026405)],
}
FIRST_FLOW = (2.750538, 2.015741)
COVERAGE = 0.447115, 0.546875, 0.600060  # levels 1/16, 1/8, 1/4 in step 2
STEPS = {  # forward, backward, disparity at full size; hidden states of the forward direction from 1/32 to 1/4
    2: [
        (0.019568, 0.051852), (0.020591, 0.056234), (0.035862, 0.006476),
        (0.228891, 0.510098), (0.053682, 0.084878), (0.195499, 0.277261), (0.242918, 0.337233),
    ],
    3: [
        (0.022233, 0.052939), (0.028496, 0.056104), (0.043295, 0.006184),
        (0.234558, 0.516300), (0.075558, 0.115120), (0.205346, 0.306943), (0.213935, 0.303875),
    ],
}  # fmt: skip
AT_PIXELS = {  # of each step: forward, backward, disparity at each of the PIXELS
    1: [
        [4e-06, 0.044266, 0.110394, 0.003838, 0.047376, 0.110167, 0.030854],
        [0.016646, 0.110532, 0.045295, 0.011528, 0.107118, 0.040598, 0.056118],
        [0.094698, 0.108699, 0.005213, 0.096764, 0.107611, 0.003148, 0.056433],
    ],
    2: [
        [-0.03374, 0.009122, 0.03629, -0.042361, 0.002075, 0.028032, 0.035580],
        [-0.021933, 0.026822, 0.108221, -0.047129, 0.035145, 0.094479, 0.026966],
        [-0.030658, 0.05109, 0.01784, -0.030386, 0.060335, 0.037464, 0.045265],
    ],
    3: [
        [-0.047907, 0.009722, 0.02624, -0.052599, 0.011931, 0.028164, 0.041358],
        [-0.043159, 0.024013, 0.100509, -0.054897, 0.038102, 0.116378, 0.041119],
        [-0.017807, 0.04933, 0.043242, -0.001072, 0.048719, 0.057072, 0.045913],
    ],
}
FLIP_AVERAGED = {'forward': (0.036282, 0.043179), 'disparity': (0.043994, 0.011029)}  # full size, of all three steps
LOSSES = {'disparity': 5.934277, 'scene_flow': 13.253595, 'census': 5.819712, 'points': 2.466759, 'total': 26.507191}
GRADIENTS = {  # norms
    'feature_pyramid_extractor.convs.0.0.0.weight': 2.8035,
    'flow_estimators.3.conv_sf.2.0.weight': 47.8366,
    'flow_estimators.3.conv_d1.2.0.weight': 7.81537,
    'flow_estimators.2.conv_lstm.0.weight': 18.635,
}
CENSUS = 0.860170  # of images 1 and 2, the first 50 columns masked
SMOOTHNESS = 0.00000338  # of 0.001 u^2 / width, beside image 1


def intrinsics() -> torch.Tensor:
    """Return the intrinsics (1, 3, 3) of the images."""
    return torch.tensor([[[240.0, 0.0, 200.0], [0.0, 245.0, 60.0], [0.0, 0.0, 1.0]]])


@functools.cache
def images(shift: int = 0) -> torch.Tensor:
    """Return five images (1, 5, 3, 128, 416); shift: 0 of the left, 8 of the right camera."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    found = []
    for t in range(NUM_IMAGES):
        u, v = x + shift + 2 * t, y + 0.5 * t
        fine = 0.1 * np.sin(0.9 * u + 0.7 * v)
        found.append([
            0.5 + 0.2 * np.sin(0.11 * u + 0.05 * v + c) + 0.2 * np.sin(0.037 * u - 0.21 * v + 2 * c) + fine
            for c in range(3)
        ])  # fmt: skip
    return torch.from_numpy(np.array(found, np.float32))[None]


@functools.cache
def weights() -> dict[str, torch.Tensor]:
    """Return the weights (state_dict): noise by a formula of their place, small motion, disparities near 0.04."""
    with torch.device('meta'):
        student = MultiMonoSf()
    found = {}
    for k, (name, value) in enumerate(student.state_dict().items()):
        noise = np.sin(12.9898 * np.arange(value.numel()) + 78.233 * k) * 43758.5453
        values = ((noise - np.floor(noise)) * 2 - 1).reshape(value.shape)
        values *= np.sqrt(6 / np.prod(value.shape[1:])) if name.endswith('weight') else 0.01
        if name.endswith('conv_sf.2.0.weight'):
            values *= 0.05
        if name.endswith('conv_d1.2.0.bias'):
            values -= 2
        if '.conv1x1.' in name:
            values[:] = name.endswith('weight')
        found[name] = torch.from_numpy(values.astype(np.float32))
    return found


def student() -> MultiMonoSf:
    """Return the network with these weights."""
    with torch.device('meta'):
        made = MultiMonoSf()
    made.load_state_dict(weights(), assign=True)
    return made
