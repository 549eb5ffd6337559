# SPDX-License-Identifier: Apache-2.0
"""The report for a machine with a GPU: verdicts, limits, resuming; and what it does on a machine without one."""

import json
import shutil

import pytest
from simulated_gpu import SimulatedGpu
from tiny_bag import write_bag

from export import gpu_parts, gpu_report
from export.gpu_parts import Part, all_parts
from export.gpu_result import DONE, FAILED, LEFT, MISSED, OUT_OF_TIME, REACHED, Result
from zeroflow_ros.engines import tensorrt_build
from zeroflow_ros.engines.selection import DEFAULT_MODELS
from zeroflow_ros.errors import ZeroFlowError

FACTS = {
    name: ''
    for name in (
        'gpu',
        'nvcc',
        'pycuda',
        'torch',
        'onnx',
        'pytest',
        'revision',
        'tensorrt',
        'tensorrt_rtx',
        'compute_sanitizer',
        'bag',
    )
}
MACHINE = Part('machine', (), 60, lambda folder, facts: Result(DONE, 'no GPU', dict(FACTS)))


def done(folder, facts):
    return Result(DONE, 'did it', {'ms': 3.0})


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Run reports with all parts in this process; returns results, and the names of the parts that ran."""
    ran = []

    def run_part(part, folder, limit_s):
        ran.append(part.name)
        gpu_report.run_here(part, folder)
        return Result(**json.loads((folder / 'parts' / f'{part.name}.json').read_text()))

    def run(*parts, seconds=60.0, again=()):
        ran.clear()
        results = gpu_report.report([MACHINE, *parts], tmp_path, seconds, list(again))
        return {name: result.verdict for name, result in results.items()}, ran

    monkeypatch.setattr(gpu_report, 'run_part', run_part)
    return run


def test_a_machine_without_a_gpu_says_what_is_left(here, tmp_path):
    verdicts, ran = here(Part('a', (), 9, done), Part('b', ('gpu', 'tensorrt'), 9, done))
    assert verdicts == {'machine': DONE, 'a': DONE, 'b': LEFT} and ran == ['machine', 'a']
    text = (tmp_path / 'report.txt').read_text()
    assert text.startswith('gpu none, tensorrt none, nvcc none, torch ') and 'needs gpu, tensorrt' in text
    assert text.endswith('2 done, 1 left.\n')
    assert json.loads((tmp_path / 'report.json').read_text())['parts']['a']['figures'] == {'ms': 3.0}


def test_a_second_run_goes_on_where_the_first_ended(here):
    parts = [Part(name, (), 9, done) for name in 'ab']
    assert here(parts[0])[1] == ['machine', 'a']
    verdicts, ran = here(*parts)
    assert ran == ['machine', 'b'] and verdicts == {'machine': DONE, 'a': DONE, 'b': DONE}
    assert here(*parts, again=['a'])[1] == ['machine', 'a']


@pytest.mark.parametrize('seconds, limit_s', [(480, 9), (1440, 27)])
def test_more_time_raises_the_limit_of_each_part(monkeypatch, tmp_path, seconds, limit_s):
    limits = []

    def run_part(part, folder, limit_s):
        limits.append(limit_s)
        return Result(DONE, '', dict(FACTS))

    monkeypatch.setattr(gpu_report, 'run_part', run_part)
    gpu_report.report([MACHINE, Part('a', (), 9, done)], tmp_path, seconds, [])
    assert limits[1] == pytest.approx(limit_s)


def test_another_gpu_or_revision_is_measured_anew(here, monkeypatch):
    part = Part('a', (), 9, done)
    here(part)
    monkeypatch.setitem(FACTS, 'gpu', 'NVIDIA H200')
    assert here(part)[1] == ['machine', 'a']


def test_what_failed_is_tried_again_and_what_is_late_is_left(here):
    def fails(folder, facts):
        raise ZeroFlowError('TensorRT does not take it.')

    part = Part('a', (), 9, fails)
    for _ in range(2):
        verdicts, ran = here(part)
        assert verdicts['a'] == FAILED and ran == ['machine', 'a']
    assert here(Part('b', (), 9, done), seconds=1)[0]['b'] == LEFT


def test_a_part_whose_model_was_not_written_is_left(here, tmp_path):
    needs_model = Part('a', (), 9, lambda folder, facts: gpu_parts.float16('fastflow3d', folder, facts))
    assert here(needs_model)[0]['a'] == LEFT
    assert 'fastflow3d.onnx is missing' in (tmp_path / 'report.txt').read_text()


def test_a_part_that_hangs_or_dies_ends_alone(tmp_path):
    [machine, *_] = all_parts()
    assert gpu_report.run_part(machine, tmp_path, 0.01).verdict == OUT_OF_TIME
    result = gpu_report.run_part(Part('no such part', (), 60, done), tmp_path, 60)
    assert result.verdict == FAILED and 'status 1' in result.text
    assert 'no such part' in (tmp_path / 'logs' / 'no_such_part.txt').read_text()


def test_a_part_of_its_own_process_leaves_its_result(tmp_path):
    [machine, *_] = all_parts()
    result = gpu_report.run_part(machine, tmp_path, 120)
    assert result.verdict == DONE and set(FACTS) <= set(result.figures)


def test_every_part_needs_what_the_machine_part_finds():
    parts = all_parts()
    assert len({part.name for part in parts}) == len(parts)
    assert {need for part in parts for need in part.needs} <= set(FACTS)


def test_an_unknown_part_is_named(tmp_path, capsys):
    assert gpu_report.main(['--out', str(tmp_path), '--again', 'latency']) == 1
    assert "no part 'latency'; the parts are: machine, kernels compile" in capsys.readouterr().err


@pytest.mark.parametrize(
    'inference, total, ratio, verdict',
    [(1.4, 2.9, 12, REACHED), (1.6, 2.9, 12, MISSED), (1.4, 3.1, 12, MISSED), (1.4, 2.9, 9, MISSED)],
)
def test_a_goal_is_reached_only_if_all_its_figures_are(monkeypatch, tmp_path, inference, total, ratio, verdict):
    (tmp_path / 'models').mkdir()
    for name in ('fastflow3d.pt', 'fastflow3d_float16.onnx'):
        (tmp_path / 'models' / name).touch()
    ours = {'inference': {'p99': inference}, 'total': {'p50': 2, 'p99': total}}
    of_input = {'models': {'engine': ours, 'torch': {'total': {'p50': 30}}}, 'ratios': {'torch': {'p50': ratio}}}
    monkeypatch.setattr(gpu_parts, '_benchmark', lambda *options: {'inputs': {'random': of_input}})
    result = gpu_parts.latency('fastflow3d', tmp_path, {})
    assert result.verdict == verdict and f'total p99 {total} ms (goal 3.0)' in result.text


def test_precisions_are_compared_on_a_bag(tmp_path):
    (tmp_path / 'models').mkdir()
    for name in ('fastflow3d_lite.onnx', 'fastflow3d_lite_float16.onnx'):
        shutil.copy(DEFAULT_MODELS['tensorrt'], tmp_path / 'models' / name)
    facts = FACTS | {'bag': str(write_bag(tmp_path / 'bag', num_sweeps=3))}
    result = gpu_parts.float16_on_bag('fastflow3d_lite', tmp_path, facts)
    assert result.verdict == REACHED and 'equal: largest difference 0.00e+00 m' in result.text
    assert sum(line.startswith('sweep ') for line in result.figures['output']) == 2
    assert gpu_parts.float16_on_bag('fastflow3d_lite', tmp_path, FACTS | {'bag': 'none.mcap'}).verdict == FAILED


def test_a_model_that_was_not_written_is_named(tmp_path):
    with pytest.raises(ZeroFlowError, match=r'fastflow3d.onnx is missing.*Run the report again'):
        gpu_parts.build('fastflow3d', 'float32', tmp_path, {'gpu': 'NVIDIA H200'})


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='needs nvcc')
def test_the_kernels_spill_no_registers(tmp_path):
    result = gpu_parts.compile_kernels(tmp_path, {})
    assert result.verdict == DONE and result.text == '6 kernels; no spills'
    assert 0 < result.figures['sm_90']['pool_pillars'][0] < 64


def test_engines_are_built_and_freed_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(tensorrt_build, 'check_parity', lambda engine, reference: 1e-4)
    monkeypatch.setattr(gpu_parts, 'GROWING_SIZES', range(11_000, 14_000, 1000))
    (tmp_path / 'models').mkdir()
    shutil.copy(DEFAULT_MODELS['tensorrt'], tmp_path / 'models' / 'fastflow3d_lite.onnx')
    gpu = SimulatedGpu().install(monkeypatch)
    built = gpu_parts.build('fastflow3d_lite', 'float32', tmp_path, {'gpu': 'Simulated GPU'})
    assert built.verdict == DONE and 'tensorrt 11.0.0 on Simulated GPU' in built.text and '0.10 mm' in built.text
    freed = gpu_parts.memory_across_threads(tmp_path, {})
    assert freed.verdict == DONE and freed.text.startswith('0.0 MB lost')
    assert not gpu.leaks
