# SPDX-License-Identifier: Apache-2.0
"""Run a training to its end; resume from the last checkpoint."""

import dataclasses
import json
import logging
import warnings
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from training.learning.mono_train_config import MonoTrainConfig
from training.learning.pair_sources import PairSource
from training.learning.stereo_sources import StereoSource
from training.learning.stereo_train_config import StereoTrainConfig
from training.learning.train_config import TrainConfig
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.views.report import write_json

if TYPE_CHECKING:
    from training.learning.mono_samples import WindowSource
    from training.learning.start_model import StartModel

    Config = TrainConfig | StereoTrainConfig | MonoTrainConfig
    Source = PairSource | StereoSource | WindowSource

_BATCHES_OF_STATISTICS = 4


@dataclasses.dataclass(frozen=True)
class TrainerDevices:
    """Hardware that runs the training.

    accelerator: 'auto', 'cpu' or 'gpu'. devices: number per computer; 'auto': all GPUs, or one CPU process.
    nodes: number of computers.
    """

    accelerator: str = 'auto'
    devices: str = 'auto'
    nodes: int = 1


def train(
    config: 'Config',
    out: Path,
    source: 'Source',
    *,
    change_config: bool = False,
    devices: TrainerDevices | None = None,
    start_model: 'StartModel | None' = None,
) -> Path:
    """Train to the end, resuming from the last checkpoint in `out` if there is one; return the last checkpoint's path.

    start_model: its weights are the initial ones, unless the training resumes; None: random weights.
    change_config: allow a configuration or data that differ from the checkpoint's; the change is recorded in the next
        checkpoints.
    Raises: ConfigError when that checkpoint has another configuration, or the start model is another student;
        ZeroFlowError when training diverges.
    """
    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.loggers import TensorBoardLogger
    from pytorch_lightning.utilities import rank_zero_only

    from training.learning.lightning_module import StudentCheckpointIO
    from training.learning.strategies import build_strategy
    from training.learning.training_progress import TrainingProgress
    from training.provenance import provenance
    from training.students import build_student

    config = config.for_pairs(len(source))
    last = out / 'last.pt'
    is_lidar = isinstance(config, TrainConfig)
    policies = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground'} if is_lidar else {}
    about = {
        **source.about, **policies, 'licence': config.licence,
        'supervision': build_strategy(config).supervision(source.about['supervision']),
        'loss': config.strategy if config.strategy == 'seflow' else getattr(config, 'loss', config.strategy),
        'config': json.loads(json.dumps(dataclasses.asdict(config))), 'history': [],
    }  # fmt: skip
    start = 0
    if last.is_file():
        start, from_checkpoint = _continued(last, about, change_config)
        about |= from_checkpoint
        if start >= config.steps:
            return last
    elif start_model:
        from training.learning.start_model import check_start

        check_start(start_model, config)
        about['start'] = start_model.about
    if 'start' in about and config.licence == TrainConfig.licence:
        about['licence'] = about['start']['licence']
    logging.getLogger('pytorch_lightning').setLevel(logging.WARNING)
    devices = devices or TrainerDevices()
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    student = build_student(config.student)
    samples, module = _samples_and_module(config, source, student)
    if start_model and not start:
        _load_weights(start_model, student, samples)
    training = module(config, student, samples)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='pytorch_lightning|lightning_fabric')  # tuning advice
        trainer = Trainer(
            accelerator=devices.accelerator, devices=devices.devices, num_nodes=devices.nodes,
            precision=config.precision, max_steps=config.steps, max_epochs=-1,
            accumulate_grad_batches=config.accumulate, gradient_clip_val=config.clip_norm or None,
            use_distributed_sampler=False,
            logger=TensorBoardLogger(out, name='', version='tensorboard', purge_step=start + 1 if start else None),
            plugins=[StudentCheckpointIO(last, config.student, provenance() | about)],
            callbacks=[TrainingProgress(config)] if rank_zero_only.rank == 0 else [], enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        if trainer.is_global_zero:
            write_json(out / 'config.json', about['config'])
        trainer.fit(training, ckpt_path=last if start else None)
    return last


def _samples_and_module(config: 'Config', source: 'Source', student):
    """Return the samples of a source, and the class of the module that trains on them."""
    if isinstance(config, MonoTrainConfig):
        from training.learning.mono_module import MonoModule
        from training.learning.mono_samples import MonoSamples

        return MonoSamples(config, source, student), MonoModule
    if isinstance(config, StereoTrainConfig):
        from training.learning.stereo_module import StereoModule
        from training.learning.stereo_samples import StereoSamples

        return StereoSamples(config, source, student), StereoModule
    from training.learning.lightning_module import StudentModule
    from training.learning.samples import PairSamples

    return PairSamples(config, source, student.grid), StudentModule


def _load_weights(start_model: 'StartModel', student, samples) -> None:
    """Load the weights of a start model into the student, and the norm statistics of the first batches of samples."""
    from training.learning.batch import collate
    from training.learning.start_model import set_norm_statistics

    student.load_state_dict(start_model.checkpoint.state_dict)
    if not isinstance(samples.config, TrainConfig):
        return  # the norms of these students follow what a checkpoint was trained on
    grid, student.grid = student.grid, samples.config.phase(0).grid(samples.grid)
    batches = islice(samples.batches(0), _BATCHES_OF_STATISTICS)
    set_norm_statistics(student, (collate([samples[number] for number in numbers]) for numbers in batches))
    student.grid = grid


def _continued(last: Path, about: dict, change_config: bool) -> tuple[int, dict]:
    """Return the step of a checkpoint, and its provenance that stays: the history of its configurations, and its start.

    Raises: ConfigError as `train` does.
    """
    from training.learning.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(last)
    before = checkpoint.provenance
    if checkpoint.lightning is None:
        raise ConfigError(f'{last} has no training state and cannot be resumed. Choose another --out.')
    history = before.get('history', [])
    optimizer = before.get('config', {}).get('optimizer', 'adamw')
    if optimizer != about['config']['optimizer']:
        raise ConfigError(
            f'{last} was trained with optimizer {optimizer}, whose state {about["config"]["optimizer"]} cannot use. '
            'Choose another --out.'
        )
    parts = ('config', 'data', 'supervision')
    if any(before.get(part) != about[part] for part in parts):
        if not change_config:
            different = [part for part in parts if before.get(part) != about[part]]
            raise ConfigError(
                f'{last} was trained with another configuration or other data ({", ".join(different)} differ). Choose '
                'another --out, or add --change-config to resume with the new one.'
            )
        history = [*history, {'until_step': before['step'], **{part: before.get(part) for part in parts}}]
    kept = {name: before[name] for name in ('start',) if name in before}
    return before['step'], {'history': history, **kept}
