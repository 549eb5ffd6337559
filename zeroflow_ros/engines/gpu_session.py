# SPDX-License-Identifier: Apache-2.0
"""GPU memory of an engine and the launches for a sweep: pillars, network, point flow."""

from functools import partial

import numpy as np

from zeroflow_ros.engines.cuda_device import CudaDevice
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.engines.tensorrt_library import Network
from zeroflow_ros.errors import ModelError
from zeroflow_ros.lidar.point_head import LEAK

_HEADER_WORDS = 16  # before the points of a cloud, see pillars.cu
_WORD_BYTES = 4  # size of a float and of an int
_NO_CELL = 0xFFFFFFFF  # -1
# Parameter types of the kernels in pillars.cu, in the format of pycuda and struct.
_KERNELS = {
    'assign_points': 'PiffffPiPPPPPP', 'pool_pillars': 'PifPPPPiPPP', 'write_image': 'iiiPPPPPP',
    'flow_points': 'PifPPiiPPPPfP', 'offset_points': 'PifPPPP', 'mask_points': 'PPP',
}  # fmt: skip


class SweepTooLargeError(ModelError):
    """A sweep with more points than the network takes."""


class GpuSession:
    """Memory and kernels of one model for clouds of up to max_points, and the launches of its network.

    All memory is allocated in the constructor. The launches of a dense model are the same for every sweep and are
    recorded as one CUDA graph; the network of a gather model takes points, so its shapes change from sweep to sweep.
    num_bytes: GPU memory of the buffers. no_graph_reason: why there is no CUDA graph, '' when there is one.
    The device must be current, also when the session is closed or freed.
    Raises: ModelError, or one of the device's `errors`; the memory is free again once the traceback is cleared.
    """

    def __init__(self, card: ModelCard, network: Network, cubin: bytes, device: CudaDevice, max_points: int):
        self._network, self._device = network, device
        try:
            self._set_up(card, cubin, max_points)
        except BaseException:
            self.close()  # else its reference cycle would keep the memory, and free it in any thread
            raise

    def _set_up(self, card: ModelCard, cubin: bytes, max_points: int) -> None:
        device, driver = self._device, self._device.driver
        self._stream = driver.Stream()
        self._module = driver.module_from_buffer(cubin)
        self.num_bytes = 0
        self._allocations, self._per_point = [], {}
        self._launches_before, self._launches_after = [], []  # functions that enqueue something in the stream
        self._clouds = [_Cloud(self, max_points) for _ in range(card.num_sweeps)]
        self._flow = self._allocate(3 * max_points)
        self._host_flow = driver.pagelocked_empty((max_points, 3), np.float32)
        tensors = {'images': self._add_pillars(card, max_points)}
        tensors |= {'dense': self._add_point_head, 'gather': self._add_points}[card.form](card, max_points)
        for tensor, address in tensors.items():
            self._network.set_tensor_address(tensor, address)
        self._launch_all, self.no_graph_reason = self._launch, 'no CUDA graph: the shapes change with the points'
        self.run([(np.zeros((1, 3), np.float32), np.eye(4))] * card.num_sweeps, Stopwatch())  # allocates and compiles
        if not self._per_point and not self._network.can_be_recorded(self._stream.handle):
            self.no_graph_reason = 'no CUDA graph: TensorRT cannot record this network'
        elif not self._per_point:
            self._launch_all, self.no_graph_reason = device.record(self._stream, self._launch)

    def close(self) -> None:
        """Free all GPU memory now; a reference cycle or a traceback could keep it longer."""
        self.__dict__.clear()

    def run(self, clouds, watch: Stopwatch) -> np.ndarray:
        """Return the flow from the first cloud to the second.

        clouds: (points (N, 3), network_T_points) of 2 to num_sweeps sweeps; the images of the others are 0.
        """
        num_points = len(clouds[0][0])
        if not num_points:
            return np.empty((0, 3), np.float32)
        with watch('pillars'):
            missing = [(np.zeros((0, 3), np.float32), np.eye(4))] * (len(self._clouds) - len(clouds))
            for cloud, (points, network_T_points) in zip(self._clouds, [*clouds, *missing], strict=True):
                cloud.fill(points, network_T_points, self._device, self._stream)
        with watch('inference'):
            for tensor, shape in self._per_point.items():
                if not self._network.set_input_shape(tensor, (num_points, *shape)):
                    raise SweepTooLargeError(
                        f'A sweep has {num_points} points, more than the engine was built for. Set max_points to the '
                        'most points of a sweep and start again: an engine that takes them is built then.'
                    )
            self._launch_all()
            flow = self._host_flow[:num_points]
            self._device.copy_out(flow, self._flow, self._stream)
            self._stream.synchronize()
            return flow.copy()

    def _launch(self) -> None:
        """Enqueue everything between the copies in the stream."""
        for launch in self._launches_before:
            launch()
        self._network.enqueue(self._stream.handle)
        for launch in self._launches_after:
            launch()

    def _allocate(self, num_words: int) -> int:
        """Allocate memory for the lifetime of the session; return its address."""
        self._allocations.append(self._device.driver.mem_alloc(num_words * _WORD_BYTES))
        self.num_bytes += num_words * _WORD_BYTES
        return int(self._allocations[-1])

    def _upload(self, values: np.ndarray) -> int:
        values = np.asarray(values, np.float32)
        self._allocations.append(self._device.upload(values))
        self.num_bytes += values.nbytes
        return int(self._allocations[-1])

    def _kernel(self, name: str, *arguments):
        """Return a function that enqueues a kernel."""
        kernel = self._module.get_function(name)
        kernel.prepare(list(_KERNELS[name]))
        return partial(kernel.prepared_async_call, self._device.grid, self._device.block, self._stream, *arguments)

    def _fill(self, address: int, word: int, num_words: int):
        """Return a function that enqueues the writing of a 32-bit word to memory."""
        return partial(self._device.driver.memset_d32_async, address, word, num_words, self._stream)

    def _add_pillars(self, card: ModelCard, max_points: int) -> int:
        """Add the pillar encoder of all clouds to the launches; return the address of the images."""
        grid, num_channels, num_cells = card.grid, len(card.encoder_weight), card.grid.cells**2
        num_words, max_pillars = num_channels * num_cells, min(max_points, num_cells)
        images = self._allocate(card.num_sweeps * num_words)
        # The centres of the columns, which are also those of the rows: the grid is square.
        line, weight, bias = (
            self._upload(values) for values in (grid.centres[: grid.cells, 0], card.encoder_weight, card.encoder_bias)
        )
        self._in_grid = grid.cells, float(grid.centres[0, 2]), line
        # As in numpy: the inverse in float64, then rounded to float32.
        in_metres = grid.cells, 1 / grid.cell, grid.z_min, grid.z_max, *self._in_grid[1:]
        sums = self._allocate(4 * num_cells + 1)  # and after them the number of pillars; of one cloud after the other
        num_pillars = sums + 4 * num_cells * _WORD_BYTES
        pillar_of_cell, cell_of_pillar = self._allocate(num_cells), self._allocate(max_pillars)
        table = self._allocate(max_pillars * num_channels)
        self._fill(images, 0, card.num_sweeps * num_words)()
        for k, cloud in enumerate(self._clouds):
            image, written = images + k * num_words * _WORD_BYTES, self._allocate(max_pillars)
            self._fill(written, _NO_CELL, max_pillars)()
            self._launches_before += [
                self._fill(sums, 0, 4 * num_cells + 1),
                self._kernel('assign_points', cloud.address, *in_metres, num_channels, cloud.cell_index, sums,
                             num_pillars, pillar_of_cell, cell_of_pillar, table),
                self._kernel('pool_pillars', cloud.address, *self._in_grid, cloud.cell_index, sums, pillar_of_cell,
                             num_channels, weight, bias, table),
                self._kernel('write_image', grid.cells, num_channels, max_pillars, sums, num_pillars, cell_of_pillar,
                             table, written, image),
            ]  # fmt: skip
        return images

    def _add_point_head(self, card: ModelCard, _max_points: int) -> dict[str, int]:
        """Add the point head after a dense network; return the address of the network's output."""
        source, head = self._clouds[0], card.head
        hidden = self._allocate(int(np.prod(card.outputs['hidden'])))
        weights = [self._upload(values) for values in (head.offset_weight, head.weight, head.bias)]
        leak = float('nan') if head.activation == 'gelu' else LEAK
        self._launches_after.append(self._kernel(
            'flow_points', source.address, *self._in_grid, source.cell_index, head.block, len(head.offset_weight),
            hidden, *weights, leak, self._flow,
        ))  # fmt: skip
        return {'hidden': hidden}

    def _add_points(self, _card: ModelCard, max_points: int) -> dict[str, int]:
        """Add the source points as inputs of a gather network; return the addresses of its inputs and outputs."""
        source = self._clouds[0]
        cells, offsets = self._allocate(max_points), self._allocate(3 * max_points)
        self._launches_before.append(
            self._kernel('offset_points', source.address, *self._in_grid, source.cell_index, cells, offsets)
        )
        self._launches_after.append(self._kernel('mask_points', source.address, source.cell_index, self._flow))
        self._per_point = {'cell_index': (), 'offsets': (3,)}
        return {'cell_index': cells, 'offsets': offsets, 'flow': self._flow}


class _Cloud:
    """One cloud on the GPU and its page-locked host buffer."""

    def __init__(self, session: GpuSession, max_points: int):
        self.address, self.cell_index = session._allocate(_HEADER_WORDS + 3 * max_points), session._allocate(max_points)
        self._host = session._device.driver.pagelocked_empty(_HEADER_WORDS + 3 * max_points, np.float32)

    def fill(self, points: np.ndarray, network_T_points: np.ndarray, device: CudaDevice, stream) -> None:
        """Copy a cloud to the GPU, asynchronously: synchronise the stream before the next call."""
        size = _HEADER_WORDS + 3 * len(points)
        self._host[:1].view(np.int32)[0] = len(points)
        self._host[4:_HEADER_WORDS] = network_T_points[:3].reshape(-1)
        self._host[_HEADER_WORDS:size].reshape(-1, 3)[:] = points
        device.copy_in(self.address, self._host[:size], stream)
