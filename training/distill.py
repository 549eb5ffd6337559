# SPDX-License-Identifier: Apache-2.0
"""Make a model file from recorded drives without human labels: label, train, evaluate, export.

usage: python3 -m training.distill drives/*.mcap --out model.onnx
       python3 -m training.distill drives/*.mcap --strategy seflow --out model.onnx
       python3 -m training.distill drives/*.mcap --start embedded --out mine.onnx
       python3 -m training.distill simulation:0-99 --teacher fast_nsf --steps 500 --work out/try --out out/try.onnx
       python3 -m training.distill drives/*.mcap --student stereo_lite --out stereo.onnx

--start adapts a trained model to the drives; plan half an hour on two cores. It labels 240 pairs instead of all, in one
process per core, and trains 400 steps (config/finetune.yaml, of stereo cameras config/finetune_stereo.yaml).

--student stereo_lite makes a model for the stereo camera of the drives: the teacher stereo labels all pairs, from the
older image and from the newer one. There is no 8-bit form of it.

Run the same command again after any interruption: a finished stage with the same inputs is not repeated, and an
interrupted stage resumes. Drives: rosbags, or any dataset spec of training.datasets. To use several computers, run
`training.label` and `training.train` separately.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from training.learning.mono_train_config import MonoTrainConfig
from training.learning.stage_cache import Checksums, lock_work_folder, run_cached_stage, run_program
from training.learning.stereo_train_config import StereoTrainConfig, load_train_config
from training.learning.strategies import STRATEGIES, build_strategy, sweeps_per_sample
from training.learning.train_config import TrainConfig
from zeroflow_ros.errors import ConfigError, DataError, ZeroFlowError
from zeroflow_ros.lidar.sweep import DropReason
from zeroflow_ros.views.report import write_json

if TYPE_CHECKING:
    from training.learning.start_model import StartModel

_MOST_FAILED = 0.1  # accepted share of pairs without label, e.g. the first sweeps of a drive or gaps in odometry
_PAIRS_TO_ADAPT = 240  # ten minutes of labelling on two cores
_MOST_PROCESSES = 4  # one takes up to 1 GB
_CONFIGS = Path(__file__).parents[1] / 'config'
_CONFIG, _STEREO_CONFIG = _CONFIGS / 'train_lite.yaml', _CONFIGS / 'train_stereo_lite.yaml'
_STEREO_FINETUNE = _CONFIGS / 'finetune_stereo.yaml'
_LABEL_REPORT = Path('jobs') / 'shard_1_of_1.json'
_CLIPS, _CLIPS_TO_SCORE = 'clips', 6
_RUN = 12  # consecutive pairs: nine full windows of five sweeps


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A distillation job.

    drives: paths, or dataset specs. out: the model file; its 8-bit form is written beside it. work: folder of all
    intermediate results. teacher, teacher_config: as in training.label. config: of the training; its student says for
    which sensor. processes: number of labelling processes. devices: GPUs to train on. calibration_pairs: sweep pairs
    that calibrate the 8-bit form; 0: no 8-bit form, which stereo cameras never have. pairs: most pairs to label, evenly
    spread over the drives; 0: all. start: model to adapt; None: random weights.
    """

    drives: tuple[str, ...]
    out: Path
    work: Path
    teacher: str = 'rigid'
    teacher_config: Path | None = None
    config: TrainConfig | StereoTrainConfig = dataclasses.field(default_factory=TrainConfig)
    processes: int = 1
    devices: str = 'auto'
    calibration_pairs: int = 32
    pairs: int = 0
    start: 'StartModel | None' = None

    @property
    def drives_are_paths(self) -> bool:
        """Whether every drive is the path of an existing file or folder."""
        return all(Path(drive).exists() for drive in self.drives)

    @property
    def is_stereo(self) -> bool:
        """Whether the student is one for stereo cameras."""
        return isinstance(self.config, StereoTrainConfig)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets to label: of a stereo bag, flow forward in time, and backward as in the node."""
        if not self.is_stereo:
            return self.drives
        both = (('stereo:{}', 'stereo:{}?latest=true') if Path(drive).exists() else ('{}',) for drive in self.drives)
        return tuple(spec.format(drive) for drive, specs in zip(self.drives, both, strict=True) for spec in specs)


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
        inputs = {'labels': labels.checksum, 'config': dataclasses.asdict(job.config)}
        if job.start:
            inputs['start'] = job.start.sha256
        trained = run_cached_stage(
            job.work, 'train', inputs,
            lambda folder: _train(job, labels.folder, folder, program), results=('last.pt',),
        )  # fmt: skip
        last = trained.folder / 'last.pt'
        if job.config.held_out:
            scored = run_cached_stage(
                job.work, 'evaluate', {'labels': labels.checksum, 'checkpoint': trained.checksum},
                lambda folder: _evaluate(job, last, labels.folder, folder),
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
        for line in _label_lines(labels.folder, *(['pixels'] if job.is_stereo else [])):
            print(line)
        return models


def _label_inputs(job: Distillation, checksum: Checksums) -> dict:
    drives = [[drive, checksum(Path(drive)) if Path(drive).exists() else ''] for drive in job.drives]
    settings = job.teacher_config.read_text() if job.teacher_config else ''
    inputs = {'drives': drives, 'teacher': job.teacher, 'teacher_config': settings}
    inputs |= {'datasets': job.datasets} if job.is_stereo else {}
    return inputs | ({'pairs': _pairs_to_label(job)} if job.pairs else {})


def _pairs_to_label(job: Distillation) -> list[str]:
    """Return the words for training.label that limit its pairs; windows of more sweeps need consecutive ones."""
    if not job.pairs:
        return []
    words = ['--pairs', str(math.ceil(job.pairs / len(job.datasets)))]
    needs_pairs_only = job.is_stereo or sweeps_per_sample(job.config) == 2
    return words if needs_pairs_only else [*words, '--consecutive', str(_RUN)]


def _label(job: Distillation, folder: Path, program: Callable[..., int]) -> None:
    config = ['--config', job.teacher_config] if job.teacher_config else []
    status = program('training.label', *job.datasets, '--teacher', job.teacher, *config, '--out', folder,
                     '--processes', job.processes, *_pairs_to_label(job))  # fmt: skip
    if not status:
        return
    report = folder / _LABEL_REPORT
    counts = json.loads(report.read_text()) if report.is_file() and status == 1 else {}
    good, bad = counts.get('done', 0) + counts.get('kept', 0), counts.get('failed', 0)
    if not bad or bad > _MOST_FAILED * (good + bad):
        raise DataError(f'Labelling ended with status {status}; {bad} of {good + bad} pairs failed. See above.')
    print(f'Continuing without the {bad} of {good + bad} pairs that could not be labelled.', file=sys.stderr)


def _label_lines(folder: Path, unit: str = 'points, ground included') -> list[str]:
    """Return what labelling dropped and warned of, from its report; also where the labels are of an earlier run.

    unit: what was labelled.
    """
    path = folder / _LABEL_REPORT
    report = json.loads(path.read_text()) if path.is_file() else {}
    lines = []
    if report.get('points'):
        share = report['points_labelled'] / report['points']
        lines.append(f'labels for {100 * share:.1f} % of {report["points"]:,} {unit}')
    for reason, count in Counter(report.get('failures', {}).values()).most_common(10):
        lines.append(f'{count} pairs not labelled: {reason}')
    for name, dataset in report.get('datasets', {}).items():
        dropped = ', '.join(f'{count} {reason}' for reason, count in dataset['dropped'].items()) or 'none'
        lines.append(f'{name}: {dataset["sweeps"]} sweeps, {dataset["pairs"]} pairs, dropped: {dropped}')
        examples = dataset['dropped_because'].items()
        lines += [f'  {reason}: {text}' for reason, text in examples if reason != DropReason.FIRST.value]
        lines += [
            f'{warning["level"]} ({warning["count"]} times): {warning["text"]}' for warning in dataset['warnings']
        ]
    return lines


def _train(job: Distillation, labels: Path, folder: Path, program: Callable[..., int]) -> None:
    config = folder / 'config.yaml'
    config.write_text(yaml.safe_dump(dataclasses.asdict(job.config), sort_keys=False))
    start = ['--start', job.start.path] if job.start else []
    _check_status(program('training.train', '--labels', labels, '--config', config, '--out', folder,
                  '--clips', job.work / _CLIPS, '--devices', job.devices, *start), 'Training')  # fmt: skip


def _evaluate(job: Distillation, last: Path, labels: Path, folder: Path) -> None:
    if job.is_stereo:
        write_json(folder / 'agreement.json', _stereo_agreement(job, last, labels))
        return
    from training.labels.label_store import LabelStore
    from training.learning.checkpoint import load_checkpoint
    from training.learning.pair_sources import clip_source, split_labels
    from training.scoring.label_metrics import score_against_labels

    _, source = split_labels(LabelStore(labels), job.config.held_out, sweeps_per_sample(job.config))
    if not job.start:
        write_json(folder / 'agreement.json', score_against_labels(load_checkpoint(last).build(), source))
        return
    students = {'adapted': load_checkpoint(last).build(), 'start': job.start.checkpoint.build()}
    report = {name: score_against_labels(student, source) for name, student in students.items()}
    if job.config.rehearsal:
        first_seed = job.config.first_seed + job.config.num_clips
        clips = clip_source(job.work / _CLIPS, job.config)
        unseen = dataclasses.replace(clips, num_clips=_CLIPS_TO_SCORE, first_seed=first_seed)
        report['simulated streets'] = {
            name: score_against_labels(student, unseen) for name, student in students.items()
        }
    write_json(folder / 'agreement.json', report)


def _stereo_agreement(job: Distillation, last: Path, labels: Path) -> dict:
    """Return the outliers [%] of the student against the labels of held-out pairs, and of the start model."""
    from training.labels.stereo_label_store import StereoLabelStore
    from training.learning.stereo_sources import HeldOutPairs
    from training.scoring.stereo_estimators import build_stereo_estimator
    from training.scoring.stereo_evaluation import evaluate_stereo

    pairs = HeldOutPairs(StereoLabelStore(labels), job.config.held_out)
    models = {'adapted': last, 'start': job.start.path} if job.start else {'trained': last}
    report = {}
    for name, path in models.items():
        [found] = evaluate_stereo(pairs, [build_stereo_estimator(str(path))]).values()
        rates = found['pixels']['outliers_percent']['occ'].items()
        report[name] = {metric: round(percent['all'], 2) for metric, percent in rates} | {'pairs': len(pairs)}
    return report


def _export(job: Distillation, last: Path, folder: Path, program: Callable[..., int]) -> None:
    model = folder / 'model.onnx'
    _check_status(program('export.to_onnx', last, '--out', model, '--forms', 'vehicle'), 'Exporting')
    if job.calibration_pairs and not job.is_stereo:
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
    parser.add_argument('--student', help='student to train, such as stereo_lite for stereo cameras (default: as in '
                        '--config)')  # fmt: skip
    parser.add_argument('--strategy', choices=STRATEGIES, help='learning strategy (default: as in --config); '
                        'seflow: self-supervised, labels only say which points move')  # fmt: skip
    parser.add_argument(
        '--teacher',
        help='labelling method (default: rigid; for stereo cameras stereo; with seflow: dufomap, dynamic/static '
        'labels)',
    )
    parser.add_argument('--teacher-config', type=Path, help='YAML with teacher settings')
    parser.add_argument('--start', metavar='MODEL', default='', help='model to adapt, of any sensor: an .onnx file, a '
                        'checkpoint, or embedded (default: random weights)')  # fmt: skip
    parser.add_argument('--config', type=Path, help='YAML with training settings (default: config/train_lite.yaml; '
                        'with --start config/finetune.yaml)')  # fmt: skip
    parser.add_argument('--pairs', type=int, help='most pairs to label, evenly spread over the drives; 0: all '
                        f'(default: all; with --start {_PAIRS_TO_ADAPT})')  # fmt: skip
    parser.add_argument('--steps', type=int, help='training steps in total; the phases keep their shares')
    parser.add_argument(
        '--held-out', type=float, metavar='SHARE', help='share of the pairs held out of training, for scoring'
    )
    parser.add_argument('--processes', type=int, help='number of labelling processes (default: 1; with --start one per '
                        f'core, at most {_MOST_PROCESSES})')  # fmt: skip
    parser.add_argument('--devices', default='auto', help='GPUs to train on (default: all)')
    parser.add_argument('--calibration-pairs', type=int, default=32, metavar='PAIRS',
                        help='sweep pairs to calibrate the 8-bit form; 0: no 8-bit form (default: 32)')  # fmt: skip
    return parser


def _start_and_config(options: argparse.Namespace) -> tuple['StartModel | None', TrainConfig | StereoTrainConfig]:
    """Return the start model and the training settings of the command line."""
    from training.students import CAMERA_STUDENTS, STUDENTS

    known = (*STUDENTS, *CAMERA_STUDENTS)
    if options.student and options.student not in known:
        raise ConfigError(f'student should be one of {", ".join(known)}, got {options.student!r}.')
    start, path = None, options.config
    if options.start:
        from training.learning.start_model import check_start, load_start, start_config

        start = load_start(options.start)
    student = options.student or (start.checkpoint.student if start else None)
    if path is None and student in CAMERA_STUDENTS:
        path = _STEREO_FINETUNE if start else _STEREO_CONFIG
    if start and (path is None or student not in CAMERA_STUDENTS):
        config = start_config(start, path)
    else:
        config = load_train_config(path or _CONFIG)
    if options.student and config.student != options.student:
        if options.config:
            raise ConfigError(
                f'--student is {options.student}, and {options.config} trains a {config.student}. Leave one out.'
            )
        config = dataclasses.replace(config, student=options.student)
    if start:
        check_start(start, config)
    return start, _changed(config, options)


def _changed(config: TrainConfig | StereoTrainConfig, options: argparse.Namespace) -> TrainConfig | StereoTrainConfig:
    """Return the settings with those of the command line. Raises: ConfigError for some that do not go together."""
    if isinstance(config, MonoTrainConfig):
        raise ConfigError(
            f'A {config.student} sees one camera. Run training.train and export.to_onnx one by one; '
            'docs/mono_training.md has the commands.'
        )
    is_stereo = isinstance(config, StereoTrainConfig)
    if is_stereo and config.student != 'stereo_lite':
        raise ConfigError(
            f'A {config.student} does not estimate its errors, which its model file needs. Run training.label, '
            'training.train and export.to_onnx --sigma-px one by one; docs/stereo_training.md has the commands.'
        )
    if options.steps is not None:
        config = dataclasses.replace(config, steps=options.steps, epochs=0) if is_stereo else config.with_steps(
            options.steps
        )  # fmt: skip
    if options.held_out is not None:
        config = dataclasses.replace(config, held_out=options.held_out)
    if options.strategy is not None:
        config = dataclasses.replace(config, strategy=options.strategy)
    return config


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        start, config = _start_and_config(options)
        teacher = options.teacher or build_strategy(config).teacher
        models = distill(Distillation(
            tuple(options.drives), options.out, options.work, teacher, options.teacher_config, config,
            options.processes or (min(_MOST_PROCESSES, len(os.sched_getaffinity(0))) if start else 1),
            options.devices, options.calibration_pairs,
            options.pairs if options.pairs is not None else _PAIRS_TO_ADAPT if start else 0, start,
        ))  # fmt: skip
    except (ZeroFlowError, OSError) as error:
        print(f'training.distill: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('training.distill: stopped; run the same command to resume.', file=sys.stderr)
        return 130
    for model in models:
        print(f'{model}: run it with')
        if isinstance(config, StereoTrainConfig):
            print(f'  ros2 run zeroflow_ros camera_flow_node --ros-args -p model_path:={model.resolve()}')
        else:
            print(f'  ros2 launch zeroflow_ros flow.launch.py model_path:={model.resolve()} input_topic:=/YOUR/POINTS')
    return 0


if __name__ == '__main__':
    sys.exit(main())
