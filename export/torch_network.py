# SPDX-License-Identifier: Apache-2.0
"""The network of a dense student in torch, in place of a TensorRT engine: for a GPU machine without TensorRT."""

from pathlib import Path

import torch

from export.onnx_graph import dense_module
from zeroflow_ros.engines.cuda_device import CudaDevice, compile_kernels
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.tensorrt_engine import TensorRtEngine


class TorchNetwork:
    """Takes the calls of `tensorrt_library.Network`; runs in float16 channels last, in the stream of the engine.

    module: images (1, S * C, G, G) to the hidden layer, both float32. shapes: of its tensors, by name.
    """

    compiled = b''  # nothing to keep for the next start

    def __init__(self, module: torch.nn.Module, shapes: dict[str, tuple[int, ...]]):
        self._module, self._shapes = module, shapes
        self._tensors: dict[str, torch.Tensor] = {}

    def set_tensor_address(self, name: str, address: int) -> None:
        """Set the GPU memory of an input or output."""
        self._tensors[name] = tensor_at(address, self._shapes[name])

    def enqueue(self, stream_handle: int) -> None:
        """Enqueue the network in a stream."""
        with torch.cuda.stream(torch.cuda.ExternalStream(stream_handle)):
            self.run()

    def can_be_recorded(self, _stream_handle: int) -> bool:
        """Return True: memory of the first run is used again, so that recording allocates nothing."""
        return True

    @torch.inference_mode()
    def run(self) -> None:
        """Compute the hidden layer of the images."""
        self._tensors['hidden'].copy_(self._module(self._tensors['images']))


class TorchLibrary:
    """Takes the calls of `tensorrt_library.TensorRt` that an engine makes.

    checkpoint: training.learning.checkpoint.Checkpoint of a dense student. shapes: of the tensors of its network.
    """

    def __init__(
        self, checkpoint, shapes: dict[str, tuple[int, ...]], device: str = 'cuda', precision: str = 'float16'
    ):
        module = dense_module(checkpoint, precision).to(device)
        self._module, self._shapes = module.to(memory_format=torch.channels_last), shapes

    def __str__(self):
        return f'torch {torch.__version__}'

    def load(self, _plan: bytes, _compiled: bytes = b'') -> TorchNetwork:
        """Return the network."""
        return TorchNetwork(self._module, self._shapes)


def open_torch_engine(checkpoint, card: ModelCard, folder: Path, max_points: int = 500_000) -> TensorRtEngine:
    """Return an engine whose network is torch; pillars, point head, copies and CUDA graph are those of the vehicle.

    card: of the student's exported file. Raises: ModelError without a GPU or nvcc.
    """
    device = CudaDevice()
    library = TorchLibrary(checkpoint, tensor_shapes(card))
    kernels = compile_kernels(device.compute_capability)
    return TensorRtEngine(card, b'', kernels, library, device, folder=folder, max_points=max_points)


def tensor_shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs and outputs of a dense model."""
    return {name: tuple(shape) for name, shape in (card.inputs | card.outputs).items()}


def tensor_at(address: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a float32 tensor in GPU memory that someone else owns."""
    interface = {'shape': shape, 'typestr': '<f4', 'data': (address, False), 'version': 2}
    return torch.as_tensor(type('Memory', (), {'__cuda_array_interface__': interface})(), device='cuda')
