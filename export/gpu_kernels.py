# SPDX-License-Identifier: Apache-2.0
"""Parts of `export.gpu_report`: the kernels on a GPU against numpy, a full memory, and a lost GPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from export.gpu_result import DONE, FAILED, Result, existing_model
from zeroflow_ros.engines.cuda_device import CudaDevice, compile_kernels
from zeroflow_ros.engines.gpu_session import GpuSession
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.onnxruntime_engine import OnnxRuntimeEngine
from zeroflow_ros.engines.parity import lidar_like_cloud
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.lidar.pillars import PillarGrid
from zeroflow_ros.transforms import apply, from_quaternion

_TOLERANCE = 1e-3  # of image values and flow [m]; a point in another cell changes its cell by more
_REPEATS = 20
_SPARE_BYTES = 20 * 10**6  # left free when the memory is filled: less than any session takes
_POSES = np.eye(4), from_quaternion((0.3, -0.2, 0.1), (0.0, 0.0, 0.28, 0.96))


class NoNetwork:
    """Takes the calls of `tensorrt_library.Network` and computes nothing: the hidden layer stays 0.

    addresses: GPU memory of the inputs and outputs, by name.
    """

    compiled = b''

    def __init__(self, card: ModelCard, device: CudaDevice):
        self._sizes = {name: int(np.prod(shape)) for name, shape in card.outputs.items()}
        self._device, self.addresses = device, {}

    def set_tensor_address(self, name: str, address: int) -> None:
        """Remember the memory of a tensor; fill outputs with 0."""
        self.addresses[name] = address
        if name in self._sizes:
            self._device.driver.memset_d32(address, 0, self._sizes[name])

    def enqueue(self, _stream_handle: int) -> None:
        """Enqueue nothing."""

    def can_be_recorded(self, _stream_handle: int) -> bool:
        """Return True."""
        return True


def kernel_clouds(grid: PillarGrid, num_points: int) -> dict[str, list[np.ndarray]]:
    """Return pairs of clouds, (N, 3) float32 [m] each, by what they are; none has more than num_points points."""
    rng = np.random.default_rng(0)
    reach = np.array([grid.half_extent, grid.half_extent, grid.z_max]) * 1.1
    full = (rng.uniform(-1, 1, (num_points, 3)) * reach).astype(np.float32)
    one_cell = (grid.centres[7] + rng.uniform(-0.4, 0.4, (num_points // 10, 3)) * grid.cell).astype(np.float32)
    holes = full[: num_points // 2].copy()
    holes[::3] = np.nan
    holes[1::3] = np.inf
    lidar = [lidar_like_cloud(grid, rng, num_points - 500) for _ in range(2)]
    return {
        'as many as fit': [full, full[::-1].copy()], 'LiDAR-like': lidar, 'one cell': [one_cell, one_cell],
        'NaN and infinite': [holes, holes], 'one point': [full[:1], full[1:2]], 'no target': [full[:9], full[:0]],
        'LiDAR-like again': lidar,
    }  # fmt: skip


def compare_kernels(card: ModelCard, num_points: int, repeats: int = _REPEATS) -> dict[str, float | str]:
    """Compare images and flow of the kernels with numpy on the GPU; the hidden layer is 0.

    Returns the largest differences of images and of flow [m], the number of points that only one of both finds outside
    the grid, the largest difference of images between repeats (atomics add in any order), and why no graph is used.
    """
    device = CudaDevice()
    with device.current():
        return _compare(card, device, num_points, repeats)


def _compare(card: ModelCard, device: CudaDevice, num_points: int, repeats: int) -> dict[str, float | str]:
    network = NoNetwork(card, device)
    session = GpuSession(card, network, compile_kernels(device.compute_capability), device, num_points)
    num_images, num_channels, num_cells = card.num_sweeps, len(card.encoder_bias), card.grid.cells**2
    images = device.driver.pagelocked_empty((num_images, num_channels, num_cells), np.float32)
    stream = device.driver.Stream()
    found = {'image': 0.0, 'flow_m': 0.0, 'points_elsewhere': 0, 'spread': 0.0, 'no_graph': session.no_graph_reason}

    def run(clouds: list[np.ndarray]) -> np.ndarray:
        flow = session.run(list(zip(clouds, _POSES, strict=True)), Stopwatch())
        device.copy_out(images, network.addresses['images'], stream)
        stream.synchronize()
        return flow

    for name, clouds in kernel_clouds(card.grid, num_points).items():
        flow = run(clouds)
        expected, cells = _expected_images(card, clouds)
        expected_flow, hidden = np.empty_like(flow), np.zeros(card.outputs['hidden'], np.float32)
        card.head.flow_numpy(clouds[0], _POSES[0], cells, hidden, expected_flow)
        difference = np.abs(flow - expected_flow)
        found['image'] = max(found['image'], float(np.abs(images - expected).max()))
        found['flow_m'] = max(found['flow_m'], float(np.nanmax(difference, initial=0.0)))
        found['points_elsewhere'] += int((np.isnan(flow) != np.isnan(expected_flow)).any(axis=1).sum())
        if name == 'LiDAR-like':
            first = images.copy()
            for _ in range(repeats):
                run(clouds)
                found['spread'] = max(found['spread'], float(np.abs(images - first).max()))
    session.close()
    return found


def _expected_images(card: ModelCard, clouds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (S, C, G * G) of numpy, and the cells of the first cloud (N,)."""
    images = np.zeros((card.num_sweeps, len(card.encoder_bias), card.grid.cells**2), np.float32)
    cells = []
    for image, points, pose in zip(images, clouds, _POSES, strict=False):
        with np.errstate(invalid='ignore'):  # infinite points
            moved = apply(pose, points)
        cells.append(card.grid.assign(moved))
        inside = cells[-1] >= 0
        image[:] = card.encoder.encode_plain(moved[inside], cells[-1][inside]).reshape(image.shape)
    return images, cells[0]


def kernels(students: list[str], folder: Path, _facts: dict) -> Result:
    """Compare the kernels with numpy on the grids of some students."""
    figures = {
        student: compare_kernels(OnnxRuntimeEngine(existing_model(folder, student)).card, 200_000)
        for student in students
    }
    worst = {name: max(found[name] for found in figures.values()) for name in ('image', 'flow_m', 'points_elsewhere')}
    is_right = max(worst['image'], worst['flow_m']) < _TOLERANCE and not worst['points_elsewhere']
    reasons = ', '.join(sorted({found['no_graph'] for found in figures.values()} - {''}))
    text = (
        f'{worst["points_elsewhere"]} points in another cell, images within {worst["image"]:.1e}, flow within '
        f'{worst["flow_m"]:.1e} m of numpy, repeats within {max(found["spread"] for found in figures.values()):.1e}; '
        + (reasons or 'recorded as a CUDA graph')
    )
    return Result(DONE if is_right else FAILED, text, figures)


def sanitize(tool: str, folder: Path, _facts: dict) -> Result:
    """Run the kernels on small clouds below a tool of compute-sanitizer."""
    path = existing_model(folder, 'fastflow3d_lite')
    code = (
        'from export.gpu_kernels import compare_kernels; from zeroflow_ros.engines.onnxruntime_engine import '
        f'OnnxRuntimeEngine; print(compare_kernels(OnnxRuntimeEngine({str(path)!r}).card, 5000, 1))'
    )
    words = ['compute-sanitizer', '--tool', tool, '--error-exitcode', '9', sys.executable, '-c', code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    lines = [line for line in done.stdout.splitlines() if 'ERROR SUMMARY' in line] or done.stdout.splitlines()[-1:]
    text = (lines or [done.stderr[-300:]])[0].strip('= ')
    return Result(FAILED if done.returncode else DONE, text, {'output': done.stdout[-4000:]})


def full_memory(folder: Path, _facts: dict) -> Result:
    """Open a session while the memory of the GPU is full: an error, and after that it opens."""
    card = OnnxRuntimeEngine(existing_model(folder, 'fastflow3d_lite')).card
    device = CudaDevice()
    kernels_of_gpu = compile_kernels(device.compute_capability)

    def opens() -> str:
        """Return the error, '' when it opens."""
        try:
            GpuSession(card, NoNetwork(card, device), kernels_of_gpu, device, 100_000).close()
        except device.errors as error:
            return str(error)
        return ''

    with device.current():
        held = [device.driver.mem_alloc(device.free_bytes() - _SPARE_BYTES)]
        refused = opens()
        works = device.works()
        held.clear()
        left = opens()
    is_right = 'memory' in refused and works and not left
    return Result(DONE if is_right else FAILED, f'full: {refused or "opened"}; freed: {left or "opens"}')


def lost_gpu(_folder: Path, _facts: dict) -> Result:
    """Write to an address that nobody owns: every later call must fail, and `CudaDevice.works` must say so."""
    device = CudaDevice()
    with device.current():
        module = device.driver.module_from_buffer(compile_kernels(device.compute_capability))
        kernel = module.get_function('mask_points')
        kernel.prepare(['P', 'P', 'P'])
        stream = device.driver.Stream()
        try:
            kernel.prepared_async_call(device.grid, device.block, stream, 64, 64, 64)
            stream.synchronize()
            error = ''
        except device.errors as raised:
            error = str(raised)
        is_lost = not device.works()
    return Result(DONE if error and is_lost else FAILED, f'{error or "no error"}; {"lost" if is_lost else "works"}')
