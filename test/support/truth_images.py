# SPDX-License-Identifier: Apache-2.0
"""One camera whose images are their own truth: red is depth, green and blue are motion until the next image.

A model file made by hand reads them, so that what the vehicle makes of a model is known exactly. The camera drives
forward over a floor, past boards; one of them moves to the right.
"""

import dataclasses
from pathlib import Path

import numpy as np
from stereo_corridor import (
    EGO_SPEED,
    MOVER_SPEED,
    ODOMETRY_TOPIC,
    PERIOD_NS,
    START_NS,
    mount_message,
    odometry_message,
)
from tiny_bag import new_bag

from zeroflow_ros.bags.cdr import ODOMETRY, TRANSFORMS, typestore
from zeroflow_ros.camera.mono import BASELINE, MonoFrame
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.camera.stereo_topics import CAMERA_INFO, IMAGE
from zeroflow_ros.engines.mono_card import METADATA_KEY, MonoCard

WIDTH, HEIGHT = 64, 32
CAMERA = StereoCamera(WIDTH, HEIGHT, 50.0, 50.0, 31.5, 15.5, BASELINE)
FRAME_ID = 'left_optical'  # as /tf_static of stereo_corridor has it
IMAGES, INFOS = '/camera/image_rect', '/camera/camera_info'
FLOOR = 1.2  # m below the camera
DEPTH_UNIT, MOTION_UNIT, AT_REST = 0.1, 0.01, 128
MOVER_ROWS, MOVER_SIZE, MOVER_START = slice(4, 14), 2.0, -1.5  # rows of the image; length and left end at the start [m]
SIGMA = 0.1, 0.001


def picture(number: int, *, drives: bool = True) -> np.ndarray:
    """Return the image (H, W, 3) uint8 of a frame, 0.1 s times its number after the start."""
    depth = np.zeros((HEIGHT, WIDTH))
    for left, far in enumerate((80, 65, 95, 70)):  # boards, in 0.1 m
        depth[:, left * 16 : left * 16 + 16] = far
    mover = is_mover(number, drives=drives)
    depth[mover] = 50
    depth -= number * drives
    rows = np.arange(HEIGHT)[:, None] - CAMERA.cy
    floor = np.where(rows > 0, FLOOR * CAMERA.fy / np.maximum(rows, 1e-3) / DEPTH_UNIT, 1e9)
    depth = np.minimum(depth, np.broadcast_to(np.rint(floor), depth.shape))
    image = np.full((HEIGHT, WIDTH, 3), AT_REST, np.uint8)
    image[..., 0] = depth
    image[..., 2] = AT_REST - round(0.1 * EGO_SPEED / MOTION_UNIT) * drives
    image[mover, 1] = AT_REST + round(0.1 * MOVER_SPEED / MOTION_UNIT)
    image[0, 0, 0] = 60 + number % 100  # no two images are the same
    return image


def is_mover(number: int, step: int = 1, *, drives: bool = True) -> np.ndarray:
    """Return which pixels (H', W') show the mover, of every step-th one. It is back at its start after ten frames."""
    depth = 5.0 - DEPTH_UNIT * number * drives
    left = MOVER_START + 0.1 * MOVER_SPEED * (number % 10)
    columns = [round(CAMERA.fx * x / depth + CAMERA.cx) for x in (left, left + MOVER_SIZE)]
    found = np.zeros((HEIGHT, WIDTH), bool)
    found[MOVER_ROWS, max(columns[0], 0) : columns[1]] = True
    return found[::step, ::step]


def frame(number: int, **options) -> MonoFrame:
    return MonoFrame(picture(number, **options), CAMERA, START_NS + number * PERIOD_NS, FRAME_ID)


def write_mono_model(path: Path, *, spoil=lambda proto: None, **changes) -> Path:
    """Write the model file; changes: of the card. spoil: changes the graph before it is written."""
    import onnx

    from export.model_file import write_model

    tensor, node = onnx.helper.make_tensor, onnx.helper.make_node
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[0, 0], weight[1, 1], weight[3, 2] = DEPTH_UNIT, MOTION_UNIT, MOTION_UNIT
    bias = -AT_REST * MOTION_UNIT * np.array([0, 1, 0, 1], np.float32)
    weights = [
        tensor('weight', onnx.TensorProto.FLOAT, weight.shape, weight.ravel()),
        tensor('bias', onnx.TensorProto.FLOAT, [4], bias), tensor('one', onnx.TensorProto.FLOAT, [1], [1.0]),
    ]  # fmt: skip
    nodes = [
        node('Cast', ['image'], ['next_newer'], to=onnx.TensorProto.FLOAT),
        node('Add', ['count', 'one'], ['next_count']),
        node('Transpose', ['newer'], ['planes'], perm=[0, 3, 1, 2]),
        node('Conv', ['planes', 'weight', 'bias'], ['scene_flow']),
    ]
    size = [1, HEIGHT, WIDTH, 3]
    inputs, state = {'image': size, 'intrinsics': [1, 3, 3]}, {'newer': size, 'count': [1]}
    outputs = {'scene_flow': [1, 4, HEIGHT, WIDTH]}

    def values(shapes):
        return [
            onnx.helper.make_tensor_value_info(
                name, onnx.TensorProto.UINT8 if name == 'image' else onnx.TensorProto.FLOAT, shape
            )
            for name, shape in shapes.items()
        ]

    results = values(outputs | {f'next_{name}': shape for name, shape in state.items()})
    graph = onnx.helper.make_graph(nodes, 'hand_made', values(inputs | state), results, weights)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 20)], ir_version=9)
    card = MonoCard(
        name='m', student='hand_made', precision='float32', width=WIDTH, height=HEIGHT, resize='scale',
        refers_to='previous', num_images=3, far=30.0, scale='as the images say', splat='none', nominal_dt=0.1,
        estimates_sigma=False, sigma=SIGMA, training={}, licence='Apache-2.0', versions={}, state=state, inputs=inputs,
        outputs=outputs,
    )  # fmt: skip
    spoil(proto)
    write_model(proto, dataclasses.replace(card, **changes), path, key=METADATA_KEY)
    return path


def _header(types, number: int):
    stamp = types['builtin_interfaces/msg/Time'](*divmod(START_NS + number * PERIOD_NS, 10**9))
    return types['std_msgs/msg/Header'](stamp, FRAME_ID)


def image_message(number: int, **options):
    """Return the Image of a frame, as rosbags has it."""
    types = typestore().types
    return types[IMAGE](_header(types, number), HEIGHT, WIDTH, 'rgb8', 0, 3 * WIDTH, picture(number, **options).ravel())


def info_message(number: int, *, width: int = WIDTH, height: int = HEIGHT, model: str = 'plumb_bob', d=(0.0,) * 5,
                 fx: float = CAMERA.fx):  # fmt: skip
    """Return the CameraInfo of a frame."""
    types, c = typestore().types, CAMERA
    k = np.array([fx, 0, c.cx, 0, c.fy, c.cy, 0, 0, 1.0])
    p = np.array([fx, 0, c.cx, 0, 0, c.fy, c.cy, 0, 0, 0, 1, 0.0])
    roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return types[CAMERA_INFO](_header(types, number), height, width, model, np.array(d, np.float64), k,
                              np.eye(3).ravel(), p, 0, 0, roi)  # fmt: skip


def write_mono_bag(path: Path, num_frames: int = 6, *, odometry: bool = True, infos: bool = True,
                   numbers=None) -> Path:  # fmt: skip
    """Write a bag of the camera, and return its path. numbers: of the frames, in the order of recording."""
    with new_bag(path, store=typestore()) as (path, _, write):
        write('/tf_static', TRANSFORMS, START_NS, mount_message())
        for place, number in enumerate(range(num_frames) if numbers is None else numbers):
            time_ns = START_NS + place * PERIOD_NS
            if infos:
                write(INFOS, CAMERA_INFO, time_ns, info_message(number))
            write(IMAGES, IMAGE, time_ns, image_message(number))
            if odometry:
                write(ODOMETRY_TOPIC, ODOMETRY, time_ns + 1_000_000, odometry_message(number))
    return path
