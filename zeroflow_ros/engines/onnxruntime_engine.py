# SPDX-License-Identifier: Apache-2.0
"""Run a model with ONNX Runtime on the CPU, with the pillar encoder before it and the point head after it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from zeroflow_ros.engines.eight_bit_tensors import EightBitModel, read_8_bit
from zeroflow_ros.engines.engine import IDENTITY
from zeroflow_ros.engines.model_card import METADATA_KEY, REMEDY, ModelCard, verify_checksum
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ModelError
from zeroflow_ros.lidar.pillars import PillarImages
from zeroflow_ros.transforms import apply

_FLOAT, _INDEX = 'tensor(float)', 'tensor(int32)'  # types of inputs and outputs, whatever the precision inside


class OnnxRuntimeEngine:
    """Runs a `dense`, a `gather` or a `full` model file; see `Engine`."""

    def __init__(self, path: Path, *, num_threads: int = 2):
        """Open the model file.

        Raises: ModelError when it is not an ONNX file, has no valid card, or does not match its card.
        """
        self._session, metadata, self.runs_on = open_session(path, num_threads)
        if METADATA_KEY not in metadata:
            raise ModelError(
                f'{path} is an ONNX file without a model card, so its frames and units are unknown. {REMEDY}'
            )
        self.card = ModelCard.from_json(metadata[METADATA_KEY])
        verify_checksum(path, self.card)
        self._check_tensors(path)
        if (model := read_8_bit(path, self.card)) is not None:
            self._session, _, _ = open_session(path, num_threads, model.model)
            self._form = _Dense(self._session, self.card, model)
            return
        form = {'dense': _Dense, 'gather': _Gather, 'full': _Full}[self.card.form]
        self._form = form(self._session, self.card)

    def _check_tensors(self, path: Path) -> None:
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        wanted = {t.name: _INDEX if t.name == 'cell_index' else _FLOAT for t in tensors}
        if wrong := [f'{t.name} of {t.type}, expected {wanted[t.name]}' for t in tensors if t.type != wanted[t.name]]:
            raise ModelError(f'{path} has {"; ".join(wrong)}. {REMEDY}')
        found = ({i.name: list(i.shape) for i in self._session.get_inputs()},
                 {o.name: list(o.shape) for o in self._session.get_outputs()})  # fmt: skip
        for kind, said, has in zip(('inputs', 'outputs'), (self.card.inputs, self.card.outputs), found, strict=True):
            if {name: list(shape) for name, shape in said.items()} != has:
                raise ModelError(f'{path} has the {kind} {has}, its card says {said}. {REMEDY}')

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
        """Return the residual flow of each source point [m], (N, 3) float32; NaN rows outside the grid."""
        clouds = [(source, network_T_source), (target, network_T_target), *older][: self.card.num_sweeps]
        return self._form.infer(clouds, watch)


def open_session(path: Path, num_threads: int, model: bytes | None = None) -> tuple[object, dict[str, str], str]:
    """Return the session of an ONNX file on the CPU, its metadata, and the library and processor that run it.

    model: opened instead of the file.

    Raises: ModelError without ONNX Runtime, or when it cannot load the file.
    """
    try:
        import onnxruntime  # imported here because it takes 0.2 s
    except ImportError as error:
        raise ModelError(
            f'Running a model needs ONNX Runtime, which cannot be imported ({error}). '
            "Run 'pip install onnxruntime'; the ROS distributions do not package it."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors reach the caller as exceptions
    # Spinning threads take cores from the rest of the node: 43 instead of 55 of 59 sweeps get flow.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try:
        session = onnxruntime.InferenceSession(model or str(path), options, providers=['CPUExecutionProvider'])
        metadata = session.get_modelmeta().custom_metadata_map  # raises when a text is not UTF-8
    except Exception as error:  # onnxruntime raises a dozen unrelated types here
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(f'ONNX Runtime cannot load {path}: {first_line} {REMEDY}') from error
    return session, metadata, f'onnxruntime {onnxruntime.__version__} on {num_threads} CPU threads'


class _Dense:
    """Runs a dense model: pillar images in one buffer, the network, the head; large buffers are reused.

    model: how its tensors are stored, where they are uint8.
    """

    def __init__(self, session, card: ModelCard, model: EightBitModel | None = None):
        self._session, self._head = session, card.head
        self._of_images, self._of_hidden = (model.images, model.hidden) if model else (None, None)
        self._pillars = PillarImages(card.encoder, card.num_sweeps, self._of_images)
        images = self._pillars.images
        (output,) = session.get_outputs()
        self._hidden = np.zeros(output.shape, images.dtype)
        self._binding = session.io_binding()
        self._binding.bind_input('images', 'cpu', 0, images.dtype, images.shape, images.ctypes.data)
        self._binding.bind_output('hidden', 'cpu', 0, images.dtype, self._hidden.shape, self._hidden.ctypes.data)
        self._other_core = ThreadPoolExecutor(1, thread_name_prefix='points')

    def infer(self, clouds, watch):
        with watch('pillars'):
            cell_index = self._pillars.update(clouds, self._other_core)
        with watch('inference'):
            self._session.run_with_iobinding(self._binding)
            source, network_T_source = clouds[0]
            flow = np.empty((len(source), 3), np.float32)
            halves = slice(0, len(source) // 2), slice(len(source) // 2, None)

            def write(half):
                self._head.flow(
                    source[half], network_T_source, cell_index[half], self._hidden, flow[half], self._of_hidden
                )

            other_half = self._other_core.submit(write, halves[1])
            write(halves[0])
            other_half.result()
        return flow


class _Gather:
    """Runs a gather model; its inputs are pillar images, and cells and offsets of the source points in the grid."""

    def __init__(self, session, card: ModelCard):
        self._session, self._grid = session, card.grid
        self._pillars = PillarImages(card.encoder, card.num_sweeps)
        self._other_core = ThreadPoolExecutor(1, thread_name_prefix='points')

    def infer(self, clouds, watch):
        source, network_T_source = clouds[0]
        with watch('pillars'):
            cell_index = self._pillars.update(clouds, self._other_core)
            rows = np.flatnonzero(cell_index >= 0)
            cell_index = np.take(cell_index, rows)
            points = apply(network_T_source, np.take(source, rows, axis=0))
            inputs = {'cell_index': cell_index, 'offsets': self._grid.centre_offsets(points, cell_index)}
            inputs['images'] = self._pillars.images
        flow = np.full((len(source), 3), np.nan, np.float32)
        with watch('inference'):
            if len(rows):
                flow[rows] = self._session.run(['flow'], inputs)[0]
        return flow


class _Full:
    """Runs a full model; its inputs are the points inside the grid."""

    def __init__(self, session, card: ModelCard):
        self._session, self._grid, self._num_sweeps = session, card.grid, card.num_sweeps

    def infer(self, clouds, watch):
        flow = np.full((len(clouds[0][0]), 3), np.nan, np.float32)
        # A missing sweep is one point outside the grid: the dynamic axes begin at 1.
        inputs = {f'points{k}': np.full((1, 3), 1e6, np.float32) for k in range(2, self._num_sweeps)}
        with watch('pillars'):
            for k, (points, network_T_points) in enumerate(clouds):
                moved = apply(network_T_points, points)
                inside = np.flatnonzero(self._grid.assign(moved) >= 0)
                if k == 0:
                    rows = inside
                if k < 2 or len(inside):
                    inputs[f'points{k}'] = np.take(moved, inside, axis=0)
        if len(rows):
            with watch('inference'):
                flow[rows] = self._session.run(['flow'], inputs)[0]
        return flow
