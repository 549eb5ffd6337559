# SPDX-License-Identifier: Apache-2.0
"""The parts of `export.gpu_report`: what each needs, does, and may take; each runs in a process of its own."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from export.gpu_kernels import full_memory, kernels, lost_gpu, sanitize
from export.gpu_result import (
    DONE,
    FAILED,
    LEFT,
    MISSED,
    REACHED,
    Result,
    checkpoint_path,
    existing,
    existing_model,
    model_path,
)
from zeroflow_ros.engines.parity import lidar_like_cloud
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.views.report import percentiles

ROOT = Path(__file__).parents[1]
FLOATS = 'float32', 'float16'
BAG_FILE = 'bag.txt'  # in the folder of the report: path of the bag to compare models on
BUNDLED = 'bundled'  # name of the model of the package among the students
GOALS_MS = {
    'fastflow3d': {'inference': 1.5, 'total': 3.0},
    'fastflow3d_xl': {'inference': 15.0},
}  # p99
TIMES_AS_FAST_AS_EAGER = 10
FLOAT16_TOLERANCE_M = 5e-3
LARGEST_LEAK_BYTES = 10**6
NUM_KERNELS = 6
NUM_PAIRS = 500  # so that the p99 is not the maximum
GROWING_SIZES = range(20_000, 200_001, 30_000)  # points
ABOUT = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'Apache-2.0'}


@dataclass(frozen=True)
class Part:
    """One part of the report.

    needs: what the machine must have, keys of `machine`. limit_s: the most seconds it may take. run: called with the
    folder of the report and what `machine` found.
    """

    name: str
    needs: tuple[str, ...]
    limit_s: float
    run: Callable[[Path, dict], Result]


def machine(folder: Path, _facts: dict) -> Result:
    """Find the GPU, the compiler and the libraries. Figures: gpu, nvcc, tensorrt, pycuda, torch, ...: text, or ''."""
    words = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total,compute_cap', '--format=csv,noheader']
    facts = {
        'gpu': _first_line(words), 'nvcc': _first_line(['nvcc', '--version'], last=True),
        'pycuda': _version('pycuda'), 'torch': _version('torch'), 'onnx': _version('onnx'),
        'pytest': _version('pytest'), 'compute_sanitizer': shutil.which('compute-sanitizer') or '',
        'bag': _bag(folder), 'revision': _first_line(['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']),
    }  # fmt: skip
    from zeroflow_ros.engines.tensorrt_library import TensorRt

    try:
        library = TensorRt()
        if facts['gpu']:
            library.check_gpu(facts['gpu'].split(', ')[0], facts['gpu'].split(', ')[-1])
        facts |= {'tensorrt': str(library), 'tensorrt_rtx': str(library) if library.is_rtx else ''}
    except ZeroFlowError as error:
        facts |= {'tensorrt': '', 'tensorrt_rtx': '', 'no_tensorrt': str(error)}
    return Result(DONE, ', '.join(f'{name} {facts[name] or "none"}' for name in ('gpu', 'tensorrt', 'nvcc')), facts)


def _bag(folder: Path) -> str:
    """Return the bag that the report was called with, ''."""
    path = folder / BAG_FILE
    return path.read_text() if path.is_file() else ''


def _first_line(words: list[str], *, last: bool = False) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        return lines[-1 if last else 0].strip() if lines else ''
    return ''


def _version(name: str) -> str:
    """Return the version of an installed package, '' if there is none, without importing it: torch takes seconds."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ''


def compile_kernels(folder: Path, _facts: dict) -> Result:
    """Compile pillars.cu as the image does, and list registers and local memory per kernel of an H200 and an Orin."""
    from zeroflow_ros.engines.cuda_device import KERNELS

    used = {}
    for architecture in ('sm_90', 'sm_87'):
        words = ['nvcc', '-fmad=false', f'-arch={architecture}', '--cubin', '-Xptxas=-v', '-o', '/dev/null', KERNELS]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            return Result(FAILED, f'nvcc does not compile pillars.cu for {architecture}: {done.stderr[-300:]}')
        used[architecture] = _registers(done.stderr)
    spilled = {name for kernels in used.values() for name, (_, spills) in kernels.items() if spills}
    text = f'{len(used["sm_90"])} kernels; ' + (f'spilled registers: {sorted(spilled)}' if spilled else 'no spills')
    return Result(FAILED if spilled or len(used['sm_90']) != NUM_KERNELS else DONE, text, used)


def _registers(ptxas: str) -> dict[str, tuple[int, int]]:
    """Return {kernel: (registers, bytes of spilled ones)} of the output of ptxas."""
    found = {}
    for block in ptxas.split('Compiling entry function ')[1:]:
        spills = sum(map(int, re.findall(r'(\d+) bytes spill', block)))
        found[block.split("'")[1]] = int(re.search(r'Used (\d+) registers', block)[1]), spills
    return found


def write_models(student: str, folder: Path, _facts: dict) -> Result:
    """Write an untrained student, as a checkpoint and as float32 and float16 files; weights do not affect latency."""
    import torch

    from export.onnx_graph import export_onnx
    from training.learning.checkpoint import Checkpoint
    from training.students import build_student

    torch.manual_seed(0)
    checkpoint = Checkpoint(student, build_student(student).state_dict(), ABOUT)
    checkpoint.save(checkpoint_path(folder, student))
    for precision in FLOATS:
        export_onnx(checkpoint, model_path(folder, student, precision), precision=precision)
    size = model_path(folder, student, 'float16').stat().st_size / 1e6
    return Result(DONE, f'{student} in {" and ".join(FLOATS)} ({size:.1f} MB)')


def bundled_models(folder: Path, _facts: dict) -> Result:
    """Write the model of the package, which takes several sweeps, in float32 and in 8 bits for TensorRT."""
    from export.quantized_model import PillarRecorder, quantize
    from zeroflow_ros.engines.selection import DEFAULT_MODELS, load_engine

    path, of_8_bits = (model_path(folder, BUNDLED, precision) for precision in ('float32', 'int8'))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(DEFAULT_MODELS['tensorrt'], path)
    card, rng = load_engine(path).card, np.random.default_rng(0)
    recorder = PillarRecorder(card)

    def images():
        for _ in range(2):
            clouds = [lidar_like_cloud(card.grid, rng, 60_000) for _ in range(card.num_sweeps)]
            recorder.infer(*clouds[:2], older=[(points, np.eye(4)) for points in clouds[2:]])
            yield recorder.images.copy()

    quantize(path, images(), of_8_bits, 'LiDAR-like clouds', symmetric=True)
    return Result(DONE, f'{DEFAULT_MODELS["tensorrt"].name}, {card.num_sweeps} sweeps, in float32 and 8 bits')


def build(student: str, precision: str, folder: Path, facts: dict) -> Result:
    """Build an engine; with a GPU also run it, compare it with ONNX Runtime, and see whether it is recorded."""
    from zeroflow_ros.engines.tensorrt_library import TensorRt

    path = existing_model(folder, student, precision)
    if not facts['gpu']:
        plan = TensorRt().build(path.read_bytes(), path.name, progress=print)
        return Result(DONE, f'{facts["tensorrt"]} builds it ({len(plan) / 1e6:.1f} MB); not run: no GPU')
    from zeroflow_ros.engines.cuda_device import CudaDevice
    from zeroflow_ros.engines.tensorrt_build import open_engine

    device = CudaDevice()
    with device.current():
        free = device.free_bytes()
    engine = open_engine(path)
    with device.current():
        megabytes = (free - device.free_bytes()) / 1e6
    about = json.loads((engine.folder / 'engine.json').read_text())
    difference = about['largest_difference_m']
    figures = {'largest_difference_m': difference, 'runs_on': engine.runs_on, 'memory_mb': megabytes}
    text = f'{engine.runs_on}; {megabytes:.0f} MB of GPU memory; {difference * 1e3:.2f} mm from ONNX Runtime'
    return Result(DONE, text, figures)


def float16(student: str, folder: Path, facts: dict) -> Result:
    """Compare float16 with float32 on all parity clouds: on the GPU where it can run, else in ONNX Runtime."""
    from zeroflow_ros.engines.parity import flow_of_clouds, largest_difference, parity_clouds
    from zeroflow_ros.engines.selection import engine_from_spec

    has_engine = facts['gpu'] and facts['tensorrt'] and facts['pycuda']
    paths = [str(existing_model(folder, student, precision)) for precision in FLOATS]
    reference = engine_from_spec(paths[0])
    half = engine_from_spec(f'tensorrt:{paths[1]}') if has_engine else engine_from_spec(paths[1])
    worst = max(
        largest_difference(*(flow_of_clouds(engine, clouds) for engine in (reference, half)))
        for _, clouds in parity_clouds(reference.card.grid, reference.card.num_sweeps)
    )
    text = f'{worst * 1e3:.2f} mm from float32 ({half.runs_on}), goal {FLOAT16_TOLERANCE_M * 1e3:g} mm; untrained'
    return Result(REACHED if worst <= FLOAT16_TOLERANCE_M else MISSED, text, {'largest_difference_m': worst})


def latency(student: str, folder: Path, facts: dict) -> Result:
    """Measure the float16 engine and eager torch on the same 500 pairs of 90,000 points."""
    model, checkpoint = existing_model(folder, student, 'float16'), existing(checkpoint_path(folder, student))
    report = _benchmark(
        '--model', f'tensorrt:{model}', '--checkpoint', checkpoint, '--compare', '--points', 90_000,
        '--pairs', NUM_PAIRS, '--warm-up', 50,
    )  # fmt: skip
    [of_input] = report['inputs'].values()
    ours, eager = of_input['models'].values()
    [ratio] = of_input['ratios'].values()
    figures = {'engine': ours, 'eager torch': eager, 'eager torch / engine': ratio}
    goals = GOALS_MS.get(student, {})
    is_reached = all(ours[stage]['p99'] <= goal for stage, goal in goals.items())
    if student == 'fastflow3d':
        is_reached &= ratio['p50'] >= TIMES_AS_FAST_AS_EAGER
    text = ', '.join(f'{stage} p99 {ours[stage]["p99"]} ms (goal {goal})' for stage, goal in goals.items())
    text = text or f'total p50 {ours["total"]["p50"]} ms'
    text += f'; eager torch takes {ratio["p50"]:.1f} times as long'
    return Result((REACHED if is_reached else MISSED) if goals else DONE, text, figures)


def latency_of_bundled(folder: Path, _facts: dict) -> Result:
    """Measure the model of the package on this GPU in float32 and 8 bits, and on the CPU, with its five sweeps."""
    paths = [existing_model(folder, BUNDLED, precision) for precision in ('float32', 'int8')]
    models = [f'tensorrt:{path}' for path in paths]
    report = _benchmark('--model', *models, paths[0], '--compare', '--points', 90_000, '--pairs', 50, '--threads', 4)
    [of_input] = report['inputs'].values()
    totals = [found['total']['p50'] for found in of_input['models'].values()]
    text = ', '.join(f'{name} {total} ms' for name, total in zip(('float32', '8 bits', 'CPU'), totals, strict=True))
    return Result(DONE, f'total p50: {text}', of_input)


def compiled_torch(student: str, folder: Path, facts: dict) -> Result:
    """Measure eager and compiled torch, beside the float16 engine where there is TensorRT."""
    checkpoint = existing(checkpoint_path(folder, student))
    has_engine = facts['tensorrt'] and facts['pycuda']
    models = ['--model', f'tensorrt:{existing_model(folder, student, "float16")}'] if has_engine else []
    report = _benchmark(*models, '--checkpoint', checkpoint, '--compile', '--points', 90_000, '--pairs', 50)
    [of_input] = report['inputs'].values()
    *_, eager, compiled = of_input['models'].values()
    text = f'{student}, float32, total p50: eager {eager["total"]["p50"]} ms, compiled {compiled["total"]["p50"]} ms'
    if has_engine:
        text += f', engine in float16 {next(iter(of_input["models"].values()))["total"]["p50"]} ms'
    return Result(DONE, text, of_input)


def float16_on_bag(student: str, folder: Path, facts: dict) -> Result:
    """Compare float16 with float32 on recorded sweeps: on the GPU where it can run, else in ONNX Runtime."""
    first, second = (existing_model(folder, student, precision) for precision in FLOATS)
    second = f'tensorrt:{second}' if facts['gpu'] and facts['tensorrt'] and facts['pycuda'] else second
    tolerance = '--tolerance', FLOAT16_TOLERANCE_M
    words = [sys.executable, '-m', 'export.parity', first, second, '--bag', facts['bag'], *tolerance]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False)
    lines = done.stdout.strip().splitlines()
    if not lines or 'largest difference' not in lines[-1]:
        return Result(FAILED, (done.stderr or done.stdout)[-300:])
    return Result(MISSED if done.returncode else REACHED, f'{lines[-1]}; untrained', {'output': lines})


def camera_model(student: str, folder: Path, facts: dict) -> Result:
    """Build an untrained camera student with TensorRT, and measure it in torch. No engine here runs it on a GPU yet."""
    import torch

    from export.stereo_onnx import export_stereo_onnx
    from training.learning.checkpoint import Checkpoint
    from training.students import CAMERA_STUDENTS, build_student
    from zeroflow_ros.engines.tensorrt_library import TensorRt

    assert student in CAMERA_STUDENTS
    torch.manual_seed(0)
    about = {'licence': 'Apache-2.0', 'config': {'width': 640, 'height': 192}}
    checkpoint = Checkpoint(student, build_student(student).state_dict(), about)
    path = model_path(folder, student)
    path.parent.mkdir(parents=True, exist_ok=True)
    card = export_stereo_onnx(checkpoint, path, size=(640, 192))
    texts, figures = [f'{card.width} x {card.height} px'], {}
    if facts['tensorrt']:
        try:
            plan = TensorRt().build(path.read_bytes(), path.name, progress=print)
            texts.append(f'{facts["tensorrt"]} builds it ({len(plan) / 1e6:.1f} MB)')
        except ZeroFlowError as error:
            texts.append(str(error))
    if facts['gpu'] and torch.cuda.is_available():
        figures = _torch_on_gpu(checkpoint.build(), card)
        texts.append(f'eager torch p50 {figures["eager torch"]["p50"]} ms')
    return Result(DONE, '; '.join(texts), figures)


def _torch_on_gpu(student, card) -> dict:
    """Return percentiles of the milliseconds that a camera student takes on the GPU."""
    import torch

    from export.stereo_onnx import stereo_network

    network = stereo_network(student).to('cuda').eval()
    given = [torch.randint(0, 255, (4, card.height, card.width, 3), dtype=torch.uint8, device='cuda')]
    if card.uses_ego_motion:
        given.append(torch.eye(3, 4, device='cuda')[None])
    times = []
    with torch.inference_mode():
        for _ in range(60):
            start = time.perf_counter()
            network(*given)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
    return {'eager torch': percentiles(times[10:])}


def ceilings(_folder: Path, _facts: dict) -> Result:
    """Measure what this GPU reaches at most: a large float16 product, and a copy in its memory."""
    import torch

    size, copied = 8192, torch.empty(2**28, dtype=torch.float32, device='cuda')
    factors = torch.randn(2, size, size, dtype=torch.float16, device='cuda')
    works = {'product': lambda: factors[0] @ factors[1], 'copy': lambda: copied.clone()}
    seconds = {}
    for name, work in works.items():
        work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            work()
        torch.cuda.synchronize()
        seconds[name] = (time.perf_counter() - start) / 20
    figures = {
        'float16_tflops': 2 * size**3 / seconds['product'] / 1e12,
        'copy_tb_s': 2 * copied.nbytes / seconds['copy'] / 1e12,
    }
    text = f'float16 {figures["float16_tflops"]:.0f} TFLOP/s, memory {figures["copy_tb_s"]:.1f} TB/s'
    return Result(DONE, text, figures)


def growth(folder: Path, _facts: dict) -> Result:
    """Measure the full student with 10,000 to 200,000 points."""
    model = existing_model(folder, 'fastflow3d', 'float16')
    sizes = 10_000, 50_000, 100_000, 200_000
    report = _benchmark('--model', f'tensorrt:{model}', '--points', *sizes, '--pairs', 100)
    totals = {name: next(iter(found['models'].values()))['total']['p50'] for name, found in report['inputs'].items()}
    return Result(DONE, ', '.join(f'{name}: {total} ms' for name, total in totals.items()), totals)


def torch_as_network(student: str, folder: Path, _facts: dict) -> Result:
    """Run the engine with the network in torch (float16, channels last): all but TensorRT is as on the vehicle."""
    from export.torch_network import open_torch_engine
    from training.learning.checkpoint import load_checkpoint
    from zeroflow_ros.engines.onnxruntime_engine import OnnxRuntimeEngine
    from zeroflow_ros.engines.stopwatch import Stopwatch
    from zeroflow_ros.engines.tensorrt_build import check_parity

    reference = OnnxRuntimeEngine(existing_model(folder, student, 'float16'), num_threads=os.cpu_count() or 1)
    checkpoint = load_checkpoint(existing(checkpoint_path(folder, student)))
    engine = open_torch_engine(checkpoint, reference.card, folder)
    worst_m = check_parity(engine, reference)
    rng, totals, on_gpu = np.random.default_rng(0), [], []
    for _ in range(50 + NUM_PAIRS):
        clouds = [lidar_like_cloud(reference.card.grid, rng, 89_500) for _ in range(2)]
        watch, start = Stopwatch(), time.perf_counter()
        engine.infer(*clouds, watch)
        totals.append((time.perf_counter() - start) * 1e3)
        on_gpu.append(watch.stages_ms['inference'])
    figures = {
        'inference': percentiles(on_gpu[50:]),
        'total': percentiles(totals[50:]),
        'largest_difference_m': worst_m,
    }
    text = f'{engine.runs_on}; {worst_m * 1e3:.2f} mm from ONNX Runtime; ' + ', '.join(
        f'{stage} p50 {figures[stage]["p50"]} ms, p99 {figures[stage]["p99"]} ms' for stage in ('inference', 'total')
    )
    return Result(DONE, text, figures)


def memory_across_threads(folder: Path, _facts: dict) -> Result:
    """Open an engine here, use, grow and close it in another thread, as the node does: the memory must come back."""
    from concurrent.futures import ThreadPoolExecutor

    from zeroflow_ros.engines.cuda_device import CudaDevice
    from zeroflow_ros.engines.stopwatch import Stopwatch
    from zeroflow_ros.engines.tensorrt_build import open_engine

    path = existing_model(folder, 'fastflow3d_lite', 'float32')
    engine, device = open_engine(path, max_points=10_000), CudaDevice()
    points = np.random.default_rng(0).uniform(-40, 40, (GROWING_SIZES[-1], 3)).astype(np.float32)
    free = []
    with ThreadPoolExecutor(1) as thread:
        for num_points in GROWING_SIZES:
            thread.submit(engine.infer, points[:num_points], points[:num_points], Stopwatch()).result()
            thread.submit(engine.close).result()
            with device.current():
                free.append(device.free_bytes())
    lost = free[1] - free[-1]  # the first sweep loads kernels and libraries
    text = f'{lost / 1e6:.1f} MB lost in {len(free) - 2} times of opening, growing and closing'
    return Result(DONE if lost <= LARGEST_LEAK_BYTES else FAILED, text, {'free_bytes': free})


def run_tests(paths: list[str], _folder: Path, _facts: dict) -> Result:
    """Run tests of the checkout."""
    words = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *(str(ROOT / path) for path in paths)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    text = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-300:]
    if done.returncode == 0 and 'passed' not in text:
        return Result(LEFT, text)
    return Result(DONE if done.returncode == 0 else FAILED, text, {'output': done.stdout[-4000:]})


def _benchmark(*options) -> dict:
    """Run export.benchmark and return its report. Raises: ZeroFlowError."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.json'
        words = [sys.executable, '-m', 'export.benchmark', *map(str, options), '--json', str(report)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise ZeroFlowError(f'export.benchmark ended with {done.returncode}: {(done.stderr or done.stdout)[-400:]}')
        return json.loads(report.read_text())


def all_parts() -> list[Part]:
    """Return all parts in order, the goals first. `machine` finds out what the others need."""
    students, tests = ('fastflow3d_lite', 'fastflow3d', 'fastflow3d_xl', 'deflow'), 'test/zeroflow_ros/engines'
    on_gpu, with_kernels = ('gpu', 'tensorrt', 'pycuda'), ('gpu', 'pycuda', 'nvcc')
    without_gpu = [f'{tests}/test_{name}.py' for name in ('cuda_kernels', 'cuda_device', 'tensorrt_library')]

    def model(name):
        return Part(f'model {name}', ('torch', 'onnx'), 180, partial(write_models, name))

    def builds(name, *precisions):
        return [
            Part(f'build {name} {precision}', ('tensorrt',), 120, partial(build, name, precision))
            for precision in precisions
        ]

    def speed(name, limit_s):
        return Part(f'latency {name}', ('torch', *on_gpu), limit_s, partial(latency, name))

    lite, full, xl, deflow = students
    return [
        Part('machine', (), 120, machine),
        Part('kernels compile', ('nvcc',), 60, compile_kernels),
        model(lite), model(full),
        Part('kernels on the GPU', with_kernels, 60, partial(kernels, [lite, full])),
        *builds(lite, *FLOATS), *builds(full, *FLOATS),
        speed(full, 120),
        Part('torch as network fastflow3d', ('gpu', 'pycuda', 'torch', 'onnx'), 90, partial(torch_as_network, full)),
        Part('float16 fastflow3d', (), 240, partial(float16, full)),
        Part('float16 on recorded sweeps', ('bag',), 120, partial(float16_on_bag, full)),
        model(xl), *builds(xl, *FLOATS), speed(xl, 120),
        Part('growth with points', on_gpu, 60, growth),
        Part('model bundled', ('onnx',), 60, bundled_models),
        *builds(BUNDLED, 'float32', 'int8'),
        Part('latency bundled', on_gpu, 60, latency_of_bundled),
        Part('tests on the GPU', ('pytest', *on_gpu), 180, partial(run_tests, [f'{tests}/test_tensorrt_gpu.py'])),
        Part('memory across threads', on_gpu, 60, memory_across_threads),
        Part('full memory', with_kernels, 30, full_memory),
        Part('lost GPU', with_kernels, 30, lost_gpu),
        Part('ceilings', ('gpu', 'torch'), 30, ceilings),
        Part('compiled torch fastflow3d', ('gpu', 'torch', 'onnx'), 150, partial(compiled_torch, full)),
        *(Part(f'compute-sanitizer {tool}', ('compute_sanitizer', *with_kernels), 60, partial(sanitize, tool))
          for tool in ('memcheck', 'initcheck')),
        model(deflow), *builds(deflow, *FLOATS),
        Part('float16 fastflow3d_lite', (), 60, partial(float16, lite)),
        speed(lite, 60),
        *(Part(f'camera model {name}', ('torch', 'onnx'), 90, partial(camera_model, name))
          for name in ('stereo_lite', 'dwarf')),
        Part('tests without a GPU', ('pytest',), 120, partial(run_tests, without_gpu)),
    ]  # fmt: skip
