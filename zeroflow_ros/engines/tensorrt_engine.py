# SPDX-License-Identifier: Apache-2.0
"""Run a model with TensorRT on an NVIDIA GPU; only points and flow are copied between CPU and GPU."""

import contextlib
import ctypes
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zeroflow_ros.engines.cuda_device import CudaDevice
from zeroflow_ros.engines.engine import IDENTITY
from zeroflow_ros.engines.gpu_session import GpuSession, SweepTooLargeError
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.engines.tensorrt_library import TensorRt
from zeroflow_ros.errors import GpuLostError, ModelError


class TensorRtEngine:
    """Runs an engine that `tensorrt_build.open_engine` built or loaded; see `Engine`.

    A sweep is one copy to the GPU per cloud, one launch of a CUDA graph (pillars of all clouds, network, point head),
    and one copy back. Memory is allocated once for max_points; a larger cloud makes it grow. When the GPU fails during
    a sweep but still takes calls, as when its memory is full, everything is set up anew once and the sweep is repeated;
    a second failure is a ModelError. When it takes no more calls, that is a GpuLostError, then and ever after.
    The stage 'pillars' is the CPU work before the launch, 'inference' all work on the GPU. Any one thread may call it.

    plan: the serialised engine. cubin: the compiled kernels. compiled: what TensorRT-RTX compiled at an earlier start,
    see `compiled_by_tensorrt`. folder: cache folder of all of them.
    runs_on: library, GPU, memory of the buffers, and why there is no CUDA graph if there is none.
    """

    def __init__(self, card: ModelCard, plan: bytes, cubin: bytes, library: TensorRt, device: CudaDevice,
                 *, folder: Path, max_points: int = 500_000, compiled: bytes = b''):  # fmt: skip
        self.card, self.folder = card, folder
        self._plan, self._cubin, self._compiled, self._library, self._device = plan, cubin, compiled, library, device
        self._max_points = max_points
        self._network = self._session = None
        self._lost = ''
        device.close_at_exit(self)
        try:
            self._open()
        except (ModelError, *device.errors) as error:
            self._give_up_if_lost(error)
            self._close(error)
            if isinstance(error, ModelError):
                raise
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

        Raises: ModelError when the GPU fails twice; GpuLostError when it takes no more calls of this process.
        """
        if self._lost:
            raise GpuLostError(self._lost)
        clouds = [(source, network_T_source), (target, network_T_target), *older][: self.card.num_sweeps]
        num_points = max(len(points) for points, _ in clouds)
        if num_points > self._max_points:
            self._max_points = num_points + num_points // 4
            self._close_session()
        try:
            return self._run(clouds, watch)
        except SweepTooLargeError:
            raise
        except (ModelError, *self._device.errors) as error:
            self._give_up_if_lost(error)
            self._close(error)  # free its memory before allocating again
        try:
            return self._run(clouds, watch)
        except (ModelError, *self._device.errors) as error:
            self._give_up_if_lost(error)
            self._close(error)
            raise ModelError(
                f'{self._device.name} failed twice on a sweep of {num_points} points: {error}. Look at nvidia-smi: is '
                'its memory full?'
            ) from error

    @property
    def compiled_by_tensorrt(self) -> bytes:
        """What TensorRT-RTX compiled for this GPU, for a faster start; b'' for TensorRT."""
        return self._network.compiled if self._network is not None else b''

    def close(self) -> None:
        """Free all GPU memory; the next sweep allocates it again. Any thread may call this, but not during a sweep."""
        if not self._lost:
            self._close()

    def __del__(self):
        if getattr(self, '_lost', True) or self._network is None:  # it never began, is lost, or is closed already
            return
        with contextlib.suppress(*self._device.errors):
            self._close()

    def _run(self, clouds, watch: Stopwatch) -> np.ndarray:
        if self._session is None:
            self._open()
        with self._device.current():
            return self._session.run(clouds, watch)

    def _give_up_if_lost(self, error: Exception) -> None:
        """Raise GpuLostError if the GPU takes no more calls; what is on it is then never freed.

        Freeing it would fail, and TensorRT's destructors may end the process.
        """
        if self._device.works():
            return
        for held in (self._session, self._network):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        self._session = self._network = None
        self._lost = (
            f'{self._device.name} takes no more calls of this process: {error}. Start the node again; nvidia-smi and '
            'the log of the kernel (dmesg, Xid) say whether the GPU itself is well.'
        )
        raise GpuLostError(self._lost) from None

    def _close(self, error: Exception | None = None) -> None:
        """Free everything on the GPU, with what the frames of an error hold of it."""
        with self._device.current():
            if error is not None:
                traceback.clear_frames(error.__traceback__)
            self._close_session()
            self._network = None

    def _close_session(self) -> None:
        if self._session is not None:
            with self._device.current():
                self._session.close()
                self._session = None

    def _open(self) -> None:
        with self._device.current():
            if self._network is None:
                self._network = self._library.load(self._plan, self._compiled)
            self._session = GpuSession(self.card, self._network, self._cubin, self._device, self._max_points)
        parts = [
            f'{self._library} on {self._device.name}',
            f'{self._session.num_bytes / 1e6:.0f} MB of buffers',  # TensorRT's own memory comes on top
            self._session.no_graph_reason,
            f'engine in {self.folder}',
        ]
        self.runs_on = ', '.join(filter(None, parts))
