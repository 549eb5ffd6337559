# SPDX-License-Identifier: Apache-2.0
"""Fill a label store: in one process, in several, or on a ray cluster."""

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from training.datasets.pairs import PairDataset, evenly_spread
from training.datasets.stereo_pairs import StereoPairDataset
from training.labels.label_store import LabelStore
from training.labels.stereo_label_store import StereoLabelStore, stereo_checksum
from training.provenance import provenance
from training.teachers.teacher import DriveTeacher, StereoPairTeacher, Teacher, run_teacher
from training.teachers.teacher_input import Crop, checksum, teacher_input
from zeroflow_ros.errors import ConfigError, DataError, ModelError
from zeroflow_ros.runtime.run_summary import RunSummary


@dataclasses.dataclass(frozen=True)
class LabelJob:
    """Datasets to label, the teacher, and the store.

    datasets: specs for `open_dataset`. teacher, config: name and settings (as JSON) for `build_teacher`. out: folder of
    the store. shard: (k, n), the k-th of n parts, counted from 1. verify: compare existing labels with their pairs, and
    redo those made from other data. most_pairs: pairs to label per dataset, evenly spread; 0: all. consecutive: length
    of the runs in which they are spread, for students that take more than two sweeps.
    """

    datasets: tuple[str, ...]
    teacher: str
    out: Path
    config: str = '{}'
    crop: Crop = dataclasses.field(default_factory=Crop)
    shard: tuple[int, int] = (1, 1)
    verify: bool = False
    most_pairs: int = 0
    consecutive: int = 1

    def __post_init__(self):
        k, n = self.shard
        if not 1 <= k <= n:
            raise ConfigError(f'A shard is K/N with 1 <= K <= N, got {k}/{n}.')
        if self.consecutive < 1:
            raise ConfigError(f'Runs of pairs have a length of 1 or more, got {self.consecutive}.')

    def open_datasets(self) -> list[PairDataset | StereoPairDataset]:
        """Return the datasets. Raises: DataError when one is of another sensor than the teacher."""
        from training.datasets import STEREO, SWEEPS, open_dataset

        sensor = STEREO if isinstance(self.build_teacher(), StereoPairTeacher) else SWEEPS
        return [open_dataset(spec, (sensor,)) for spec in self.datasets]

    def build_teacher(self) -> Teacher | StereoPairTeacher:
        """Return the teacher."""
        from training.teachers import build_teacher

        return build_teacher(self.teacher, json.loads(self.config))


def pairs_to_label(total: int, most: int, consecutive: int = 1) -> list[int]:
    """Return at most `most` of the numbers below `total`, in evenly spread runs of `consecutive`; all for 0."""
    if not most or most >= total:
        return evenly_spread(total, most)
    consecutive = min(consecutive, most)
    starts = evenly_spread(total - consecutive + 1, most // consecutive)
    return sorted({start + k for start in starts for k in range(consecutive)})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result for one pair: `done`, `kept` (it had a label) or `failed`, with the reason.

    num_points, num_labelled: points of the older sweep with a return, and those of them that got a label; when `done`.
    num_seen: labelled points that are not ground. Of a stereo pair, pixels of the reference frame in place of points.
    """

    key: str
    state: str
    reason: str = ''
    num_points: int = 0
    num_labelled: int = 0
    num_seen: int = 0


class _LabelWorker:
    """Datasets, teacher and store, opened once per process."""

    def __init__(self, job: LabelJob):
        self.job = job
        self.sources = job.open_datasets()
        self.pairs = [
            (source, index)
            for source in self.sources
            for index in pairs_to_label(len(source), job.most_pairs, job.consecutive)
        ]
        self._teacher: Teacher | StereoPairTeacher | None = None
        self._store: LabelStore | None = None

    @property
    def teacher(self) -> Teacher | StereoPairTeacher:
        if self._teacher is None:
            self._teacher = self.job.build_teacher()
        return self._teacher

    @property
    def labels_stereo(self) -> bool:
        return isinstance(self.teacher, StereoPairTeacher)

    @property
    def store(self) -> LabelStore:
        if self._store is None:
            self._store = (StereoLabelStore if self.labels_stereo else LabelStore)(self.job.out)
        return self._store

    def keys(self) -> list[str]:
        return [source.key(index) for source, index in self.pairs]


@lru_cache(maxsize=1)
def _worker(job: LabelJob) -> _LabelWorker:
    return _LabelWorker(job)


def label_one(job: LabelJob, number: int) -> Outcome:
    """Label a pair of the job's datasets, unless it has an intact label.

    A pair that cannot be labelled gives a failed Outcome. Raises: DataError when the store cannot be written.
    """
    worker = _worker(job)
    source, index = worker.pairs[number]
    key = source.key(index)
    intact = worker.store.is_intact(key)
    if intact and not job.verify:
        return Outcome(key, 'kept')
    try:
        item = source[index]
        if intact and worker.store.is_intact(key, (stereo_checksum if worker.labels_stereo else checksum)(item)):
            return Outcome(key, 'kept')
        if worker.labels_stereo:
            flow = worker.teacher.label(item.reference, item.other, item.dt, item.other_T_reference)
            num_measured = int(np.count_nonzero(flow.is_measured))
            if not num_measured:
                raise DataError('The teacher labelled no pixel.')
            worker.store.write(item, flow)
            return Outcome(key, 'done', '', flow.is_measured.size, num_measured, num_measured)
        seen = teacher_input(item, job.crop)
        if isinstance(worker.teacher, DriveTeacher):
            label = worker.teacher.label_in_drive(source, index, item, seen)
        else:
            label = run_teacher(worker.teacher, seen)
    except Exception as error:  # no error of one pair may stop the others
        first_line = (str(error).strip() or 'no reason given').splitlines()[0]
        return Outcome(key, 'failed', f'{type(error).__name__}: {first_line}')
    worker.store.write(label)
    num_points, num_seen = int(np.count_nonzero(np.isfinite(seen.points0[:, 0]))), len(seen.rows0)
    return Outcome(key, 'done', '', num_points, num_seen + int(np.count_nonzero(seen.is_ground0)), num_seen)


def dataset_summaries(job: LabelJob) -> list[RunSummary]:
    """Return what was dropped and what is suspicious in the datasets of a job that say so, as bags do."""
    return [source.summary for source in _worker(job).sources if hasattr(source, 'summary')]


def labelled_unit(job: LabelJob) -> str:
    """Return what a job labels, in words."""
    return 'pixels' if _worker(job).labels_stereo else 'points, ground included'


def dataset_warnings(job: LabelJob) -> list[str]:
    """Return sentences on what was dropped in the stereo datasets of a job."""
    return [line for source in _worker(job).sources for line in getattr(source, 'warnings', ())]


def run(job: LabelJob, *, processes: int = 1, on_ray: bool = False, gpus: float = 0.0, progress=None) -> list[Outcome]:
    """Label a shard and return the outcomes of its pairs, in no particular order.

    progress: called with (None, number of pairs) before the first pair, and with (outcome, that number) after each.
    on_ray: run on the ray cluster of RAY_ADDRESS, or on a local one; gpus: GPUs per task.
    Raises: DataError when there is nothing to label, keys are not unique, another job works on the shard, or the store
    has labels of other settings or cannot be written; ModelError when ray is chosen but not installed.
    """
    worker = _worker(job)
    keys = worker.keys()
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if not keys or twice:
        what = f'share keys, such as {twice[0]!r}; label each into its own store' if twice else 'are empty'
        raise DataError(f'The datasets {", ".join(job.datasets)} {what}.')
    teacher = worker.teacher
    about = {
        'teacher': teacher.name,
        'config': dataclasses.asdict(teacher.config),
        **({'sensor': 'stereo'} if worker.labels_stereo else {'crop': dataclasses.asdict(job.crop)}),
        'datasets': list(job.datasets),
    }
    (StereoLabelStore if worker.labels_stereo else LabelStore).create(job.out, about, provenance())
    k, n = job.shard
    numbers = list(range(len(keys)))[k - 1 :: n]
    with _locked(job.out / 'jobs', k, n):
        if on_ray:
            outcomes = _on_ray(job, numbers, gpus)
        elif processes > 1:
            outcomes = _in_processes(job, numbers, processes)
        else:
            outcomes = (label_one(job, number) for number in numbers)
        finished = []
        if progress:
            progress(None, len(numbers))
        for outcome in outcomes:
            finished.append(outcome)
            if progress:
                progress(outcome, len(numbers))
    return finished


@contextlib.contextmanager
def _locked(folder: Path, k: int, n: int):
    """Hold the lock of shard k of n. Raises: DataError when a job works on it, or on another division into shards."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f'shard_{k}_of_{n}.lock'
    with open(folder / name, 'a+') as mine:
        _lock(mine, f'{folder.parent}: another job is at work on shard {k}/{n}')
        mine.truncate(0)
        mine.write(f'process {os.getpid()} on {socket.gethostname()}')
        mine.flush()
        for path in folder.glob('shard_*.lock'):
            if not path.name.endswith(f'_of_{n}.lock'):
                with open(path, 'a+') as other:
                    _lock(other, f'{folder.parent}: a job is at work on {path.stem}, which overlaps with {k}/{n}')
        yield


def _lock(file, trouble: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it when the process ends for any reason
    except OSError as error:
        file.seek(0)
        raise DataError(f'{trouble} ({file.read()}). Wait for it, or take another shard of the same N.') from error


def _in_processes(job: LabelJob, numbers: list[int], processes: int) -> Iterator[Outcome]:
    fresh = multiprocessing.get_context('spawn')  # a forked torch hangs
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(processes, mp_context=fresh, initializer=_begin_process, initargs=(threads,)) as pool:
        try:
            for future in as_completed([pool.submit(label_one, job, number) for number in numbers]):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                'A labelling process was killed, most likely because memory ran out. Finished labels are intact; run '
                'the same command again with fewer --processes.'
            ) from error
        except BaseException:  # a full disk or Ctrl-C: do not wait for running pairs
            for process in set(multiprocessing.active_children()).difference(others):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_process(threads: int) -> None:
    os.environ['OMP_NUM_THREADS'] = str(threads)  # torch reads it on import, which comes later
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _on_ray(job: LabelJob, numbers: list[int], gpus: float) -> Iterator[Outcome]:
    try:
        import ray
    except ImportError as error:
        raise ModelError(
            "--ray needs ray, which is not installed. Run 'pip install ray', or use --processes."
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(label_one)
    waiting, running = list(reversed(numbers)), {}  # numbers of pairs; {reference: number}
    at_once = 2 * max(1, int(ray.cluster_resources().get('CPU', 1)))  # so that no node waits for its next pair
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = waiting.pop()
                running[task.remote(job, number)] = number
            for reference in ray.wait(list(running))[0]:
                number = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:  # its process or node died, and so did three others
                    reason = f'its process ended each time it was tried ({type(error).__name__}); is memory short?'
                    yield Outcome(_worker(job).keys()[number], 'failed', reason)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def elapsed(since: float) -> str:
    """Return the time since a `time.monotonic()` as 1 h 02 min, 3 min 05 s or 4.2 s."""
    seconds = time.monotonic() - since
    if seconds >= 3600:
        return f'{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min'
    return f'{seconds // 60:.0f} min {seconds % 60:02.0f} s' if seconds >= 60 else f'{seconds:.1f} s'
