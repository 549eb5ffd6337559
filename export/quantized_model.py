# SPDX-License-Identifier: Apache-2.0
"""The 8-bit form of a dense or gather model file, and the pillar images on which it is calibrated."""

import contextlib
import dataclasses
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from export.model_file import write_model
from zeroflow_ros.engines.engine import IDENTITY
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.errors import DataError, ZeroFlowError
from zeroflow_ros.lidar.pillars import PillarImages

_PERCENTILE = 99.999  # of the activations; clipping the few larger ones gives finer steps


class PillarRecorder:
    """An engine that computes only the pillar images of a dense model, and no flow.

    images: (1, S * C, G, G), of the latest clouds; overwritten by the next call.
    """

    def __init__(self, card: ModelCard):
        self.card, self.runs_on = card, 'nothing'
        self._pillars = PillarImages(card.encoder, card.num_sweeps)
        self.images = self._pillars.images
        self._other_core = ThreadPoolExecutor(1)

    def infer(
        self, source, target, watch=None, *, network_T_source=IDENTITY, network_T_target=IDENTITY, older=()
    ) -> np.ndarray:
        """Compute the images of the clouds; return NaN for every point. See `zeroflow_ros.engines.engine.Engine`."""
        clouds = [(source, network_T_source), (target, network_T_target), *older][: self.card.num_sweeps]
        self._pillars.update(clouds, self._other_core)
        return np.full_like(source, np.nan)


def simulated_images(card: ModelCard, clips: Path, num_pairs: int) -> Iterator[np.ndarray]:
    """Yield pillar images (1, S * C, G, G) of simulated sweeps, one per clip, in turn forward and backward in time."""
    from training.datasets.clip_store import ClipStore

    recorder, store = PillarRecorder(card), ClipStore(clips, num_sweeps=max(4, card.num_sweeps))
    first = (store.num_sweeps - card.num_sweeps) // 2
    for seed in range(num_pairs):
        source, target, *older = store.window(seed, first, card.num_sweeps).clouds[:: 1 if seed % 2 else -1]
        recorder.infer(source, target, older=[(points, IDENTITY) for points in older])
        yield recorder.images.copy()


def bag_images(card: ModelCard, bags: list[Path], num_pairs: int) -> Iterator[np.ndarray]:
    """Yield pillar images (1, S * C, G, G) of sweeps spread over bags, with the ego motion of the node.

    Raises: DataError when a bag has no pair.
    """
    from zeroflow_ros.bags.bag import Bag
    from zeroflow_ros.runtime.offline import estimate_flow

    output_on = 'latest' if card.direction == 'both' else 'previous'
    for path in bags:
        recorder, found = PillarRecorder(card), 0
        with Bag(path) as bag:
            name = bag.point_cloud_topic()
            [num_sweeps] = [topic.num_messages for topic in bag.topics if topic.name == name]
            every = max(1, num_sweeps * len(bags) // num_pairs)
            for k, _ in enumerate(estimate_flow(bag, recorder, output_on=output_on)):
                if k % every == 0:
                    found += 1
                    yield recorder.images.copy()
        if not found:
            raise DataError(f'{path} has no pair of sweeps with ego motion to calibrate on.')


def quantize(path: Path, images: Iterator[np.ndarray], out: Path, of: str, *, symmetric: bool = False) -> ModelCard:
    """Write the 8-bit form of a dense or gather model file atomically and return its card.

    images: (1, 2C, G, G) each, for calibration. of: their description for the model card, without their number.
    symmetric: the form for TensorRT. Otherwise weights use 7 bits, because x86 CPUs without VNNI add two products in
    16 bits, which 8-bit weights would overflow.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    card = load_engine(path).card
    if card.form == 'full' or card.precision != 'float32':
        raise ZeroFlowError(
            f'{path} is {card.form}, {card.precision}; only a dense or gather float32 model can be quantised.'
        )
    some_points = {}
    if card.form == 'gather':
        some_points = {'cell_index': np.zeros(1, np.int32), 'offsets': np.zeros((1, 3), np.float32)}

    class ImageFileReader(quantization.CalibrationDataReader):
        """Reads images from files, one at a time: the full student's activations on 32 pairs exceed 19 GB."""

        def __init__(self, paths: list[Path]):
            self.paths, self.left = paths, iter(paths)

        def __len__(self):
            return len(self.paths)

        def set_range(self, start_index: int, end_index: int):
            self.left = iter(self.paths[start_index:end_index])

        def get_next(self):
            path = next(self.left, None)
            return None if path is None else {'images': np.load(path)['images'], **some_points}

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), _quiet_root_logger():
        reader = ImageFileReader([])
        for number, image in enumerate(images):
            reader.paths.append(Path(folder) / f'{number}.npz')
            np.savez_compressed(reader.paths[-1], images=image)  # nearly all zeros
        prepared, quantised = Path(folder) / 'prepared.onnx', Path(folder) / 'quantised.onnx'
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared, quantised, reader, per_channel=True, reduce_range=not symmetric,
            nodes_to_exclude=_dependent_nodes(onnx.load(prepared).graph, some_points),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8, calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={
                'CalibPercentile': _PERCENTILE, 'CalibStridedMinMax': 1,  # one pair at a time
                'ActivationSymmetric': symmetric, 'QuantizeBias': not symmetric,
            },
        )  # fmt: skip
        proto = onnx.load(quantised)
    calibration = f'{len(reader)} {of}'
    card = dataclasses.replace(card, precision='int8', training={**card.training, 'calibration': calibration})
    return write_model(proto, card, out)


def _dependent_nodes(graph, inputs: Iterable[str]) -> list[str]:
    """Return the names of the nodes of an ONNX graph that depend on these inputs."""
    tensors, names = set(inputs), []
    for node in graph.node:  # topological order
        if tensors.intersection(node.input):
            tensors.update(node.output)
            names.append(node.name)
    return names


@contextlib.contextmanager
def _quiet_root_logger():
    """Silence the advice that onnxruntime logs on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
