# SPDX-License-Identifier: Apache-2.0
"""Graphs, contexts and lost GPUs, on a simulated GPU whose libcuda is a real library called through ctypes."""

import threading

import numpy as np
import pytest
from simulated_gpu import CudaError, SimulatedGpu

from zeroflow_ros.engines import cuda_device
from zeroflow_ros.engines.cuda_device import CudaCallError, CudaDevice
from zeroflow_ros.errors import ModelError


@pytest.fixture
def gpu(monkeypatch):
    return SimulatedGpu().install(monkeypatch)


@pytest.fixture
def device(gpu):
    return CudaDevice()


def in_thread(function):
    """Run a function in another thread; return its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_copies_arrive_whole(device):
    with device.current():
        stream, memory = device.driver.Stream(), device.driver.mem_alloc(400)
        given = device.driver.pagelocked_empty(100, np.float32)
        given[:] = np.arange(100)
        back = device.driver.pagelocked_empty(100, np.float32)
        device.copy_in(int(memory), given, stream)
        device.copy_out(back, int(memory), stream)
        assert np.isnan(back).all(), 'copies wait in the stream'
        stream.synchronize()
        np.testing.assert_array_equal(back, given)
        del memory, given, back, stream


def test_a_recorded_graph_runs_what_was_recorded_each_time(device, gpu):
    done = []
    with device.current():
        stream = device.driver.Stream()
        launch, reason = device.record(stream, lambda: stream.put(lambda: done.append(1)))
        assert reason == '' and not done, 'recording runs nothing'
        for _ in range(3):
            launch()
        stream.synchronize()
        assert len(done) == 3
        assert gpu.held['graph'] == 0 and gpu.held['executable graph'] == 1
        del launch
        assert gpu.held['executable graph'] == 0


def test_a_call_that_fails_is_named_with_its_reason(device, gpu):
    with device.current():
        stream, memory = device.driver.Stream(), device.driver.mem_alloc(8)
        gpu.is_lost = True
        with pytest.raises(CudaCallError, match=r'^cuMemcpyDtoHAsync_v2 failed: an illegal memory access .* error 700'):
            device.copy_out(np.zeros(2, np.float32), int(memory), stream)


def test_a_capture_that_was_broken_without_an_error_is_named(device):
    with device.current():
        stream = device.driver.Stream()
        _, reason = device.record(stream, lambda: setattr(stream, 'recorded', 'invalid'))
        assert 'cuStreamEndCapture failed: operation failed due to a previous error during capture' in reason


@pytest.mark.parametrize('error', [ModelError('The engine does not run.'), CudaError('not permitted')])
def test_what_refuses_to_be_recorded_runs_unrecorded(device, gpu, error):
    def refuse():
        raise error

    with device.current():
        stream = device.driver.Stream()
        launch, reason = device.record(stream, refuse)
        assert launch is refuse and reason == f'no CUDA graph: {error}'
        assert stream.recorded is None and not gpu.graphs and not gpu.held['graph']


def test_a_capture_that_the_network_broke_runs_unrecorded(device, gpu):
    with device.current():
        stream = device.driver.Stream()

        def invalidate():
            stream.recorded = 'invalid'
            raise ModelError('The engine does not run: operation not permitted when stream is capturing.')

        launch, reason = device.record(stream, invalidate)
        assert launch is invalidate and 'not permitted when stream is capturing' in reason
        device.driver.memset_d32_async(0, 0, 0, stream)  # the stream takes work again
        assert stream.recorded is None


def test_a_driver_that_is_too_old_for_graphs_runs_unrecorded(device, monkeypatch):
    class OldDriver(cuda_device._DriverLibrary):
        def call(self, name, *arguments):
            raise AttributeError(f'undefined symbol: {name}')

    monkeypatch.setattr(device, '_library', OldDriver())
    with device.current():
        assert 'undefined symbol: cuStreamBeginCapture_v2' in device.record(device.driver.Stream(), lambda: None)[1]


def test_each_thread_needs_the_context(device, gpu):
    def allocate_without():
        with pytest.raises(CudaError, match='invalid device context'):
            device.driver.Stream()

    with device.current():
        in_thread(allocate_without)

    def allocate():
        with device.current():
            return device.driver.mem_alloc(4)

    memory = in_thread(allocate)
    assert gpu.held['memory'] == 1
    del memory  # in the thread that made the context
    assert gpu.held['memory'] == 0


def test_memory_that_another_thread_frees_without_the_context_is_lost(device, gpu):
    """What pycuda does; the engine's tests rely on the stand-in doing it too."""
    with device.current():
        held = [device.driver.mem_alloc(4)]
    in_thread(held.clear)
    assert gpu.leaks == ['memory'] and gpu.held['memory'] == 1


def test_a_gpu_with_full_memory_still_works_and_a_lost_one_does_not(device, gpu):
    with device.current(), pytest.raises(CudaError, match='out of memory'):
        device.driver.mem_alloc(10**12)
    assert device.works()
    gpu.is_lost = True
    assert not device.works()
    assert not CudaDevice().works(), 'nor for another object of this process'


def test_no_driver_library_is_a_clear_error(gpu, monkeypatch):
    monkeypatch.setattr(cuda_device, 'DRIVER_LIBRARY', 'libcuda_that_is_not_here.so.1')
    with pytest.raises(ModelError, match=r'No NVIDIA GPU can be used: libcuda_that_is_not_here.*nvidia-smi'):
        CudaDevice()


def test_the_context_is_retained_once_and_released_at_the_end(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(cuda_device.atexit, 'register', calls.append)
    retain = gpu.retain_primary_context

    def count():
        calls.append('retained')
        context = retain()
        context.detach = lambda: calls.append('released')
        return context

    monkeypatch.setattr(gpu, 'retain_primary_context', count)

    class User:
        def close(self):
            calls.append('closed')

    users = [User(), User()]
    for user in users:
        CudaDevice().close_at_exit(user)
    del users[0], user
    retained, release = calls
    release()
    assert retained == 'retained' and calls[2:] == ['closed', 'released']
