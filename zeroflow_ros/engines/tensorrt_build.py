# SPDX-License-Identifier: Apache-2.0
"""Build a TensorRT engine of a model file for this GPU, check it, and cache it in a folder.

A folder holds network.engine, pillars.cubin (the compiled kernels) and engine.json, which records the model, TensorRT,
GPU and kernels of the build. When any of them differs, the engine is built again: a TensorRT plan is valid for one
version of TensorRT and one GPU architecture only.
"""

import hashlib
import json
import os
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
from zeroflow_ros.errors import ModelError
from zeroflow_ros.views.report import write_json

SCHEMA = 1
_LEFT_BEHIND_S = 3600.0
PLAN, CUBIN, SIDECAR = 'network.engine', 'pillars.cubin', 'engine.json'
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
    Raises: ModelError when TensorRT or the GPU is missing, the file is not supported, or the engine's flow differs from
    ONNX Runtime.
    """
    library, device = TensorRt(), CudaDevice()
    wanted = {
        'schema': SCHEMA, 'model_sha256': hashlib.sha256(path.read_bytes()).hexdigest(), 'tensorrt': str(library),
        'compute_capability': device.compute_capability, 'kernels_sha256': kernels_checksum(),
    }  # fmt: skip
    name = f'{path.stem[:60]}_{wanted["model_sha256"][:12]}_{library}_sm{device.compute_capability}'.replace(' ', '_')
    folder = Path(cache or default_cache()).expanduser() / name
    try:
        found = read_folder(folder, wanted)
        return TensorRtEngine(*found, library, device, folder=folder, max_points=max_points)
    except ModelError as error:
        progress(f'Building an engine of {path.name} for {device.name} with {library}, which can take minutes: {error}')
    return _build(path, folder, wanted, library, device, max_points, progress)


def read_folder(folder: Path, wanted: dict) -> tuple[ModelCard, bytes, bytes]:
    """Return (card, plan, cubin) of a folder in the cache.

    wanted: required keys and values of engine.json; it may hold more.
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
        return ModelCard.from_json(about['card']), *parts
    except FileNotFoundError:
        raise ModelError('there is none in the cache yet.') from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f'{folder} cannot be read ({type(error).__name__}: {error}).') from error


def _build(path: Path, folder: Path, wanted: dict, library: TensorRt, device: CudaDevice, max_points: int,
           progress: Callable[[str], None]) -> TensorRtEngine:  # fmt: skip
    reference = OnnxRuntimeEngine(path)
    card = reference.card
    if card.form == 'full':
        raise ModelError(f'{path} is a full model; TensorRT takes the dense or gather form that export.to_onnx writes.')
    cubin = compile_kernels(device.compute_capability)  # fails early, before the long build
    plan = library.build(path.read_bytes(), path.name, progress)
    engine = TensorRtEngine(card, plan, cubin, library, device, folder=folder, max_points=max_points)
    worst = check_parity(engine, reference)
    allowed = TOLERANCES[card.precision]
    progress(f'Built: at most {worst * 1e3:.2f} mm from ONNX Runtime, {allowed * 1e3:g} mm are allowed.')
    about = wanted | {
        'gpu': device.name, 'precision': card.precision, 'inputs': card.inputs, 'largest_difference_m': worst,
        'files': {PLAN: hashlib.sha256(plan).hexdigest(), CUBIN: hashlib.sha256(cubin).hexdigest()},
        'card': card.to_json(),
    }  # fmt: skip
    try:
        write_folder(folder, about, plan, cubin)
    except OSError as error:
        progress(f'The engine works but cannot be cached, so the next start builds it again: {error}')
    return engine


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
