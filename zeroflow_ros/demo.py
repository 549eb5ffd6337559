# SPDX-License-Identifier: Apache-2.0
"""Compute the scene flow of a bag with replay, node and recorder as three processes over DDS, and report.

Without --bag it first simulates a drive (only in a checkout). Writes report.json, flow.mcap, flow.png and logs to
--out. Examples:

  python3 -m zeroflow_ros.demo
  python3 -m zeroflow_ros.demo --bag drive.mcap --rate 0.5 --out out/drive
  python3 -m zeroflow_ros.demo --bag stereo.mcap --ego-motion visual
  python3 -m zeroflow_ros.demo --bag camera.mcap --model mono.onnx
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from zeroflow_ros.ego_motion.bag_motion import EGO_MOTION
from zeroflow_ros.errors import ConfigError, ZeroFlowError
from zeroflow_ros.runtime.command_line import stop_on_signals
from zeroflow_ros.runtime.demo_source import BASE_FRAME, CameraSource, Source, examine
from zeroflow_ros.runtime.health import SEEN
from zeroflow_ros.runtime.run_summary import RunSummary, option_names
from zeroflow_ros.runtime.subprocesses import ProcessGroup, ProgramError, StoppedError, resident_megabytes
from zeroflow_ros.views.recorded_flow import RECORDING_STARTED, count_moving, count_valid
from zeroflow_ros.views.report import hardware, latency_table, percentiles, write_json

_ROOT = Path(__file__).resolve().parents[1]  # of the checkout
_SIMULATOR = 'training.simulate'
_ONLY_HERE = ('silence', 'no clock')  # warnings that come from starting the node before the bag, and ending it later
_OVERHEAD = 120.0  # s beyond the play time for start, discovery and reports
_START_TIMEOUT = 60.0  # s until the node has opened its model and the recorder has found it
_RECORD_AFTER = 3.0  # s from the end of the bag to the end of the recording; three diagnostics of the node


def simulate(out: Path, programs: ProcessGroup, *, seed: int, sweeps: int) -> Path:
    """Simulate a drive and return its bag.

    Raises: ConfigError when there is no simulator; ProgramError when it fails.
    """
    if importlib.util.find_spec('training') is None and not (_ROOT / 'training').is_dir():
        raise ConfigError('The simulator is part of the checkout, not of the installed package. Give a bag with --bag.')
    drive = out / 'simulated_drive'
    shutil.rmtree(drive, ignore_errors=True)
    print(f'Simulating {sweeps} sweeps of a 64-beam LiDAR ...', flush=True)
    programs.start('simulator', _SIMULATOR, '--seed', seed, '--sweeps', sweeps, '--sensor', 'hdl64', '--out', drive)
    programs.wait_for_exit('simulator', 'the simulated drive')
    return drive


def play_and_record(source: Source | CameraSource, out: Path, programs: ProcessGroup, args) -> dict:
    """Run the three programs; return their reports, and the memory of the node [MB] over time.

    Raises: ProgramError when one fails; StoppedError when stopped.
    """
    node = programs.start('node', source.module, '--ros-args', *source.node_arguments(args))
    programs.start('recorder', 'zeroflow_ros.recorder', '--out', out / 'flow.mcap', '--replace',
                   '--flow-node', source.flow_node, '--report', out / 'recorder.json', '--most-flow', source.num_sweeps,
                   *(['--odometry-topic', source.odometry_topic] if source.odometry_topic else []))  # fmt: skip
    programs.wait_until(
        lambda: RECORDING_STARTED in programs.log('recorder').read_text(errors='replace'),
        'node and recorder',
        timeout=_START_TIMEOUT,
    )
    print(f'Playing {source.path} at {args.rate:g}x, ego motion: {source.ego_motion} ...', flush=True)
    topics = [word for topic in source.played for word in ('--topic', topic)]
    programs.start('replay', 'zeroflow_ros.replay', source.path, *topics, '--rate', args.rate, '--times', args.times,
                   '--wait-for-subscribers', 1, '--report', out / 'replay.json')  # fmt: skip
    memory: list[float] = []

    def has_ended(name: str) -> bool:  # and samples the node's memory
        megabytes = resident_megabytes(node.pid)
        if megabytes is not None:
            memory.append(megabytes)
        if not programs.is_running('node'):
            raise programs.failure('node', 'ended before the bag did')
        return not programs.is_running(name)

    programs.wait_until(lambda: has_ended('replay'), 'the end of the bag')
    played = time.monotonic()
    programs.wait_until(lambda: has_ended('recorder') or time.monotonic() > played + _RECORD_AFTER, 'the last flow')
    programs.interrupt('recorder')  # it waits through pauses of the bag; without any flow it ends with an error
    programs.wait_for_exit('recorder', 'the recording', timeout=60.0)
    programs.interrupt('node')
    programs.wait_for_exit('node', 'the end of the node', timeout=10.0)
    reports = {name: json.loads((out / f'{name}.json').read_text()) for name in ('replay', 'recorder')}
    return {**reports, 'memory': memory}


def _explain_no_flow(source: Source | CameraSource, out: Path, args) -> None:
    """Raises: DataError, with the reasons in the node's diagnostics, where that is why a program failed."""
    if not all((out / f'{name}.json').is_file() for name in ('replay', 'recorder')):
        return
    reports = {name: json.loads((out / f'{name}.json').read_text()) for name in ('replay', 'recorder')}
    if not reports['recorder']['flow_received']:
        summary = make_summary(source, reports, (0, 0)).with_names(option_names(vars(args)))
        summary.check()


def make_report(source: Source | CameraSource, reports: dict, summary: RunSummary, num_moving: list[int], rate: float,
                machine: dict) -> dict:  # fmt: skip
    """Return the report of a run; latencies in milliseconds.

    reports: see `play_and_record`. summary: see `make_summary`. machine: see `hardware`.
    """
    replay, recorder = reports['replay'], reports['recorder']
    timings = recorder['timings']
    sent = defaultdict(list)  # publishing times by stamp: a bag that is played several times repeats its stamps
    for sweep in replay['sweeps']:
        sent[sweep['stamp_ns']].append(sweep['published_wall_ns'])
    stages = {stage: timings.get(stage, []) for stage in source.stages}
    stages['node'] = timings.get('total', [])
    model = ('pillars', 'inference', 'objects')
    if 'pillars' in stages and len({len(timings.get(stage, [])) for stage in ('total', *model)}) == 1:
        parts = zip(stages['node'], *(stages[stage] for stage in model), strict=True)
        stages['overhead'] = [total - sum(spent) for total, *spent in parts]
    stages['end_to_end'] = [
        (flow['received_wall_ns'] - max(before)) * 1e-6
        for flow in recorder['flow']
        if (before := [wall_ns for wall_ns in sent[flow['stamp_ns']] if wall_ns <= flow['received_wall_ns']])
    ]
    return {
        'bag': str(source.path),
        'rate': rate,
        'ego_motion': source.ego_motion,
        **summary.report(),
        'sweeps_played': replay['sweeps_played'],
        'flow_published': recorder['flow_received'],
        'latency_ms': {stage: percentiles(values) for stage, values in stages.items()},
        'moving_points': sum(num_moving),
        'moving_points_per_sweep': percentiles(num_moving),
        'node_memory_mb': _memory(reports['memory']),
        'hardware': machine,
    }


def _memory(megabytes: list[float]) -> dict:
    """Return the first, last and largest of the resident megabytes, and the median of each quarter of the time."""
    if not megabytes:
        return {}
    quarters = [round(float(np.median(part)), 1) for part in np.array_split(megabytes, 4) if len(part)]
    return {'first': megabytes[0], 'last': megabytes[-1], 'max': max(megabytes), 'by_quarter': quarters}


def make_summary(source: Source | CameraSource, reports: dict, counts: tuple[int, int]) -> RunSummary:
    """Return what became of sweeps and points, with what the node's diagnostics said since its start.

    reports: see `play_and_record`. counts: points with a return, and with a velocity.
    """
    values = _values(reports['recorder'])
    for kind in _ONLY_HERE:
        values.pop(SEEN + kind, None)
    dropped = _dropped(reports['replay']['sweeps_played'], reports['recorder'])
    return RunSummary.of_diagnostics(values, source.topic, dropped, num_points=counts[0], num_valid=counts[1],
                                     kind=source.kind)  # fmt: skip


def _values(recorder: dict) -> dict[str, str]:
    """Return the facts of the last diagnostics, of all parts of the node."""
    values = {}
    for status in recorder['diagnostics'].values():
        values.update(status['values'])
    return values


def _dropped(num_played: int, recorder: dict) -> dict:
    """Return the sweeps without flow by reason: as the node counts them, and those lost between two processes."""
    values = _values(recorder)
    dropped = {key.split('.', 1)[1]: int(count) for key, count in values.items() if key.startswith('dropped.')}
    received, published = int(values.get('received', 0)), int(values.get('published', 0))
    dropped['lost_before_the_node'] = num_played - received
    dropped['lost_after_the_node'] = published - recorder['flow_received']
    return {reason: count for reason, count in dropped.items() if count}


def print_report(report: dict, summary: RunSummary) -> None:
    """Print the report as text."""
    dropped = ', '.join(f'{count} {reason}' for reason, count in report['dropped'].items()) or 'none'
    noun = summary.kind.text('sweeps')
    print(f'\n{report["sweeps_played"]} {noun} played, {report["flow_published"]} flow published, dropped: {dropped}')
    print('\n'.join(summary.lines()[1:]))
    print(latency_table(report['latency_ms']))
    overhead = ' overhead: node without pillars and inference;' if 'overhead' in report['latency_ms'] else ''
    print(f'node: input-to-output latency;{overhead} end_to_end: player to recorder')
    per_sweep = report['moving_points_per_sweep']['p50']
    print(f'{report["moving_points"]:,} moving points (> 0.5 m/s), {per_sweep:,.0f} in the median {noun[:-1]}')
    memory, machine = report['node_memory_mb'], report['hardware']
    quarters = ', '.join(f'{megabytes:.0f}' for megabytes in memory['by_quarter'])
    print(f'node memory at most {memory["max"]:.0f} MB; medians by quarter of the time {quarters}')
    print(f'{machine["cores"]} cores of {machine["cpu"]}, load {machine["load_average"]} before the start')


def environment(domain_id: int) -> dict:
    """Return environment variables that isolate the processes from other ROS nodes."""
    added = {'ROS_DOMAIN_ID': str(domain_id), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    profile = _shared_memory_profile()
    if profile is None:
        print('The Fast DDS profile for large messages is not installed: clouds may get lost.', file=sys.stderr)
    else:
        added |= {'FASTRTPS_DEFAULT_PROFILES_FILE': str(profile), 'FASTDDS_DEFAULT_PROFILES_FILE': str(profile)}
    if (_ROOT / 'training').is_dir():
        added['PYTHONPATH'] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get('PYTHONPATH', '')]))
    return added


def _shared_memory_profile() -> Path | None:
    """Return config/fastdds_shm.xml of the checkout, of the colcon workspace, or of the Python installation."""
    folders = [_ROOT]
    with contextlib.suppress(ImportError, LookupError, OSError):
        from ament_index_python.packages import get_package_share_directory

        folders.append(Path(get_package_share_directory('zeroflow_ros')))
    folders.append(Path(sys.prefix) / 'share' / 'zeroflow_ros')
    return next((path for folder in folders if (path := folder / 'config' / 'fastdds_shm.xml').is_file()), None)


def run(args, stop: threading.Event) -> None:
    """Run the demo. Raises: ZeroFlowError when anything fails; StoppedError when stopped."""
    if not args.rate > 0 or args.times < 1:
        raise ConfigError(f'--rate must be above 0 and --times at least 1, got {args.rate} and {args.times}.')
    out = Path(args.out).absolute()
    results = ('report.json', 'flow.mcap', 'flow.png', 'replay.json', 'recorder.json')
    for name in results:  # so that all results are of this run
        (out / name).unlink(missing_ok=True)
    machine = hardware()
    deadline = time.monotonic() + (args.timeout or 600.0)
    with ProcessGroup(out / 'log', environment(args.domain_id), deadline, stop) as programs:
        bag = Path(args.bag) if args.bag else simulate(out, programs, seed=args.seed, sweeps=args.sweeps)
        source = examine(bag, args.topic, args.ego_motion, args.fixed_frame, args.model, args.base_frame)
        if source.note:
            print(f'Ego motion by {source.ego_motion}: {source.note}', file=sys.stderr)
        if not args.timeout:
            programs.deadline = time.monotonic() + args.times * source.seconds / args.rate + _OVERHEAD
        try:
            reports = play_and_record(source, out, programs, args)
        except ProgramError:
            _explain_no_flow(source, out, args)
            raise
    num_moving = count_moving(out / 'flow.mcap')
    summary = make_summary(source, reports, count_valid(out / 'flow.mcap')).with_names(option_names(vars(args)))
    report = make_report(source, reports, summary, num_moving, args.rate, machine)
    source.draw(out / 'flow.mcap', num_moving, out / 'flow.png', f'Scene flow, {source.path.stem}')
    write_json(out / 'report.json', report)
    for name in ('replay.json', 'recorder.json'):
        os.replace(out / name, out / 'log' / name)
    print_report(report, summary)
    print(f'Results are in {out}: report.json, flow.mcap, flow.png')
    for line in summary.warnings():
        print(line, file=sys.stderr)
    summary.check()


def main(args: list[str] | None = None) -> int:
    """Run from a command line, sys.argv unless given; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='demo', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--bag', default='', help='rosbag2 directory, or a .mcap, .db3 or .bag file')
    parser.add_argument(
        '--topic', default='', help='cloud to use, or (left) image of a camera; default: the only one in the bag'
    )
    parser.add_argument('--ego-motion', choices=(*EGO_MOTION, 'visual'), default='auto',
                        help='auto: odometry when the bag has it, else tf, else registration of clouds, or visual: '
                        'from the images')  # fmt: skip
    parser.add_argument(
        '--fixed-frame', default='', help='frame fixed in the world, for tf; default: odom, map or world'
    )
    parser.add_argument('--sensor-height', type=float, help='height above the ground [m]; default: estimated')
    parser.add_argument('--base-frame', default=BASE_FRAME,
                        help="frame whose z is up and that /tf_static of the bag connects with the LiDAR; '': do not "
                        'look; default: base_link')  # fmt: skip
    parser.add_argument('--base-T-lidar', type=float, nargs=7, metavar=('X', 'Y', 'Z', 'QX', 'QY', 'QZ', 'QW'),
                        help='pose of the LiDAR in a frame whose z is up; default: from /tf_static')  # fmt: skip
    parser.add_argument('--out', default='out', help='folder for the results; default: out')
    parser.add_argument('--rate', type=float, default=1.0, help='playback speed, 1 is real time; default: 1')
    parser.add_argument('--times', type=int, default=1, help='number of times to play the bag; default: 1')
    parser.add_argument('--model', default='', help='model file; default: the bundled model')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads of the engine; default: 2')
    parser.add_argument('--seed', type=int, default=1, help='seed of the simulated drive; default: 1')
    parser.add_argument('--sweeps', type=int, default=50, help='sweeps of the simulated drive; default: 50')
    parser.add_argument(
        '--domain-id', type=int, default=1 + os.getpid() % 100, help='ROS domain; default: a private one'
    )
    parser.add_argument('--timeout', type=float, default=0.0, help='longest run of the demo [s]; default: from the bag')
    parsed = parser.parse_args(sys.argv[1:] if args is None else args)
    with stop_on_signals() as stop:
        try:
            run(parsed, stop)
        except StoppedError:
            print('demo: stopped', file=sys.stderr)
            return 130
        except (ZeroFlowError, OSError) as error:
            print(f'demo: {error}', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
