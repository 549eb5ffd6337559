# SPDX-License-Identifier: Apache-2.0
"""Run a model with TensorRT on an NVIDIA GPU; only points and flow are copied between CPU and GPU."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zeroflow_ros.engines.cuda_device import CudaDevice
from zeroflow_ros.engines.engine import IDENTITY
from zeroflow_ros.engines.gpu_session import GpuSession
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.engines.tensorrt_library import TensorRt
from zeroflow_ros.errors import ModelError


class TensorRtEngine:
    """Runs an engine that `tensorrt_build.open_engine` built or loaded; see `Engine`.

    A sweep is two copies to the GPU, one launch of a CUDA graph (pillars of all clouds, network, point head), and one
    copy back. Memory is allocated once for max_points; a larger cloud makes it grow. When the GPU fails during a sweep,
    its state is rebuilt once and the sweep is repeated; a second failure is a ModelError.
    The stage 'pillars' is the CPU work before the launch, 'inference' all work on the GPU.

    plan: the serialised engine. cubin: the compiled kernels. folder: cache folder of both.
    runs_on: library, GPU, memory of the buffers, and why there is no CUDA graph if there is none.
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

    def infer(
        self,
        source: np.ndarray,
        target: np.ndarray,
        watch: Stopwatch,
        *,
        network_T_source: np.ndarray = IDENTITY,
        network_T_target: np.ndarray = IDENTITY,
        older: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> np.ndarray:
        """Return the residual flow of each source point [m], (N, 3) float32; NaN rows outside the grid.

        Raises: ModelError when the GPU fails twice.
        """
        clouds = [(source, network_T_source), (target, network_T_target), *older][: self.card.num_sweeps]
        num_points = max(len(points) for points, _ in clouds)
        if num_points > self._max_points:
            self._max_points = num_points + num_points // 4
            self._close()
        try:
            return self._run(clouds, watch)
        except (ModelError, *self._device.errors):
            self._close()  # free its memory before allocating again
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
            self._session = GpuSession(
                self.card, self._plan, self._cubin, self._library, self._device, self._max_points
            )
        parts = [
            f'{self._library} on {self._device.name}',
            f'{self._session.num_bytes / 1e6:.0f} MB of buffers',  # TensorRT's own memory comes on top
            self._session.no_graph_reason,
            f'engine in {self.folder}',
        ]
        self.runs_on = ', '.join(filter(None, parts))
