# SPDX-License-Identifier: Apache-2.0
"""A dense model on an NVIDIA GPU: points go up, flow comes down, and all between stays there."""

from pathlib import Path

import numpy as np

from zeroflow_ros.cuda_device import CudaDevice
from zeroflow_ros.engine import IDENTITY
from zeroflow_ros.errors import ModelError
from zeroflow_ros.model_card import ModelCard
from zeroflow_ros.point_head import LEAK
from zeroflow_ros.stopwatch import Stopwatch
from zeroflow_ros.tensorrt_library import TensorRt

_WORDS = 16  # before the points of a cloud, see pillars.cu
_FLOAT = 4  # bytes


class TensorRtEngine:
    """Runs what `tensorrt_build.open_engine` built or found; see `Engine`.

    One sweep is two copies up, one launch of a recorded graph (pillars of both clouds, network, point head), and one
    copy down. Memory is taken once, for max_points; a larger cloud makes it grow. When the GPU fails in the middle,
    everything is set up anew once; when that fails, too, it is a ModelError.
    'pillars' of the watch is what the CPU does before the launch, 'inference' all that the GPU does.

    plan: the engine. cubin: the compiled kernels. folder: where they are kept.
    """

    def __init__(self, card: ModelCard, plan: bytes, cubin: bytes, library: TensorRt, device: CudaDevice,
                 *, folder: Path, max_points: int = 500_000):  # fmt: skip
        self.card, self.folder = card, folder
        self._plan, self._cubin, self._library, self._device = plan, cubin, library, device
        self._max_points = max_points
        self._session = None
        try:
            self._open()
        except self._device.errors as error:
            raise ModelError(f'{card.name} does not start on {device.name}: {error}.') from error

    @property
    def runs_on(self) -> str:
        """The library, the GPU, and where the engine is kept."""
        return f'{self._library} on {self._device.name}, engine in {self.folder}'

    @property
    def memory_mb(self) -> float:
        """Memory of the GPU that the buffers take; TensorRT's own comes on top."""
        return self._session.num_bytes / 1e6

    def infer(
        self,
        source: np.ndarray,
        target: np.ndarray,
        watch: Stopwatch,
        *,
        network_T_source: np.ndarray = IDENTITY,
        network_T_target: np.ndarray = IDENTITY,
    ) -> np.ndarray:
        """Return the residual flow of each source point [m], (N, 3) float32; NaN rows outside the grid.

        Raises: ModelError when the GPU fails twice.
        """
        clouds = (source, network_T_source), (target, network_T_target)
        num_points = max(len(source), len(target))
        if num_points > self._max_points:
            self._max_points = num_points + num_points // 4
            self._close()
        try:
            return self._run(clouds, watch)
        except (ModelError, *self._device.errors):
            self._close()  # give back what it holds before more is asked for
        try:
            return self._run(clouds, watch)
        except self._device.errors as error:
            self._close()
            raise ModelError(
                f'{self._device.name} failed twice on a sweep of {num_points} points: {error}. Look at nvidia-smi: is '
                'its memory full, or the GPU lost?'
            ) from error

    def _run(self, clouds, watch: Stopwatch) -> np.ndarray:
        if self._session is None:
            self._open()
        with self._device.current():
            return self._session.run(clouds, watch)

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self) -> None:
        with self._device.current():
            self._session = _Session(self.card, self._plan, self._cubin, self._library, self._device, self._max_points)


class _Session:
    """All that one engine holds on the GPU."""

    def __init__(self, card: ModelCard, plan: bytes, cubin: bytes, library: TensorRt, device: CudaDevice,
                 max_points: int):  # fmt: skip
        self._library, self._device, driver = library, device, device.driver
        self._context = library.load(plan)
        self._stream = driver.Stream()
        self._module = driver.module_from_buffer(cubin)
        grid, head, num_channels = card.grid, card.head, len(card.encoder_weight)
        num_cells = grid.cells**2
        self.num_bytes = 0
        self._images = self._take(2 * num_channels * num_cells * _FLOAT)
        self._sums = [self._take(4 * num_cells * _FLOAT) for _ in range(2)]
        self._hidden = self._take(int(np.prod(card.outputs['hidden'])) * _FLOAT)
        self._clouds = [_Cloud(self, max_points) for _ in range(2)]
        self._flow = self._take(3 * max_points * _FLOAT)
        self._flow_here = driver.pagelocked_empty((max_points, 3), np.float32)
        self._set_up_launches(card, head, num_channels)
        for tensor, memory in (('images', self._images), ('hidden', self._hidden)):
            if not self._context.set_tensor_address(tensor, int(memory)):
                raise ModelError(f'The engine has no tensor {tensor!r}: {library.complaints()}.')
        for cloud in self._clouds:
            cloud.fill(np.empty((0, 3), np.float32), IDENTITY, self._stream)
        self._launch()  # the first launch allocates and compiles
        self._stream.synchronize()
        self._launch_all = device.record(self._stream, self._launch)

    def close(self) -> None:
        """Give everything back now: a cycle or a traceback would keep it for a while."""
        self.__dict__.clear()

    def _take(self, num_bytes: int):
        self.num_bytes += num_bytes
        return self._device.driver.mem_alloc(num_bytes)

    def _set_up_launches(self, card: ModelCard, head, num_channels: int) -> None:
        """Prepare the arguments of every kernel; they stay the same from sweep to sweep."""
        grid, upload = card.grid, self._device.upload
        line = grid.centres[: grid.cells, 0]  # centres of the columns, and, the grid being square, of the rows
        z_centre = float(grid.centres[0, 2])
        leak = float('nan') if head.activation == 'gelu' else LEAK
        self._weights = {
            name: upload(np.asarray(values, np.float32))
            for name, values in (
                ('line', line), ('encoder', card.encoder_weight), ('encoder_bias', card.encoder_bias),
                ('offset', head.offset_weight), ('head', head.weight), ('head_bias', head.bias),
            )
        }  # fmt: skip
        weights = {name: int(memory) for name, memory in self._weights.items()}
        kernels = {}
        for name, kinds in (('assign_points', 'PifffPP'), ('pool_pillars', 'PifPPPiPPP'),
                            ('flow_points', 'PifPPiiPPPPfP')):  # fmt: skip
            kernels[name] = self._module.get_function(name)
            kernels[name].prepare(list(kinds))
        self._before, image_bytes = [], num_channels * grid.cells**2 * _FLOAT
        for k, (cloud, sums) in enumerate(zip(self._clouds, self._sums, strict=True)):
            points, cell_index, image = int(cloud.memory), int(cloud.cell_index), int(self._images) + k * image_bytes
            # As numpy has it: the inverse in float64, and then rounded.
            self._before.append((kernels['assign_points'], (
                points, grid.cells, 1 / grid.cell, grid.z_min, grid.z_max, cell_index, int(sums),
            )))  # fmt: skip
            self._before.append((kernels['pool_pillars'], (
                points, grid.cells, z_centre, weights['line'], cell_index, int(sums), num_channels,
                weights['encoder'], weights['encoder_bias'], image,
            )))  # fmt: skip
        source = self._clouds[0]
        self._after = kernels['flow_points'], (
            int(source.memory), grid.cells, z_centre, weights['line'], int(source.cell_index), head.block,
            len(head.offset_weight), int(self._hidden), weights['offset'], weights['head'], weights['head_bias'], leak,
            int(self._flow),
        )  # fmt: skip
        self._cleared = [(self._images, 2 * num_channels * grid.cells**2)]
        self._cleared += [(sums, 4 * grid.cells**2) for sums in self._sums]

    def _launch(self) -> None:
        """Put everything between the copies into the stream."""
        driver, stream, device = self._device.driver, self._stream, self._device
        for memory, num_words in self._cleared:
            driver.memset_d32_async(int(memory), 0, num_words, stream)
        for kernel, arguments in self._before:
            kernel.prepared_async_call(device.grid, device.block, stream, *arguments)
        if not self._context.execute_async_v3(stream.handle):
            raise ModelError(f'The engine does not run: {self._library.complaints()}.')
        kernel, arguments = self._after
        kernel.prepared_async_call(device.grid, device.block, stream, *arguments)

    def run(self, clouds, watch: Stopwatch) -> np.ndarray:
        """Return the flow of the first cloud towards the second; each is (points (N, 3), network_T_points)."""
        num_points = len(clouds[0][0])
        with watch('pillars'):
            for cloud, (points, network_T_points) in zip(self._clouds, clouds, strict=True):
                cloud.fill(points, network_T_points, self._stream)
        with watch('inference'):
            self._launch_all()
            flow = self._flow_here[:num_points]
            if num_points:
                self._device.driver.memcpy_dtoh_async(flow, self._flow, self._stream)
            self._stream.synchronize()
            return flow.copy()


class _Cloud:
    """One cloud on the GPU, and the page-locked memory that it is copied from."""

    def __init__(self, session: _Session, max_points: int):
        self._driver = session._device.driver
        self.memory = session._take((_WORDS + 3 * max_points) * _FLOAT)
        self.cell_index = session._take(max_points * _FLOAT)
        self._here = self._driver.pagelocked_empty(_WORDS + 3 * max_points, np.float32)

    def fill(self, points: np.ndarray, network_T_points: np.ndarray, stream) -> None:
        """Copy a cloud up. The copy reads `_here` later: fill again only after the stream was waited for."""
        size = _WORDS + 3 * len(points)
        self._here[:1].view(np.int32)[0] = len(points)
        self._here[4:_WORDS] = network_T_points[:3].reshape(-1)
        self._here[_WORDS:size].reshape(-1, 3)[:] = points
        self._driver.memcpy_htod_async(self.memory, self._here[:size], stream)
