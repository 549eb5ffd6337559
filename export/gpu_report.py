# SPDX-License-Identifier: Apache-2.0
"""Measure and check everything that docs/benchmarks.md leaves open on an NVIDIA GPU, in at most eight minutes.

usage: python3 -m export.gpu_report --out out/gpu
       python3 -m export.gpu_report --out out/gpu --seconds 1200
       python3 -m export.gpu_report --out out/gpu --again 'latency fastflow3d'
       python3 -m export.gpu_report --out out/gpu --bag drive.mcap

Each part is a process with a time limit and a verdict: reached or missed (a goal), done (no goal), failed, out of time,
or left (this machine lacks something, or the time is over). Without a GPU it checks what can be checked and names what
is left. The command may be repeated: parts that have a result for this GPU, TensorRT and revision are not run again.
Writes report.json and report.txt into the folder, and the models and engines that it needs. The exit status is 1 when
a part failed or ran out of time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from export.gpu_parts import BAG_FILE, Part, all_parts
from export.gpu_result import DONE, FAILED, LEFT, MISSED, OUT_OF_TIME, REACHED, MissingModelError, Result
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.views.report import hardware, write_json

_FINAL = (REACHED, MISSED, DONE)
_KEY = ('gpu', 'tensorrt', 'nvcc', 'torch', 'revision')  # a result holds for these
_SECONDS = 480  # for all parts; with more, the limit of each part grows in proportion, for slow machines
_LEAST_S = 5.0  # with less time left, a part is not begun


def run_part(part: Part, folder: Path, limit_s: float) -> Result:
    """Run a part in a process of its own, and end it with everything it started when the limit is over."""
    result = _result_path(folder, part.name)
    result.unlink(missing_ok=True)
    words = [sys.executable, '-m', 'export.gpu_report', '--out', str(folder), '--part', part.name]
    environment = {**os.environ, 'XDG_CACHE_HOME': str((folder / 'cache').resolve())}  # engines
    log = folder / 'logs' / f'{_file_name(part.name)}.txt'
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1], env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return Result(OUT_OF_TIME, f'ended after {limit_s:.0f} s; its output is in {log}')
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not result.is_file():
        return Result(FAILED, f'the process ended with status {status}; its output is in {log}')
    return Result(**{key: value for key, value in json.loads(result.read_text()).items() if key != 'key'})


def run_here(part: Part, folder: Path) -> None:
    """Run a part in this process and write its result."""
    facts = {} if part.name == 'machine' else _read(folder, 'machine')['figures']
    try:
        result = part.run(folder, facts)
    except ZeroFlowError as error:
        result = Result(LEFT if isinstance(error, MissingModelError) else FAILED, str(error))
    write_json(_result_path(folder, part.name), vars(result))


def report(parts: list[Part], folder: Path, seconds: float, again: list[str]) -> dict[str, Result]:
    """Run the parts that have no result yet, within a number of seconds; return all results by name."""
    ends, results, key, slower = time.monotonic() + seconds, {}, None, max(1.0, seconds / _SECONDS)
    for number, part in enumerate(parts):
        known = _read(folder, part.name)
        left_s = ends - time.monotonic()
        if number == 0:
            result = run_part(part, folder, min(part.limit_s * slower, left_s))
            if result.verdict != DONE:
                raise ZeroFlowError(
                    f'What this machine has could not be found out: {result.text}. Run it again with more '
                    '--seconds, or when the machine does nothing else.'
                )
            facts = result.figures
            key = ', '.join(f'{name} {facts[name] or "none"}' for name in _KEY)
        elif missing := [need for need in part.needs if not facts[need]]:
            result = Result(LEFT, f'needs {", ".join(missing)}')
        elif known and known.get('key') == key and known['verdict'] in _FINAL and part.name not in again:
            result = Result(known['verdict'], known['text'], known['figures'])
        elif left_s < _LEAST_S:
            result = Result(LEFT, f'the {seconds:.0f} s are over; run the command again')
        else:
            print(f'{part.name} ...', flush=True)
            result = run_part(part, folder, min(part.limit_s * slower, left_s))
        write_json(_result_path(folder, part.name), vars(result) | {'key': key})
        results[part.name] = result
        if number:
            write_report(folder, results, key)
    return results


def write_report(folder: Path, results: dict[str, Result], key: str) -> str:
    """Write report.json and report.txt; return the text."""
    write_json(folder / 'report.json', {
        'machine': key, 'hardware': hardware(), 'parts': {name: vars(result) for name, result in results.items()},
    })  # fmt: skip
    width = max(map(len, results))
    lines = [f'{name:{width}}  {result.verdict:11}  {result.text}' for name, result in results.items()]
    counts = [sum(result.verdict == verdict for result in results.values()) for verdict in _VERDICTS]
    total = ', '.join(f'{count} {verdict}' for verdict, count in zip(_VERDICTS, counts, strict=True) if count)
    text = '\n'.join([key, '', *lines, '', f'{total}.']) + '\n'
    (folder / 'report.txt').write_text(text)
    return text


_VERDICTS = (REACHED, MISSED, DONE, FAILED, OUT_OF_TIME, LEFT)


def _file_name(name: str) -> str:
    return name.replace(' ', '_')


def _result_path(folder: Path, name: str) -> Path:
    return folder / 'parts' / f'{_file_name(name)}.json'


def _read(folder: Path, name: str) -> dict:
    """Return the stored result of a part; {} if there is none."""
    try:
        return json.loads(_result_path(folder, name).read_text())
    except (OSError, ValueError):
        return {}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'export.gpu_report', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True, help='folder of the report')
    parser.add_argument(
        '--seconds',
        type=float,
        default=_SECONDS,
        help='most time for all parts; with more than %(default)s, which is the default, each part gets more, too',
    )
    parser.add_argument('--again', nargs='+', default=[], help='parts to run although they have a result')
    parser.add_argument('--bag', type=Path, help='also compare float16 with float32 on the sweeps of this bag')
    parser.add_argument('--part', help=argparse.SUPPRESS)  # run this part here; for the processes of the report
    options = parser.parse_args(arguments)
    parts = {part.name: part for part in all_parts()}
    if unknown := [name for name in options.again if name not in parts]:
        print(
            f'export.gpu_report: There is no part {unknown[0]!r}; the parts are: {", ".join(parts)}.', file=sys.stderr
        )
        return 1
    folder = options.out.resolve()
    try:
        if options.part:
            run_here(parts[options.part], folder)
            return 0
        if options.bag:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / BAG_FILE).write_text(str(options.bag.resolve()))
        results = report(list(parts.values()), folder, options.seconds, options.again)
    except ZeroFlowError as error:
        print(f'export.gpu_report: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('export.gpu_report: interrupted; the same command goes on where this one ended', file=sys.stderr)
        return 130
    print((folder / 'report.txt').read_text())
    print(f'Written to {folder / "report.txt"} and report.json')
    return int(any(result.verdict in (FAILED, OUT_OF_TIME) for result in results.values()))


if __name__ == '__main__':
    sys.exit(main())
