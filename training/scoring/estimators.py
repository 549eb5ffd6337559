# SPDX-License-Identifier: Apache-2.0
"""One interface for every flow source: model files, checkpoints, teachers, stored labels, and two baselines."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from training.datasets import split_options
from training.datasets.pairs import DatasetPair
from zeroflow_ros import transforms
from zeroflow_ros.engines.engine import IDENTITY, Engine
from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.engines.selection import ENGINES, engine_from_spec, load_engine
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.lidar.sweep import SweepPair
from zeroflow_ros.pipeline import FlowPipeline

KINDS = 'zero, nearest, embedded, MODEL.onnx, tensorrt:MODEL.onnx, CHECKPOINT.pt, teacher:NAME, labels:STORE'


@dataclass(frozen=True)
class ModelOptions:
    """Options after the question mark of a model spec; see `FlowPipeline`."""

    refinements: int = 0
    fit_objects: bool = True


class Estimator(Protocol):
    """A source of flow for sweep pairs. name: its spec."""

    name: str

    def flow(self, item: DatasetPair) -> np.ndarray:
        """Return the residual flow of sweep 0, (N, 3) float32 [m] in ego0; NaN in rows without flow.

        It must not use `item.truth`. Raises: ZeroFlowError when there is no flow for this pair.
        """


def build_estimator(spec: str) -> Estimator:
    """Return the estimator of a spec, one of KINDS; 'embedded' is the bundled model.

    A model spec accepts ModelOptions: embedded?refinements=1, embedded?fit_objects=false.
    Raises: ConfigError for an unknown spec; ModelError or DataError when a model, checkpoint or store cannot be read.
    """
    kind, _, name = spec.partition(':')
    if spec == 'zero':
        return PointEstimator(spec, lambda points0, points1: np.zeros_like(points0))
    if spec == 'nearest':
        return PointEstimator(spec, nearest_neighbour_flow)
    if kind == 'teacher' and name:
        return TeacherEstimator(spec, name)
    if kind == 'labels' and name:
        return LabelEstimator(spec, Path(name))
    model, options = split_options(spec, ModelOptions)
    if model == 'embedded':
        return ModelEstimator(spec, load_engine(), **vars(options))
    if Path(model).suffix == '.onnx' or kind in ENGINES:
        return ModelEstimator(spec, engine_from_spec(model), **vars(options))
    if Path(model).suffix in ('.pt', '.ckpt'):
        return ModelEstimator(spec, checkpoint_engine(Path(model)), **vars(options))
    raise ConfigError(f'Unknown estimator {spec!r}; expected one of: {KINDS}.')


class ModelEstimator:
    """A model in the vehicle's pipeline, with flow for the older sweep. options: see `FlowPipeline`."""

    def __init__(self, name: str, engine: Engine, **options):
        self.name = name
        self._pipeline = FlowPipeline(engine, output_on='previous', **options)
        self._last_pair: SweepPair | None = None

    def flow(self, item: DatasetPair) -> np.ndarray:
        """Return the flow of the pipeline; its estimated level persists over consecutive pairs of a drive."""
        pair = item.pair
        if self._last_pair is None or not _continues(pair, self._last_pair):
            self._pipeline.reset()
        self._last_pair = pair
        self._pipeline.set_mount(item.mount)
        return self._pipeline.estimate(pair).velocity * np.float32(pair.dt)


def _continues(pair: SweepPair, last: SweepPair) -> bool:
    """Return whether a pair follows the last one, both seen from their older or both from their newer sweep."""
    return np.array_equal(pair.points0, last.points1, equal_nan=True) or np.array_equal(
        pair.points1, last.points0, equal_nan=True
    )


class PointEstimator:
    """A function of two clouds without ground, in ego0; ground points get zero flow."""

    def __init__(self, name: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.name = name
        self._function = function

    def flow(self, item: DatasetPair) -> np.ndarray:
        """Return the function's flow; NaN where a point is not finite."""
        pair = item.pair
        flow = np.zeros_like(pair.points0)
        finite0, finite1 = (np.isfinite(points).all(1) for points in (pair.points0, pair.points1))
        flow[~finite0] = np.nan
        rows = finite0 & ~item.is_ground0
        points1 = transforms.apply(pair.ego0_T_ego1, pair.points1[finite1 & ~item.is_ground1])
        flow[rows] = self._function(pair.points0[rows], points1)
        return flow


class TeacherEstimator:
    """A teacher with default settings, run as a label job with the default crop runs it."""

    def __init__(self, name: str, teacher: str):
        from training.teachers import build_teacher

        self.name = name
        self._teacher = build_teacher(teacher)

    def flow(self, item: DatasetPair) -> np.ndarray:
        """Return the teacher's flow: zero on the ground, NaN outside the crop."""
        from training.teachers.teacher import run_teacher
        from training.teachers.teacher_input import Crop, teacher_input

        return run_teacher(self._teacher, teacher_input(item, Crop())).flow0


class LabelEstimator:
    """Stored pseudo-labels. folder: a store that `training.label` wrote."""

    def __init__(self, name: str, folder: Path):
        from training.labels.label_store import LabelStore

        self.name = name
        self._store = LabelStore(folder)
        self._keys = frozenset(self._store.keys())

    def flow(self, item: DatasetPair) -> np.ndarray:
        """Return the labels of this pair."""
        if item.key not in self._keys:
            raise DataError(
                f'{self.name} has no labels of {item.key} (it has {len(self._keys)} pairs). Score it on the dataset '
                'that was labelled.'
            )
        return self._store.read(item.key).flow0


def nearest_neighbour_flow(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Return the vectors from points0 (N, 3) to the nearest points1 (M, 3) [m]; zero when points1 is empty."""
    from scipy.spatial import cKDTree

    if not len(points1) or not len(points0):
        return np.zeros_like(points0)
    return points1[cKDTree(points1).query(points0)[1]] - points0


class TorchEngine:
    """An engine that runs a student in plain torch. card: as its ONNX export has it. device: a torch device."""

    def __init__(self, card: ModelCard, student, device: str = 'cpu'):
        import torch

        self.card, self.runs_on = card, f'torch {torch.__version__} on {device}, {torch.get_num_threads()} CPU threads'
        self._student, self._device = student.to(device), device

    def compile_network(self) -> None:
        """Compile what lies between pillars and points with torch.compile; on a GPU it is recorded as CUDA graphs."""
        import torch

        mode = 'reduce-overhead' if str(self._device).startswith('cuda') else 'default'
        self._student.hidden = torch.compile(self._student.hidden, mode=mode)
        self.runs_on += ', network compiled'

    def infer(
        self, source, target, watch, *, network_T_source=IDENTITY, network_T_target=IDENTITY, older=()
    ) -> np.ndarray:
        """See `Engine.infer`."""
        import torch

        clouds = [(source, network_T_source), (target, network_T_target), *older][: self.card.num_sweeps]
        clouds = [transforms.apply(network_T_points, points) for points, network_T_points in clouds]
        inside = [self.card.grid.assign(points) >= 0 for points in clouds]
        flow = np.full_like(source, np.nan)
        with watch('inference'), torch.inference_mode():
            tensors = [
                torch.from_numpy(points[rows]).to(self._device) for points, rows in zip(clouds, inside, strict=True)
            ]
            flow[inside[0]] = self._student(*tensors).cpu().numpy()
        return flow


def checkpoint_engine(path: Path, device: str = 'cpu') -> TorchEngine:
    """Return an engine that runs a checkpoint.

    Raises: ModelError when it cannot be read.
    """
    from training.learning.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    student = checkpoint.build()
    card = partial(ModelCard, form='full', precision='float32', nominal_dt=0.1, dt_range=(0.04, 0.25),
                   num_sweeps=student.num_sweeps)  # fmt: skip
    return TorchEngine(
        card(name=path.stem, student=checkpoint.student, grid=student.grid, inputs={}, outputs={}, training={},
             versions={}, **checkpoint.policies),
        student, device,
    )  # fmt: skip
