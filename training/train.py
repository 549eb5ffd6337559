# SPDX-License-Identifier: Apache-2.0
"""Train a student on the exact flow of simulated clips, or on the pseudo-labels of a teacher.

usage: python3 -m training.train --config config/train_lite.yaml --labels out/labels --out runs/distilled
       python3 -m training.train --out runs/supervised
       python3 -m training.train --config config/train_zeroflow.yaml --labels LABELS --out runs/zeroflow --devices 8

Clips are simulated when first needed. Stop it at any moment and start it again: it goes on from the last checkpoint,
with the same samples that it would have seen. Several GPUs share each batch; on several computers, start it with
torchrun or under SLURM, with --nodes. Watch it with `tensorboard --logdir OUT`. The result is OUT/last.pt; export it
with `python3 -m export.to_onnx OUT/last.pt --out model.onnx`.
"""

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path

from training.clip_store import ClipStore
from training.config import load_config
from training.pair_sources import ClipSource, PairSource, split_labels
from training.schedule import TrainConfig
from zeroflow_ros.errors import ConfigError, ZeroFlowError
from zeroflow_ros.report import write_json


@dataclasses.dataclass(frozen=True)
class Computers:
    """What trains.

    accelerator: 'auto', 'cpu' or 'gpu'. devices: number on each computer, 'auto': all GPUs, or one CPU process.
    nodes: number of computers.
    """

    accelerator: str = 'auto'
    devices: str = 'auto'
    nodes: int = 1


def train(
    config: TrainConfig,
    out: Path,
    source: PairSource,
    *,
    change_config: bool = False,
    computers: Computers | None = None,
) -> Path:
    """Train to the end, from the last checkpoint in `out` if there is one; return the last checkpoint's path.

    change_config: go on with another configuration or other data than those of the checkpoint, which is written down
        in it.

    Raises: ConfigError when that checkpoint has another configuration; ZeroFlowError when training diverges.
    """
    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import TQDMProgressBar
    from pytorch_lightning.loggers import TensorBoardLogger

    from training.provenance import provenance
    from training.samples import PairSamples
    from training.strategies import build_strategy
    from training.student_training import StudentCheckpoints, StudentTraining
    from training.students import build_student

    config = config.for_pairs(len(source))
    last = out / 'last.pt'
    about = {
        **source.about, 'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': config.licence,
        'supervision': build_strategy(config).supervision(source.about['supervision']),
        'loss': config.loss if config.strategy == 'distillation' else config.strategy,
        'config': json.loads(json.dumps(dataclasses.asdict(config))), 'history': [],
    }  # fmt: skip
    start = 0
    if last.is_file():
        start, about['history'] = _continued(last, about, change_config)
        if start >= config.steps:
            return last
    logging.getLogger('pytorch_lightning').setLevel(logging.WARNING)
    computers = computers or Computers()
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    student = build_student(config.student)
    training = StudentTraining(config, student, PairSamples(config, source, student.grid))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='pytorch_lightning|lightning_fabric')  # advice; errors stay errors
        trainer = Trainer(
            accelerator=computers.accelerator, devices=computers.devices, num_nodes=computers.nodes,
            precision=config.precision, max_steps=config.steps, max_epochs=-1,
            accumulate_grad_batches=config.accumulate, gradient_clip_val=config.clip_norm or None,
            use_distributed_sampler=False,
            logger=TensorBoardLogger(out, name='', version='tensorboard', purge_step=start + 1 if start else None),
            plugins=[StudentCheckpoints(last, config.student, provenance() | about)],
            callbacks=[TQDMProgressBar()] if sys.stderr.isatty() else [], enable_progress_bar=sys.stderr.isatty(),
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        if trainer.is_global_zero:
            write_json(out / 'config.json', about['config'])
        trainer.fit(training, ckpt_path=last if start else None)
    return last


def _continued(last: Path, about: dict, change_config: bool) -> tuple[int, list]:
    """Return the step of a checkpoint and the history of its configurations."""
    from training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(last)
    before = checkpoint.provenance
    if checkpoint.lightning is None:
        raise ConfigError(f'{last} lacks the state of its training, so it cannot go on. Choose another --out.')
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
                'another --out, or give --change-config to go on with this one.'
            )
        history = [*history, {'until_step': before['step'], **{part: before.get(part) for part in parts}}]
    return before['step'], history


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.train', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--config', type=Path, help='YAML with the fields of TrainConfig that differ from the defaults')
    parser.add_argument(
        '--out', type=Path, required=True, help='folder of the checkpoint, the log and the effective config'
    )
    parser.add_argument('--labels', type=Path, help='folder of pseudo-labels; without it, simulated clips')
    parser.add_argument('--clips', type=Path, default=Path('out/clips'), help='folder of the simulated clips')
    parser.add_argument('--change-config', action='store_true', help='go on from a checkpoint of another configuration')
    parser.add_argument('--accelerator', choices=('auto', 'cpu', 'gpu'), default='auto')
    parser.add_argument('--devices', default='auto', help='GPUs, or processes on CPUs (default: all GPUs, or one)')
    parser.add_argument('--nodes', type=int, default=1, help='computers (default: 1)')
    options = parser.parse_args(arguments)
    try:
        config = load_config(TrainConfig, options.config)
        if options.labels:
            from training.pseudo_labels import LabelStore

            source, _ = split_labels(LabelStore(options.labels), config.held_out)
        else:
            source = ClipSource(ClipStore(options.clips, config.num_sweeps), config.num_clips, config.first_seed)
        computers = Computers(options.accelerator, options.devices, options.nodes)
        last = train(config, options.out, source, change_config=options.change_config, computers=computers)
    except ZeroFlowError as error:
        print(f'training.train: {error}', file=sys.stderr)
        return 1
    print(f'Trained. Export it with: python3 -m export.to_onnx {last} --out model.onnx')
    return 0


if __name__ == '__main__':
    sys.exit(main())
