# SPDX-License-Identifier: Apache-2.0
"""Build a TensorRT engine of a model file for this GPU, check it, and cache it in a folder.

A folder holds network.engine, pillars.cubin (the compiled kernels) and engine.json, which records the model, TensorRT,
GPU and kernels of the build. When any of them differs, the engine is built again: a TensorRT plan is valid for one
version of TensorRT and one GPU model only. TensorRT-RTX adds network.kernels, which it compiles at the first start.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from zeroflow_ros.engines.cuda_device import CudaDevice, compile_kernels, kernels_checksum
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.onnxruntime_engine import OnnxRuntimeEngine
from zeroflow_ros.engines.parity import flow_of_clouds, largest_difference, parity_clouds
from zeroflow_ros.engines.tensorrt_engine import TensorRtEngine
from zeroflow_ros.engines.tensorrt_library import TensorRt
from zeroflow_ros.errors import GpuLostError, ModelError
from zeroflow_ros.views.report import write_json

SCHEMA = 2
_LEFT_BEHIND_S = 3600.0
_MIN_MAX_POINTS = 500_000  # the node's default, so that a program with smaller clouds leaves it an engine that fits
PLAN, CUBIN, SIDECAR, RTX_KERNELS = 'network.engine', 'pillars.cubin', 'engine.json', 'network.kernels'
# Largest flow difference to ONNX Runtime with the same file [m]. Float16 alone causes up to 3 mm; an 8-bit value that
# is rounded the other way changes the flow by one quantisation step.
TOLERANCES = {'float32': 1e-3, 'float16': 5e-3, 'int8': 0.1}


def default_cache() -> Path:
    """Return the default cache folder of engines, outside the installed package."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'zeroflow_ros' / 'engines'


def open_engine(
    path: Path, *, cache: str | Path = '', max_points: int = 500_000, progress: Callable[[str], None] = print
) -> TensorRtEngine:
    """Return the engine of a model file on this GPU, from the cache or built now.

    path: a dense or gather .onnx file. cache: folder of engines; empty for the default.
    max_points: points to allocate for. progress: called with a log message during the build, which can take minutes.
    Raises: ModelError when TensorRT or the GPU is missing, one does not support the other, the file is not supported,
    or the engine's flow differs from ONNX Runtime; GpuLostError when the GPU takes no calls of this process.
    """
    library, device = TensorRt(), CudaDevice()
    library.check_gpu(device.name, device.compute_capability)
    wanted = {
        'schema': SCHEMA, 'model_sha256': hashlib.sha256(path.read_bytes()).hexdigest(), 'tensorrt': str(library),
        'gpu': device.name, 'multiprocessors': device.num_processors,  # every Orin has the same name
        'compute_capability': device.compute_capability, 'kernels_sha256': kernels_checksum(),
    }  # fmt: skip
    gpu = f'{device.name} {device.num_processors}'
    name = '_'.join((path.stem[:60], wanted['model_sha256'][:12], str(library), gpu))
    folder = Path(cache or default_cache()).expanduser() / re.sub(r'[^\w.-]+', '_', name)
    try:
        found = read_folder(folder, wanted, max_points)
        compiled = _read_if_any(folder / RTX_KERNELS)
        engine = TensorRtEngine(*found, library, device, folder=folder, max_points=max_points, compiled=compiled)
    except ModelError as error:
        if isinstance(error, GpuLostError) or isinstance(error.__cause__, device.errors):
            raise  # the GPU failed, as when its memory is full: another engine would fail too
        progress(f'Building an engine of {path.name} for {device.name} with {library}, which can take minutes: {error}')
        engine, compiled = _build(path, folder, wanted, library, device, max_points, progress), b''
    _keep_compiled(engine, compiled)
    return engine


def read_folder(folder: Path, wanted: dict, max_points: int = 0) -> tuple[ModelCard, bytes, bytes]:
    """Return (card, plan, cubin) of a folder in the cache.

    wanted: required keys and values of engine.json; it may hold more. max_points: the most points of a cloud, which
    matters to an engine that takes points.
    Raises: ModelError with the reason when the folder cannot be used.
    """
    try:
        about = json.loads((folder / SIDECAR).read_text())
        for key, value in wanted.items():
            if about.get(key) != value:
                raise ModelError(f'{folder} has {key} {about.get(key)!r}, expected {value!r}.')
        parts = [(folder / name).read_bytes() for name in (PLAN, CUBIN)]
        for name, part in zip((PLAN, CUBIN), parts, strict=True):
            if hashlib.sha256(part).hexdigest() != about['files'][name]:
                raise ModelError(f'{folder / name} is damaged.')
        card = ModelCard.from_json(about['card'])
        if card.form == 'gather' and about['max_points'] < max_points:
            raise ModelError(f'{folder} takes {about["max_points"]} points, max_points is {max_points}.')
        return card, *parts
    except FileNotFoundError:
        raise ModelError('there is none in the cache yet.') from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f'{folder} cannot be read ({type(error).__name__}: {error}).') from error


def _build(path: Path, folder: Path, wanted: dict, library: TensorRt, device: CudaDevice, max_points: int,
           progress: Callable[[str], None]) -> TensorRtEngine:  # fmt: skip
    reference = OnnxRuntimeEngine(path, num_threads=os.cpu_count() or 1)
    card = reference.card
    if card.form == 'full':
        raise ModelError(f'{path} is a full model; TensorRT takes the dense or gather form that export.to_onnx writes.')
    cubin = compile_kernels(device.compute_capability)  # fails early, before the long build
    max_network_points, workspace = max(max_points, _MIN_MAX_POINTS), None
    if device.is_integrated:  # the builder would take the memory that the CPU's programs need
        with device.current():
            workspace = device.free_bytes() // 4
    plan = library.build(path.read_bytes(), path.name, progress, max_points=max_network_points, workspace=workspace)
    engine = TensorRtEngine(card, plan, cubin, library, device, folder=folder, max_points=max_points)
    try:
        worst = check_parity(engine, reference)
    except ModelError:
        engine.close()
        raise
    allowed = TOLERANCES[card.precision]
    progress(f'Built: at most {worst * 1e3:.2f} mm from ONNX Runtime, {allowed * 1e3:g} mm are allowed.')
    about = wanted | {
        'precision': card.precision, 'inputs': card.inputs, 'max_points': max_network_points,
        'largest_difference_m': worst,
        'files': {PLAN: hashlib.sha256(plan).hexdigest(), CUBIN: hashlib.sha256(cubin).hexdigest()},
        'card': card.to_json(),
    }  # fmt: skip
    try:
        write_folder(folder, about, plan, cubin)
    except OSError as error:
        progress(f'The engine works but cannot be cached, so the next start builds it again: {error}')
    return engine


def _read_if_any(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b''


def _keep_compiled(engine: TensorRtEngine, known: bytes) -> None:
    """Write what TensorRT-RTX compiled at this start into the folder of the engine; without it starts are slower."""
    compiled = engine.compiled_by_tensorrt
    if compiled and compiled != known and engine.folder.is_dir():
        with contextlib.suppress(OSError):
            temporary = engine.folder / f'.{RTX_KERNELS}.{os.getpid()}'
            temporary.write_bytes(compiled)
            os.replace(temporary, engine.folder / RTX_KERNELS)


def check_parity(engine, reference) -> float:
    """Return the largest difference [m] between an engine and ONNX Runtime with the same model file.

    Raises: ModelError when it is larger than the tolerance for the precision of the model.
    """
    card, worst = reference.card, 0.0
    for name, clouds in parity_clouds(card.grid, card.num_sweeps):
        difference = largest_difference(*(flow_of_clouds(each, clouds) for each in (engine, reference)))
        if difference > TOLERANCES[card.precision]:
            raise ModelError(
                f'The engine of {card.name} is {difference:.4f} m from ONNX Runtime on {name} points, more than '
                f'the {TOLERANCES[card.precision]} m allowed for {card.precision}: it is not used. Set engine to '
                'onnxruntime, and report this with the versions of TensorRT and driver.'
            )
        worst = max(worst, difference)
    return worst


def write_folder(folder: Path, about: dict, plan: bytes, cubin: bytes) -> None:
    """Write a folder of the cache atomically, replacing an older one.

    Raises: OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f'.{folder.name}.*'):  # left by a killed process
        if time.time() - left.stat().st_mtime > _LEFT_BEHIND_S:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        (temporary / PLAN).write_bytes(plan)
        (temporary / CUBIN).write_bytes(cubin)
        write_json(temporary / SIDECAR, about)
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.old.', dir=folder.parent))
            os.replace(folder, old)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
