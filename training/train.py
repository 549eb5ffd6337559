# SPDX-License-Identifier: Apache-2.0
"""Train a student on the ground-truth flow of simulated clips, or on the pseudo-labels of a teacher.

usage: python3 -m training.train --config config/train_lite.yaml --labels out/labels --out runs/distilled
       python3 -m training.train --out runs/supervised
       python3 -m training.train --config config/train_zeroflow.yaml --labels LABELS --out runs/zeroflow --devices 8
       python3 -m training.train --start embedded --labels out/labels --out runs/mine
       python3 -m training.train --config config/train_stereo_lite.yaml --dataset DATASET --out runs/stereo
       python3 -m training.train --config config/train_mono_lite.yaml --dataset DATASET --out runs/mono

Clips are simulated when first needed. A stopped training resumes from its last checkpoint with the same samples: run
the same command again. --start adapts a trained model, with the settings in config/finetune.yaml unless --config names
others. Several GPUs share each batch; for several computers, start it with torchrun or SLURM and --nodes. Monitor it
with `tensorboard --logdir OUT`. The result is OUT/last.pt; export it with
`python3 -m export.to_onnx OUT/last.pt --out model.onnx`.

Students for stereo cameras learn from the ground truth of one DATASET or more, such as
stereo_simulation:0-1999@out/stereo, from --labels of the stereo teacher, or from both. Students of one camera learn
from the stereo images of drives (--dataset), or from --labels of the teacher lidar.
"""

import argparse
import sys
from pathlib import Path

from training.learning.mono_sources import WindowSource, window_source
from training.learning.mono_train_config import MonoTrainConfig
from training.learning.pair_sources import RehearsalSource, clip_source, split_labels
from training.learning.stereo_sources import StereoSource, split_datasets
from training.learning.stereo_train_config import StereoTrainConfig, load_train_config
from training.learning.strategies import sweeps_per_sample
from training.learning.training_run import TrainerDevices, train
from zeroflow_ros.errors import ConfigError, ZeroFlowError


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.train', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--config',
        type=Path,
        help='YAML with the fields of TrainConfig, StereoTrainConfig or MonoTrainConfig that differ from the defaults',
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='folder for the checkpoint, the log and the effective config'
    )
    parser.add_argument(
        '--start', metavar='MODEL', help='.onnx file, checkpoint, or embedded; ignored when resuming (default: none)'
    )
    parser.add_argument('--labels', type=Path, help='folder of pseudo-labels (default: train on simulated clips)')
    parser.add_argument(
        '--dataset', nargs='+', metavar='DATASET', help='stereo pairs with ground truth, for students of stereo cameras'
    )
    parser.add_argument(
        '--clips', type=Path, default=Path('out/clips'), help='folder for simulated clips (default: out/clips)'
    )
    parser.add_argument(
        '--change-config', action='store_true', help='resume from a checkpoint of another configuration'
    )
    parser.add_argument(
        '--accelerator', choices=('auto', 'cpu', 'gpu'), default='auto', help='hardware to train on (default: auto)'
    )
    parser.add_argument(
        '--devices', default='auto', help='number of GPUs, or of CPU processes (default: all GPUs, or one process)'
    )
    parser.add_argument('--nodes', type=int, default=1, help='number of computers (default: 1)')
    options = parser.parse_args(arguments)
    try:
        start = None
        if options.start:
            from training.learning.start_model import load_start, start_config

            start = load_start(options.start)
        config = start_config(start, options.config) if start else load_train_config(options.config)
        is_stereo = isinstance(config, StereoTrainConfig | MonoTrainConfig)  # what it learns from
        if options.dataset and not is_stereo:
            raise ConfigError(
                f'--dataset is for students of cameras; {config.student} learns from --labels, or from clips.'
            )
        if is_stereo and not (options.dataset or options.labels):
            raise ConfigError(
                f'{config.student} learns from stereo pairs: give --dataset with ground truth, or --labels of a '
                "store that 'python3 -m training.label --teacher stereo' wrote."
            )
        window = 0 if is_stereo else sweeps_per_sample(config)
        if is_stereo:
            source = _stereo_source(config, options.dataset, options.labels)
            print(f'Training on {source.about["data"]}.', file=sys.stderr)
        elif options.labels:
            from training.labels.label_store import LabelStore

            source, _ = split_labels(LabelStore(options.labels), config.held_out, window)
            if config.rehearsal:
                source = RehearsalSource(source, clip_source(options.clips, config), config.rehearsal)
            print(f'Training on {source.about["data"]}.', file=sys.stderr)
        else:
            source = clip_source(options.clips, config)
        devices = TrainerDevices(options.accelerator, options.devices, options.nodes)
        last = train(config, options.out, source, change_config=options.change_config, devices=devices,
                     start_model=start)  # fmt: skip
    except ZeroFlowError as error:
        print(f'training.train: {error}', file=sys.stderr)
        return 1
    print(f'Trained. Export it with: python3 -m export.to_onnx {last} --out model.onnx')
    return 0


def _stereo_source(
    config: StereoTrainConfig | MonoTrainConfig, specs: list[str] | None, labels: Path | None
) -> StereoSource | WindowSource:
    """Return the pairs, or windows, to train on, with ground truth or stored labels where there are some."""
    from training.datasets import STEREO, open_dataset
    from training.labels.stereo_label_store import StereoLabelStore

    datasets = [open_dataset(spec, (STEREO,)) for spec in specs or ()]
    if labels:
        datasets.append(StereoLabelStore(labels))
    if isinstance(config, MonoTrainConfig):
        return window_source(datasets, config)
    return split_datasets(datasets, config.held_out)[0]


if __name__ == '__main__':
    sys.exit(main())
