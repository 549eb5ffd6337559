# SPDX-License-Identifier: Apache-2.0
"""Runs hostile cases in a separate process with limits on time and memory, and reports the failing cases.

A target is a class that is constructed with (seed, folder) and has
  prepare(case)  generates hostile input number `case` from seed and number alone, so that it is reproducible;
  run(case)      passes it to the project; returns the outcome as one word, or raises the project's error;
  finish()       returns results of the whole run: findings, and outcomes and growth_mb that replace those counted
                 here; {} for none;
  limit_s        wall-clock seconds per case; margin_mb: address space it may use beyond what is in use.
"""

import importlib
import math
import multiprocessing
import os
import resource
import shutil
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from zeroflow_ros.errors import ZeroFlowError

_PREPARE_S = 180.0  # imports, compiled loops, and the making of a batch of examples
_MAX_FINDINGS = 40
_MAX_GROWTH_MB = 300.0  # caches and malloc's pool; a leak of 50 kB per case exceeds this
_MB = 2**20


@dataclass
class Report:
    """Result of a run of one target.

    outcomes: number of cases by outcome. findings: failures, each with its case. slowest_ms, slowest_case: slowest run.
    growth_mb: resident memory at the end minus at the start. seconds: total time, including generation of the cases.
    """

    target: str
    seed: int
    cases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    findings: list[dict] = field(default_factory=list)
    slowest_ms: float = 0.0
    slowest_case: int = -1
    growth_mb: float = 0.0
    seconds: float = 0.0

    def line(self) -> str:
        """Return a one-line summary."""
        outcomes = ', '.join(f'{count} {name}' for name, count in self.outcomes.most_common())
        return (
            f'{self.target}: {self.cases} cases in {self.seconds:.0f} s: {outcomes}; slowest {self.slowest_ms:.0f} ms '
            f'(case {self.slowest_case}); resident memory {self.growth_mb:+.0f} MB; {len(self.findings)} findings'
        )


def run_target(name: str, spec: str, *, seed: int, cases: int, first: int = 0, folder: Path) -> Report:
    """Run cases first to first + cases - 1 of a target, `module:Class`; a case that ends the process is a finding."""
    report, start, place, end = Report(name, seed), time.monotonic(), first, first + cases
    folder.mkdir(parents=True, exist_ok=True)
    while place < end and len(report.findings) < _MAX_FINDINGS:
        place = _run_process(report, spec, place, end, folder)
    report.seconds = time.monotonic() - start
    return report


def _run_process(report: Report, spec: str, place: int, end: int, folder: Path) -> int:
    """Run cases in a new process until all are done or one kills it; return the next case to run."""
    spawn = multiprocessing.get_context('spawn')
    now = spawn.RawArray('d', [place - 1, time.monotonic() + _PREPARE_S])  # current case, and its deadline
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_work, args=(spec, report.seed, place, end, str(folder), now, theirs), daemon=False)
    process.start()
    theirs.close()
    done = hung = False
    try:
        while True:
            if ours.poll(0.1):
                try:
                    kind, content = ours.recv()
                except EOFError:
                    process.join(5)  # its own exit status, not that of our kill
                    break
                done = kind == 'end'
                _take(report, kind, content)
            elif time.monotonic() > now[1]:
                hung = True
                _found(report, int(now[0]), 'hang', 'took longer than the limit, or its making did')
                break
        if done:
            process.join(5)  # releases multiprocessing's resources, unless a thread blocks it
    finally:
        process.kill()
        process.join()
        ours.close()
    if not done:
        _keep(folder, f'{report.target}_{report.seed}_{int(now[0])}')
    if not done and not hung:
        _found(report, int(now[0]), 'crash', f'ended its process with exit status {process.exitcode}')
    return end if done else max(int(now[0]), place) + 1


def _take(report: Report, kind: str, content) -> None:
    if kind == 'case':
        case, outcome, ms, finding = content
        report.cases += 1
        report.outcomes[outcome] += 1
        if ms > report.slowest_ms:
            report.slowest_ms, report.slowest_case = ms, case
        if finding:
            _found(report, case, 'error', finding)
    elif kind == 'end':
        growth_mb = content['growth_mb']
        report.growth_mb += growth_mb
        report.outcomes = Counter(content.get('outcomes', {})) or report.outcomes
        for finding in content.get('findings', []):
            _found(report, -1, 'run', finding)
        if growth_mb > _MAX_GROWTH_MB:
            _found(report, -1, 'growth', f'resident memory grew by {growth_mb:.0f} MB')


def _found(report: Report, case: int, kind: str, text: str) -> None:
    if kind in ('hang', 'crash'):
        report.cases += 1
        report.outcomes[kind] += 1
    again = f'.venv/bin/python test/fuzz/fuzz.py --target {report.target} --seed {report.seed} --first {case} --cases 1'
    report.findings.append({'case': case, 'kind': kind, 'text': text, 'again': again if case >= 0 else ''})


def _work(spec: str, seed: int, place: int, end: int, folder: str, now, pipe) -> None:
    """Run cases in this process, and report each to the parent."""
    log = os.open(Path(folder) / f'{spec.partition(":")[2].lower()}.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):  # output of libraries; C++ code bypasses sys.stderr
        os.dup2(log, stream)
    module, _, name = spec.partition(':')
    target = getattr(importlib.import_module(module), name)(seed, Path(folder))
    target.prepare(place)
    _limit_address_space(target.margin_mb)
    start_mb = _status_mb('VmRSS')
    for case in range(place, end):
        now[0], now[1] = case, time.monotonic() + _PREPARE_S
        target.prepare(case)
        began = time.monotonic()
        now[1] = began + target.limit_s
        outcome, finding = _outcome(target, case)
        if finding:
            _keep(Path(folder), f'{type(target).__name__.lower()}_{seed}_{case}')
        ms = (time.monotonic() - began) * 1e3
        now[1] = time.monotonic() + _PREPARE_S
        pipe.send(('case', (case, outcome, ms, finding)))
    growth_mb = _status_mb('VmRSS') - start_mb
    pipe.send(('end', {'growth_mb': growth_mb, **target.finish()}))
    now[1] = math.inf
    pipe.close()


def _outcome(target, case: int) -> tuple[str, str]:
    """Return the outcome of a case, and the reason if it is a finding, else ''."""
    try:
        return target.run(case) or 'served', ''
    except ZeroFlowError as error:
        if trouble := _hidden_trouble(error):
            return 'finding', f'{type(error).__name__} hides {trouble!r}: {error}'[:2000]
        if len(str(error)) > 5000:
            return 'finding', f'{type(error).__name__} says {len(str(error))} characters: {str(error)[:500]}'
        return type(error).__name__, ''
    except Exception:  # any other error is a finding
        return 'finding', traceback.format_exc(limit=-6)[-3000:]


def _hidden_trouble(error: BaseException) -> BaseException | None:
    """Return the MemoryError behind an error: the input was rejected only after a huge allocation was tried."""
    while error is not None:
        if isinstance(error, MemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _keep(folder: Path, name: str) -> None:
    """Copy the hostile files of a finding, if any, before the next case overwrites them."""
    for path in folder.rglob('hostile*'):
        copy = folder / 'findings' / name / path.name
        if path.is_relative_to(folder / 'findings') or copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)


def _limit_address_space(margin_mb: int) -> None:
    limit = int((_status_mb('VmSize') + margin_mb) * _MB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _status_mb(name: str) -> float:
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name + ':'))
