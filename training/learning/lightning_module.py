# SPDX-License-Identifier: Apache-2.0
"""PyTorch Lightning module of a student: training step, logging, and checkpoints in our format."""

from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning
import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from training.learning.batch import Batch, collate
from training.learning.checkpoint import Checkpoint, load_checkpoint
from training.learning.muon import Muon
from training.learning.samples import PairSamples
from training.learning.train_config import TrainConfig
from training.students import PillarStudent
from zeroflow_ros.errors import ZeroFlowError

_PREFIX = 'student.'  # prefix of the student's weights in the LightningModule's state_dict


class StudentModule(pytorch_lightning.LightningModule):
    """Trains a student on samples, forward and backward in time in one step."""

    collate = staticmethod(collate)  # samples to a batch

    def __init__(self, config: TrainConfig, student: PillarStudent, samples: PairSamples):
        super().__init__()
        self.config, self.samples = config, samples
        self.student = student.to(memory_format=torch.channels_last).train()
        self._sums: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser; `training_step` sets the learning rate at each step."""
        settings = {'lr': self.config.lr, 'weight_decay': self.config.weight_decay}
        if self.config.optimizer == 'muon':
            return Muon(self.student, **settings)
        return torch.optim.AdamW(self.student.parameters(), **settings)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of this process's batches, starting at the next step."""
        trainer, workers = self.trainer, self.config.num_workers
        batches = self.samples.batches(trainer.global_step, rank=trainer.global_rank, world=trainer.world_size)
        return DataLoader(
            self.samples, batch_sampler=_EndlessBatchSampler(batches), num_workers=workers,
            collate_fn=self.collate,
            prefetch_factor=4 if workers else None, pin_memory=trainer.strategy.root_device.type == 'cuda',
        )  # fmt: skip

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of a batch. Raises: ZeroFlowError when it is not finite."""
        step = self.trainer.global_step
        for group in self.trainer.optimizers[0].param_groups:
            group['lr'] = self.config.learning_rate(step)
        loss, sums = self.loss(step, batch)
        if not torch.isfinite(loss):
            raise ZeroFlowError(
                f'The loss of step {step} is {loss.item()}; start again with a lower lr than {self.config.lr}.'
            )
        sums |= {'loss': loss.detach(), 'batches': torch.ones_like(loss)}
        self._sums = {name: self._sums.get(name, 0) + value for name, value in sums.items()}
        return loss

    def loss(self, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and the sums of error and flow of moving points for the log.

        Other sensors log parts of their loss: values named loss/..., of which the log gets the mean.
        """
        self.student.grid = self.config.phase(step).grid(self.samples.grid)
        predicted = self.student.forward_both(batch.clouds, batch.rows, batch.used)
        flow = torch.cat([flow for both in predicted for flow in both]).detach()
        length = torch.linalg.vector_norm(batch.flow, dim=1)
        moves = length > self.config.mover_speed * batch.dt
        error = torch.linalg.vector_norm(flow - batch.flow, dim=1)
        return self.samples.strategy.loss(predicted, batch), {'error': error[moves].sum(), 'flow': length[moves].sum()}

    def on_train_batch_end(self, outputs, batch: Batch, batch_index: int) -> None:
        """Log every `log_every` and save every `save_every` steps."""
        step, config = self.trainer.global_step, self.config
        if (batch_index + 1) % config.accumulate:
            return
        if step % config.log_every == 0 or step == config.steps:
            sums, self._sums = {name: float(value) for name, value in self._sums.items()}, {}
            scores = {'loss': sums['loss'] / sums['batches'], 'lr': config.learning_rate(step - 1)}
            if sums.get('flow'):
                scores['mover_normalised_epe'] = sums['error'] / sums['flow']
            scores |= {name: value / sums['batches'] for name, value in sums.items() if name.startswith('loss/')}
            self.logger.log_metrics(scores, step)
        if step % config.save_every == 0 or step == config.steps:
            self.trainer.save_checkpoint(self.trainer.strategy.checkpoint_io.path)


class StudentCheckpointIO(CheckpointIO):
    """Saves Lightning's state as our `Checkpoint`, which all programs read.

    path: the file. student: name. provenance: stored in each checkpoint, together with the step.
    """

    def __init__(self, path: Path, student: str, provenance: dict):
        self.path, self.student, self.provenance = path, student, provenance

    def save_checkpoint(self, checkpoint: dict, path: Path, storage_options=None) -> None:
        """Convert Lightning's checkpoint and write it."""
        state = {key.removeprefix(_PREFIX): value for key, value in checkpoint.pop('state_dict').items()}
        [optimizer] = checkpoint.pop('optimizer_states')
        provenance = self.provenance | {'step': checkpoint['global_step']}
        Checkpoint(self.student, state, provenance, optimizer, checkpoint).save(path)

    def load_checkpoint(self, path: Path, map_location=None, weights_only: bool | None = None) -> dict:
        """Read a checkpoint and return it as Lightning saved it."""
        checkpoint = load_checkpoint(path)
        state = {_PREFIX + key: value for key, value in checkpoint.state_dict.items()}
        return {'state_dict': state, 'optimizer_states': [checkpoint.optimizer], **checkpoint.lightning}

    def remove_checkpoint(self, path: Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class _EndlessBatchSampler:
    """Batch sampler without a length: the trainer stops at its number of steps."""

    def __init__(self, batches: Iterator):
        self._batches = batches

    def __iter__(self) -> Iterator:
        return self._batches
