# SPDX-License-Identifier: Apache-2.0
"""All that an engine holds on the GPU, and what it launches for a sweep: pillars, network, flow of points."""

import numpy as np

from zeroflow_ros.engines.cuda_device import CudaDevice
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.engines.tensorrt_library import NUM_POINTS, TensorRt
from zeroflow_ros.errors import ModelError
from zeroflow_ros.lidar.point_head import LEAK

_WORDS = 16  # before the points of a cloud, see pillars.cu
_BYTES = 4  # of a float and of an int
# Parameters of the kernels in pillars.cu, as pycuda and struct name them.
_KERNELS = {
    'assign_points': 'PifffPP', 'pool_pillars': 'PifPPPiPPP', 'flow_points': 'PifPPiiPPPPfP',
    'offset_points': 'PifPPPP', 'mask_points': 'PPP',
}  # fmt: skip


class GpuSession:
    """Memory, network and kernels of one model for clouds of up to max_points.

    Everything is allocated here. The launches of a dense model are the same for every sweep and are recorded as one;
    a gather model takes points into the network, whose shapes then change from sweep to sweep.
    num_bytes: of the GPU's memory in the buffers. not_recorded: why launches are not one, '' when they are.
    Use it with the device current. Raises: ModelError, or what the device calls its errors.
    """

    def __init__(self, card: ModelCard, plan: bytes, cubin: bytes, library: TensorRt, device: CudaDevice,
                 max_points: int):  # fmt: skip
        self._library, self._device, driver = library, device, device.driver
        self._context = library.load(plan)
        self._stream = driver.Stream()
        self._module = driver.module_from_buffer(cubin)
        self.num_bytes = 0
        self._kept, self._cleared, self._before, self._after, self._per_point = [], [], [], [], {}
        self._clouds = [_Cloud(self, max_points) for _ in range(2)]
        self._flow = self._take(3 * max_points)
        self._flow_here = driver.pagelocked_empty((max_points, 3), np.float32)
        tensors = {'images': self._add_pillars(card)}
        tensors |= {'dense': self._add_point_head, 'gather': self._add_points}[card.form](card, max_points)
        for tensor, place in tensors.items():
            if not self._context.set_tensor_address(tensor, place):
                raise ModelError(f'The engine has no tensor {tensor!r}: {library.complaints()}.')
        self._launch_all, self.not_recorded = self._launch, 'no CUDA graph: the shapes change with the points'
        self.run([(np.zeros((1, 3), np.float32), np.eye(4))] * 2, Stopwatch())  # allocates and compiles
        if not self._per_point:
            self._launch_all, self.not_recorded = device.record(self._stream, self._launch)

    def close(self) -> None:
        """Give everything back now: a cycle or a traceback would keep it for a while."""
        self.__dict__.clear()

    def run(self, clouds, watch: Stopwatch) -> np.ndarray:
        """Return the flow of the first cloud towards the second; each is (points (N, 3), network_T_points)."""
        num_points = len(clouds[0][0])
        if not num_points:
            return np.empty((0, 3), np.float32)
        with watch('pillars'):
            for cloud, (points, network_T_points) in zip(self._clouds, clouds, strict=True):
                cloud.fill(points, network_T_points, self._stream)
        with watch('inference'):
            for tensor, shape in self._per_point.items():
                if not self._context.set_input_shape(tensor, (num_points, *shape)):
                    raise ModelError(
                        f'{num_points} points are not {NUM_POINTS[0]} to {NUM_POINTS[2]}, which the engine takes. '
                        'Set max_points.'
                    )
            self._launch_all()
            flow = self._flow_here[:num_points]
            self._device.driver.memcpy_dtoh_async(flow, self._flow, self._stream)
            self._stream.synchronize()
            return flow.copy()

    def _launch(self) -> None:
        """Put everything between the copies into the stream."""
        driver, stream = self._device.driver, self._stream
        for place, num_words in self._cleared:
            driver.memset_d32_async(place, 0, num_words, stream)
        self._launch_kernels(self._before)
        if not self._context.execute_async_v3(stream.handle):
            raise ModelError(f'The engine does not run: {self._library.complaints()}.')
        self._launch_kernels(self._after)

    def _launch_kernels(self, launches: list) -> None:
        for kernel, arguments in launches:
            kernel.prepared_async_call(self._device.grid, self._device.block, self._stream, *arguments)

    def _take(self, num_words: int) -> int:
        """Return the address of new memory that lives as long as the session."""
        self._kept.append(self._device.driver.mem_alloc(num_words * _BYTES))
        self.num_bytes += num_words * _BYTES
        return int(self._kept[-1])

    def _upload(self, values: np.ndarray) -> int:
        values = np.asarray(values, np.float32)
        self._kept.append(self._device.upload(values))
        self.num_bytes += values.nbytes
        return int(self._kept[-1])

    def _kernel(self, name: str):
        kernel = self._module.get_function(name)
        kernel.prepare(list(_KERNELS[name]))
        return kernel

    def _add_pillars(self, card: ModelCard) -> int:
        """Launch the pillar encoder on both clouds; return the address of the images."""
        grid, num_channels, num_cells = card.grid, len(card.encoder_weight), card.grid.cells**2
        images, weight, bias = self._take(2 * num_channels * num_cells), card.encoder_weight, card.encoder_bias
        self._cleared.append((images, 2 * num_channels * num_cells))
        # The centres of the columns, and, the grid being square, of the rows.
        line, weight, bias = (self._upload(values) for values in (grid.centres[: grid.cells, 0], weight, bias))
        self._in_grid = grid.cells, float(grid.centres[0, 2]), line
        assign, pool = self._kernel('assign_points'), self._kernel('pool_pillars')
        for k, cloud in enumerate(self._clouds):
            sums = self._take(4 * num_cells)
            self._cleared.append((sums, 4 * num_cells))
            # As numpy has it: the inverse in float64, and then rounded.
            in_metres = grid.cells, 1 / grid.cell, grid.z_min, grid.z_max
            image = images + k * num_channels * num_cells * _BYTES
            self._before += [
                (assign, (cloud.place, *in_metres, cloud.cell_index, sums)),
                (pool, (cloud.place, *self._in_grid, cloud.cell_index, sums, num_channels, weight, bias, image)),
            ]
        return images

    def _add_point_head(self, card: ModelCard, _max_points: int) -> dict[str, int]:
        """Launch the point head behind a dense network; return the address of what the network writes."""
        source, head = self._clouds[0], card.head
        hidden = self._take(int(np.prod(card.outputs['hidden'])))
        weights = [self._upload(values) for values in (head.offset_weight, head.weight, head.bias)]
        leak = float('nan') if head.activation == 'gelu' else LEAK
        self._after.append((self._kernel('flow_points'), (
            source.place, *self._in_grid, source.cell_index, head.block, len(head.offset_weight), hidden, *weights,
            leak, self._flow,
        )))  # fmt: skip
        return {'hidden': hidden}

    def _add_points(self, _card: ModelCard, max_points: int) -> dict[str, int]:
        """Give the source points to a gather network; return the addresses of what it reads and writes."""
        source = self._clouds[0]
        cells, offsets = self._take(max_points), self._take(3 * max_points)
        self._before.append(
            (self._kernel('offset_points'), (source.place, *self._in_grid, source.cell_index, cells, offsets))
        )
        self._after.append((self._kernel('mask_points'), (source.place, source.cell_index, self._flow)))
        self._per_point = {'cell_index': (), 'offsets': (3,)}
        return {'cell_index': cells, 'offsets': offsets, 'flow': self._flow}


class _Cloud:
    """One cloud on the GPU, and the page-locked memory that it is copied from."""

    def __init__(self, session: GpuSession, max_points: int):
        self._driver = session._device.driver
        self.place, self.cell_index = session._take(_WORDS + 3 * max_points), session._take(max_points)
        self._here = self._driver.pagelocked_empty(_WORDS + 3 * max_points, np.float32)

    def fill(self, points: np.ndarray, network_T_points: np.ndarray, stream) -> None:
        """Copy a cloud up. The copy reads `_here` later: fill again only after the stream was waited for."""
        size = _WORDS + 3 * len(points)
        self._here[:1].view(np.int32)[0] = len(points)
        self._here[4:_WORDS] = network_T_points[:3].reshape(-1)
        self._here[_WORDS:size].reshape(-1, 3)[:] = points
        self._driver.memcpy_htod_async(self.place, self._here[:size], stream)
