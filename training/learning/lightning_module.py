# SPDX-License-Identifier: Apache-2.0
"""How pytorch-lightning trains a student: the step, the log, and checkpoints in our format."""

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

_PREFIX = 'student.'  # of the student's weights among those of the LightningModule


class StudentTraining(pytorch_lightning.LightningModule):
    """Trains a student on samples, both directions of time in one step."""

    def __init__(self, config: TrainConfig, student: PillarStudent, samples: PairSamples):
        super().__init__()
        self.config, self.samples = config, samples
        self.student = student.to(memory_format=torch.channels_last).train()
        self._sums: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser; the learning rate is set at each step."""
        settings = {'lr': self.config.lr, 'weight_decay': self.config.weight_decay}
        if self.config.optimizer == 'muon':
            return Muon(self.student, **settings)
        return torch.optim.AdamW(self.student.parameters(), **settings)

    def train_dataloader(self) -> DataLoader:
        """Return the batches of this process from the next step on."""
        trainer, workers = self.trainer, self.config.num_workers
        batches = self.samples.batches(trainer.global_step, rank=trainer.global_rank, world=trainer.world_size)
        return DataLoader(
            self.samples, batch_sampler=_Endless(batches), num_workers=workers, collate_fn=collate,
            prefetch_factor=4 if workers else None, pin_memory=trainer.strategy.root_device.type == 'cuda',
        )  # fmt: skip

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of a batch. Raises: ZeroFlowError when it is not finite."""
        step = self.trainer.global_step
        for group in self.trainer.optimizers[0].param_groups:
            group['lr'] = self.config.learning_rate(step)
        self.student.grid = self.config.phase(step).grid(self.samples.grid)
        predicted = self.student.forward_both(batch.clouds, batch.rows)
        flow = torch.cat([flow for both in predicted for flow in both])
        loss = self.samples.strategy.loss(predicted, batch)
        if not torch.isfinite(loss):
            raise ZeroFlowError(
                f'The loss of step {step} is {loss.item()}; start again with a lower lr than {self.config.lr}.'
            )
        self._count(loss.detach(), flow.detach(), batch)
        return loss

    def _count(self, loss: Tensor, flow: Tensor, batch: Batch) -> None:
        """Add to what the next line of the log says: the loss, and errors and flow of moving points."""
        length = torch.linalg.vector_norm(batch.flow, dim=1)
        moves = length > self.config.mover_speed * batch.dt
        error = torch.linalg.vector_norm(flow - batch.flow, dim=1)
        sums = {
            'loss': loss,
            'batches': torch.ones_like(loss),
            'error': error[moves].sum(),
            'flow': length[moves].sum(),
        }
        self._sums = {name: self._sums.get(name, 0) + value for name, value in sums.items()}

    def on_train_batch_end(self, outputs, batch: Batch, batch_index: int) -> None:
        """Log and save every so many steps."""
        step, config = self.trainer.global_step, self.config
        if (batch_index + 1) % config.accumulate:
            return
        if step % config.log_every == 0 or step == config.steps:
            sums, self._sums = {name: float(value) for name, value in self._sums.items()}, {}
            scores = {'loss': sums['loss'] / sums['batches'], 'lr': config.learning_rate(step - 1)}
            if sums['flow']:
                scores['mover_normalised_epe'] = sums['error'] / sums['flow']
            self.logger.log_metrics(scores, step)
        if step % config.save_every == 0 or step == config.steps:
            self.trainer.save_checkpoint(self.trainer.strategy.checkpoint_io.path)


class StudentCheckpoints(CheckpointIO):
    """Keeps what Lightning saves in a Checkpoint of ours, which every other program reads.

    path: of the file. student: name. provenance: of each checkpoint; the step is added.
    """

    def __init__(self, path: Path, student: str, provenance: dict):
        self.path, self.student, self.provenance = path, student, provenance

    def save_checkpoint(self, checkpoint: dict, path: Path, storage_options=None) -> None:
        """Write what Lightning gives."""
        state = {key.removeprefix(_PREFIX): value for key, value in checkpoint.pop('state_dict').items()}
        [optimizer] = checkpoint.pop('optimizer_states')
        provenance = self.provenance | {'step': checkpoint['global_step']}
        Checkpoint(self.student, state, provenance, optimizer, checkpoint).save(path)

    def load_checkpoint(self, path: Path, map_location=None, weights_only: bool | None = None) -> dict:
        """Return what Lightning gave."""
        checkpoint = load_checkpoint(path)
        state = {_PREFIX + key: value for key, value in checkpoint.state_dict.items()}
        return {'state_dict': state, 'optimizer_states': [checkpoint.optimizer], **checkpoint.lightning}

    def remove_checkpoint(self, path: Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class _Endless:
    """Batches without a number of them: what ends a training is its number of steps."""

    def __init__(self, batches: Iterator):
        self._batches = batches

    def __iter__(self) -> Iterator:
        return self._batches
