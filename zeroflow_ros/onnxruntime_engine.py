# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU, with the pillar encoder beside it in numpy."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from zeroflow_ros.errors import ModelError
from zeroflow_ros.model_card import METADATA_KEY, REMEDY, ModelCard, verify_checksum
from zeroflow_ros.stopwatch import Stopwatch

_DTYPES = {
    'tensor(float)': np.float32,
    'tensor(float16)': np.float16,
    'tensor(int32)': np.int32,
    'tensor(int64)': np.int64,
}


class OnnxRuntimeEngine:
    """Runs a `dense` or a `full` model file; see `Engine`."""

    def __init__(self, path: Path, *, num_threads: int = 2):
        """Open the model file.

        Raises: ModelError when it is no ONNX file, has no valid card, or does not fit its card.
        """
        try:
            import onnxruntime  # takes 0.2 s: only where it is used
        except ImportError as error:
            raise ModelError(
                f'Running a model needs ONNX Runtime, which cannot be imported ({error}). '
                "Run 'pip install onnxruntime'; the ROS distributions do not package it."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3  # errors reach the caller as exceptions
        # Spinning threads steal the cores from the rest of the node: 43 of 59 flows against 55 in docs/benchmarks.md.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime raises a dozen unrelated types here
            first_line = str(error).strip().splitlines()[0]
            raise ModelError(f'ONNX Runtime cannot load {path}: {first_line} {REMEDY}') from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise ModelError(
                f'{path} is an ONNX file without a model card, so its frames and units are unknown. {REMEDY}'
            )
        self.card = ModelCard.from_json(metadata[METADATA_KEY])
        verify_checksum(path, self.card)
        self._check_tensors(path)
        self._encoder = self.card.encoder if self.card.form == 'dense' else None
        self._other_core = ThreadPoolExecutor(1, thread_name_prefix='pillars')
        self._encode(1, np.zeros((1, 3), np.float32))  # compiled encoders compile here, not in the first sweep
        self._dtypes = {i.name: _DTYPES[i.type] for i in self._session.get_inputs()}

    def _check_tensors(self, path: Path) -> None:
        found = ({i.name: list(i.shape) for i in self._session.get_inputs()},
                 {o.name: list(o.shape) for o in self._session.get_outputs()})  # fmt: skip
        for kind, said, has in zip(('inputs', 'outputs'), (self.card.inputs, self.card.outputs), found, strict=True):
            if {name: list(shape) for name, shape in said.items()} != has:
                raise ModelError(f'{path} has the {kind} {has}, its card says {said}. {REMEDY}')

    def infer(self, source: np.ndarray, target: np.ndarray, watch: Stopwatch) -> np.ndarray:
        """Return the residual flow of each source point [m], (N, 3) float32; NaN rows outside the grid."""
        flow = np.full((len(source), 3), np.nan, np.float32)
        with watch('pillars'):
            target_half = self._other_core.submit(self._encode, 1, target)
            rows, feed = self._encode(0, source)
            feed |= target_half.result()[1]
        if len(rows) == 0:
            return flow
        with watch('inference'):
            feed = {name: feed[name].astype(dtype, copy=False) for name, dtype in self._dtypes.items()}
            flow[rows] = self._session.run(['flow'], feed)[0]
        return flow

    def _encode(self, number: int, points: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (row numbers of the points inside the grid, what the network takes of cloud `number`)."""
        grid = self.card.grid
        cells = grid.assign(points)
        rows = np.flatnonzero(cells >= 0)
        points, cells = np.take(points, rows, axis=0), np.take(cells, rows)
        if self._encoder is None:
            return rows, {f'points{number}': points}
        image = self._encoder.encode(points, cells)[None]
        if number == 1:
            return rows, {'image1': image}
        return rows, {'image0': image, 'cell0': cells, 'offset0': grid.centre_offsets(points, cells)}
