# SPDX-License-Identifier: Apache-2.0
"""From recorded drives to a model file, without labels: label, train, evaluate, export.

usage: python3 -m training.distill drives/*.mcap --out model.onnx
       python3 -m training.distill drives/*.mcap --strategy seflow --out model.onnx
       python3 -m training.distill simulation:0-99 --teacher fast_nsf --steps 500 --work out/try --out out/try.onnx

Run the same command again after any interruption: a stage whose result is whole and was made from the same inputs is
not repeated, and a stage that was interrupted goes on where it stopped. Drives: rosbags, or what training/datasets
reads. On several computers, run `training.label` and `training.train` by themselves.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from training.config import load_config
from training.learning.stage_cache import Checksums, locked, run_program, stage
from training.learning.strategies import STRATEGIES, build_strategy
from training.learning.train_config import TrainConfig
from zeroflow_ros.errors import DataError, ZeroFlowError
from zeroflow_ros.views.report import write_json

_MOST_FAILED = 0.1  # share of the pairs that may have no label: the first sweeps of a drive, a gap in its odometry


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What to distill.

    drives: paths, or specs of training.datasets. out: the model file; its 8-bit form lies beside it. work: folder of
    all results on the way. teacher, teacher_config: as of training.label. config: of the training. processes: that
    label. devices: that train. calibration_pairs: sweep pairs that set the ranges of the 8-bit form; 0: no such form.
    """

    drives: tuple[str, ...]
    out: Path
    work: Path
    teacher: str = 'rigid'
    teacher_config: Path | None = None
    config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    processes: int = 1
    devices: str = 'auto'
    calibration_pairs: int = 32

    @property
    def is_of_bags(self) -> bool:
        """Whether every drive is the path of a file or folder."""
        return all(Path(drive).exists() for drive in self.drives)


def distill(job: Distillation, program: Callable[..., int] = run_program) -> list[Path]:
    """Make what is not there yet, and return the model files.

    program: runs `python -m` with these words and returns its exit status.
    Raises: ZeroFlowError when a stage fails; DataError when another distillation uses the work folder.
    """
    with locked(job.work):
        checksum = Checksums(job.work / 'checksums.json')
        labels = stage(job.work, 'label', _label_inputs(job, checksum), lambda folder: _label(job, folder, program),
                       results=('store.json', '*.label'))  # fmt: skip
        config = dataclasses.asdict(job.config)
        trained = stage(job.work, 'train', {'labels': labels.checksum, 'config': config},
                        lambda folder: _train(job, labels.folder, folder, program), results=('last.pt',))  # fmt: skip
        last = trained.folder / 'last.pt'
        if job.config.held_out:
            scored = stage(job.work, 'evaluate', {'labels': labels.checksum, 'checkpoint': trained.checksum},
                           lambda folder: _evaluate(last, labels.folder, job.config.held_out, folder),
                           results=('agreement.json',))  # fmt: skip
            print((scored.folder / 'agreement.json').read_text(), end='')
        inputs = {'checkpoint': trained.checksum, 'calibration_pairs': job.calibration_pairs, 'drives': job.drives}
        exported = stage(job.work, 'export', inputs, lambda folder: _export(job, last, folder, program),
                         results=('model*.onnx',))  # fmt: skip
        models = []
        for made in sorted(exported.folder.glob('model*.onnx')):
            model = job.out.with_name(made.name.replace('model', job.out.stem, 1))
            if not model.is_file() or checksum(model) != checksum(made):
                model.parent.mkdir(parents=True, exist_ok=True)
                temporary = model.with_name(f'.{model.name}.partial')
                shutil.copyfile(made, temporary)
                os.replace(temporary, model)
            models.append(model)
        return models


def _label_inputs(job: Distillation, checksum: Checksums) -> dict:
    drives = [[drive, checksum(Path(drive)) if Path(drive).exists() else ''] for drive in job.drives]
    settings = job.teacher_config.read_text() if job.teacher_config else ''
    return {'drives': drives, 'teacher': job.teacher, 'teacher_config': settings}


def _label(job: Distillation, folder: Path, program: Callable[..., int]) -> None:
    config = ['--config', job.teacher_config] if job.teacher_config else []
    status = program('training.label', *job.drives, '--teacher', job.teacher, *config, '--out', folder,
                     '--processes', job.processes)  # fmt: skip
    if not status:
        return
    report = folder / 'jobs' / 'shard_1_of_1.json'
    counts = json.loads(report.read_text()) if report.is_file() and status == 1 else {}
    good, bad = counts.get('done', 0) + counts.get('kept', 0), counts.get('failed', 0)
    if not bad or bad > _MOST_FAILED * (good + bad):
        raise DataError(f'Labelling ended with status {status}; {bad} of {good + bad} pairs failed. See above.')
    print(f'Going on without the {bad} of {good + bad} pairs that could not be labelled.', file=sys.stderr)


def _train(job: Distillation, labels: Path, folder: Path, program: Callable[..., int]) -> None:
    config = folder / 'config.yaml'
    config.write_text(yaml.safe_dump(dataclasses.asdict(job.config), sort_keys=False))
    _must(program('training.train', '--labels', labels, '--config', config, '--out', folder,
                  '--devices', job.devices), 'Training')  # fmt: skip


def _evaluate(last: Path, labels: Path, held_out: float, folder: Path) -> None:
    from training.labels.label_store import LabelStore
    from training.learning.checkpoint import load_checkpoint
    from training.learning.pair_sources import split_labels
    from training.scoring.label_metrics import agreement

    _, source = split_labels(LabelStore(labels), held_out)
    write_json(folder / 'agreement.json', agreement(load_checkpoint(last).build(), source))


def _export(job: Distillation, last: Path, folder: Path, program: Callable[..., int]) -> None:
    model = folder / 'model.onnx'
    _must(program('export.to_onnx', last, '--out', model, '--forms', 'vehicle'), 'Exporting')
    if job.calibration_pairs:
        bags = ['--bag', *job.drives] if job.is_of_bags else []
        _must(program('export.quantize', model, '--out', folder / 'model_int8.onnx', *bags,
                      '--pairs', job.calibration_pairs), 'Quantising')  # fmt: skip


def _must(status: int, what: str) -> None:
    if status:
        raise ZeroFlowError(f'{what} ended with status {status}. See above; the same command goes on from there.')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'training.distill', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('drives', nargs='+', metavar='DRIVE', help='rosbag, or a spec as simulation:0-99')
    parser.add_argument('--out', type=Path, required=True, help='model file; the 8-bit form lies beside it')
    parser.add_argument('--work', type=Path, default=Path('out/distill'), help='all that is made on the way '
                        '(default: %(default)s)')  # fmt: skip
    parser.add_argument('--strategy', choices=STRATEGIES, help='how the student learns (default: as in --config); '
                        'seflow: no teacher says how anything moves')  # fmt: skip
    parser.add_argument('--teacher', help='method that labels (default: rigid; with seflow: dufomap, on what moves)')
    parser.add_argument('--teacher-config', type=Path, help='YAML with settings of the teacher')
    parser.add_argument('--config', type=Path, default=Path(__file__).parents[1] / 'config' / 'train_lite.yaml',
                        help='YAML of the training (default: config/train_lite.yaml)')  # fmt: skip
    parser.add_argument('--steps', type=int, help='of the training; its phases keep their shares')
    parser.add_argument('--held-out', type=float, metavar='SHARE', help='of the pairs, not trained on but scored on')
    parser.add_argument('--processes', type=int, default=1, help='that label at once (default: 1)')
    parser.add_argument('--devices', default='auto', help='GPUs to train on (default: all)')
    parser.add_argument('--calibration-pairs', type=int, default=32, metavar='PAIRS',
                        help='sweep pairs to make the 8-bit form with; 0: no such form (default: 32)')  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        config = load_config(TrainConfig, options.config)
        if options.steps is not None:
            config = config.with_steps(options.steps)
        if options.held_out is not None:
            config = dataclasses.replace(config, held_out=options.held_out)
        if options.strategy is not None:
            config = dataclasses.replace(config, strategy=options.strategy)
        teacher = options.teacher or build_strategy(config).teacher
        models = distill(Distillation(
            tuple(options.drives), options.out, options.work, teacher, options.teacher_config, config,
            options.processes, options.devices, options.calibration_pairs,
        ))  # fmt: skip
    except (ZeroFlowError, OSError) as error:
        print(f'training.distill: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('training.distill: stopped; run the same command to go on.', file=sys.stderr)
        return 130
    for model in models:
        print(f'{model}: run it with')
        print(f'  ros2 launch zeroflow_ros flow.launch.py model_path:={model.resolve()} input_topic:=/YOUR/POINTS')
    return 0


if __name__ == '__main__':
    sys.exit(main())
