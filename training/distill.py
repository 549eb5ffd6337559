# SPDX-License-Identifier: Apache-2.0
"""Make a model file from recorded drives without human labels: label, train, evaluate, export.

usage: python3 -m training.distill drives/*.mcap --out model.onnx
       python3 -m training.distill drives/*.mcap --strategy seflow --out model.onnx
       python3 -m training.distill simulation:0-99 --teacher fast_nsf --steps 500 --work out/try --out out/try.onnx

Run the same command again after any interruption: a finished stage with the same inputs is not repeated, and an
interrupted stage resumes. Drives: rosbags, or any dataset spec of training.datasets. To use several computers, run
`training.label` and `training.train` separately.
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
from training.learning.stage_cache import Checksums, lock_work_folder, run_cached_stage, run_program
from training.learning.strategies import STRATEGIES, build_strategy
from training.learning.train_config import TrainConfig
from zeroflow_ros.errors import DataError, ZeroFlowError
from zeroflow_ros.views.report import write_json

_MOST_FAILED = 0.1  # accepted share of pairs without label, e.g. the first sweeps of a drive or gaps in odometry


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A distillation job.

    drives: paths, or dataset specs. out: the model file; its 8-bit form is written beside it. work: folder of all
    intermediate results. teacher, teacher_config: as in training.label. config: of the training. processes: number of
    labelling processes. devices: GPUs to train on. calibration_pairs: sweep pairs that calibrate the 8-bit form; 0: no
    8-bit form.
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
    def drives_are_paths(self) -> bool:
        """Whether every drive is the path of an existing file or folder."""
        return all(Path(drive).exists() for drive in self.drives)


def distill(job: Distillation, program: Callable[..., int] = run_program) -> list[Path]:
    """Run all stages that are not done yet, and return the model files.

    program: runs `python -m` with the given words and returns the exit status.
    Raises: ZeroFlowError when a stage fails; DataError when another distillation uses the work folder.
    """
    with lock_work_folder(job.work):
        checksum = Checksums(job.work / 'checksums.json')
        labels = run_cached_stage(
            job.work, 'label', _label_inputs(job, checksum), lambda folder: _label(job, folder, program),
            results=('store.json', '*.label'),
        )  # fmt: skip
        config = dataclasses.asdict(job.config)
        trained = run_cached_stage(
            job.work, 'train', {'labels': labels.checksum, 'config': config},
            lambda folder: _train(job, labels.folder, folder, program), results=('last.pt',),
        )  # fmt: skip
        last = trained.folder / 'last.pt'
        if job.config.held_out:
            scored = run_cached_stage(
                job.work, 'evaluate', {'labels': labels.checksum, 'checkpoint': trained.checksum},
                lambda folder: _evaluate(last, labels.folder, job.config.held_out, folder),
                results=('agreement.json',),
            )  # fmt: skip
            print((scored.folder / 'agreement.json').read_text(), end='')
        inputs = {'checkpoint': trained.checksum, 'calibration_pairs': job.calibration_pairs, 'drives': job.drives}
        exported = run_cached_stage(
            job.work, 'export', inputs, lambda folder: _export(job, last, folder, program), results=('model*.onnx',),
        )  # fmt: skip
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
    print(f'Continuing without the {bad} of {good + bad} pairs that could not be labelled.', file=sys.stderr)


def _train(job: Distillation, labels: Path, folder: Path, program: Callable[..., int]) -> None:
    config = folder / 'config.yaml'
    config.write_text(yaml.safe_dump(dataclasses.asdict(job.config), sort_keys=False))
    _check_status(program('training.train', '--labels', labels, '--config', config, '--out', folder,
                  '--devices', job.devices), 'Training')  # fmt: skip


def _evaluate(last: Path, labels: Path, held_out: float, folder: Path) -> None:
    from training.labels.label_store import LabelStore
    from training.learning.checkpoint import load_checkpoint
    from training.learning.pair_sources import split_labels
    from training.scoring.label_metrics import score_against_labels

    _, source = split_labels(LabelStore(labels), held_out)
    write_json(folder / 'agreement.json', score_against_labels(load_checkpoint(last).build(), source))


def _export(job: Distillation, last: Path, folder: Path, program: Callable[..., int]) -> None:
    model = folder / 'model.onnx'
    _check_status(program('export.to_onnx', last, '--out', model, '--forms', 'vehicle'), 'Exporting')
    if job.calibration_pairs:
        bags = ['--bag', *job.drives] if job.drives_are_paths else []
        _check_status(program('export.quantize', model, '--out', folder / 'model_int8.onnx', *bags,
                      '--pairs', job.calibration_pairs), 'Quantising')  # fmt: skip


def _check_status(status: int, what: str) -> None:
    if status:
        raise ZeroFlowError(f'{what} ended with status {status}. See above; the same command resumes there.')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'training.distill', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('drives', nargs='+', metavar='DRIVE', help='rosbag, or a dataset spec such as simulation:0-99')
    parser.add_argument('--out', type=Path, required=True, help='model file; the 8-bit form is written beside it')
    parser.add_argument('--work', type=Path, default=Path('out/distill'), help='folder of intermediate results '
                        '(default: %(default)s)')  # fmt: skip
    parser.add_argument('--strategy', choices=STRATEGIES, help='learning strategy (default: as in --config); '
                        'seflow: self-supervised, labels only say which points move')  # fmt: skip
    parser.add_argument(
        '--teacher', help='labelling method (default: rigid; with seflow: dufomap, dynamic/static labels)'
    )
    parser.add_argument('--teacher-config', type=Path, help='YAML with teacher settings')
    parser.add_argument('--config', type=Path, default=Path(__file__).parents[1] / 'config' / 'train_lite.yaml',
                        help='YAML with training settings (default: config/train_lite.yaml)')  # fmt: skip
    parser.add_argument('--steps', type=int, help='training steps in total; the phases keep their shares')
    parser.add_argument(
        '--held-out', type=float, metavar='SHARE', help='share of the pairs held out of training, for scoring'
    )
    parser.add_argument('--processes', type=int, default=1, help='number of labelling processes (default: 1)')
    parser.add_argument('--devices', default='auto', help='GPUs to train on (default: all)')
    parser.add_argument('--calibration-pairs', type=int, default=32, metavar='PAIRS',
                        help='sweep pairs to calibrate the 8-bit form; 0: no 8-bit form (default: 32)')  # fmt: skip
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
        print('training.distill: stopped; run the same command to resume.', file=sys.stderr)
        return 130
    for model in models:
        print(f'{model}: run it with')
        print(f'  ros2 launch zeroflow_ros flow.launch.py model_path:={model.resolve()} input_topic:=/YOUR/POINTS')
    return 0


if __name__ == '__main__':
    sys.exit(main())
