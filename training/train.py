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
import sys
from pathlib import Path

from training.config import load_config
from training.datasets.clip_store import ClipStore
from training.learning.pair_sources import ClipSource, split_labels
from training.learning.train_config import TrainConfig
from training.learning.training_run import Computers, train
from zeroflow_ros.errors import ZeroFlowError


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
            from training.labels.label_store import LabelStore

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
