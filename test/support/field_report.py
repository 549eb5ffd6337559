# SPDX-License-Identifier: Apache-2.0
"""Compute the flow of recordings as drivers, mounts and weather make them, and print a table of what came out.

usage: make field BAGS=FOLDER BOXES=BOXES.json [ARGS='--kinds world halves --out out/field']
       PYTHONPATH=. python test/support/field_report.py FOLDER BOXES.json

FOLDER has one bag per sub-folder, each the same drive; `clean` is the drive as recorded. BOXES are the tracked boxes of
the clean bag, as for bag:BAG+BOXES.json. Each bag goes through `replay --offline`. Velocities are scored at the points
where the boxes are, whatever frame and stamps the clouds of a kind have. A kind is right within 20 % of clean; else it
must be refused, or warn, with the cause. Exit status: 1 when a kind is silently wrong.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from training.datasets.tracked_boxes import box_points, read_boxes
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, decode_message
from zeroflow_ros.errors import DataError, ZeroFlowError
from zeroflow_ros.lidar.point_cloud import decode_cloud, decode_velocity
from zeroflow_ros.runtime.offline import FLOW_TOPIC
from zeroflow_ros.transforms import apply, from_quaternion, invert
from zeroflow_ros.views.report import write_json

CLEAN = 'clean'
RIGHT, REFUSED, WARNED, WRONG = 'right', 'refused', 'WARN', '**WRONG**'
_MOVER = 0.5  # m/s
_WITHIN = 1.2  # times the error of clean
_MORE_MOVING = 0.02  # of the points outside boxes
_LEAST = 0.8  # of the sweeps and of the points of clean
_SAME_PLACE = 0.05  # m: median distance to the points of the clean sweep
_TIMEOUT = 900.0  # s
_MILLISECOND_NS = 1_000_000
# What a message must contain to name the cause, for the kinds that are known; for others any message will do.
_CAUSES = {
    'clutter|snow|rain': r'rain|snow',
    'pitch|roll|upside|optical': r'tilt|mount|base-T-lidar', 'base_link': r'height|base_link', 'ground': r'ground',
    'zeros': r'0 0 0|no return', 'halves|segments|part': r'revolution|part', 'twist': r'pose|twist', 'world': r'frame',
    'scaled|late': r'times as far|stamped', 'row_step': r'row_step', 'time_zero': r'skip|pause|time',
    'wal': r'-wal|recorder',
}  # fmt: skip


@dataclass(frozen=True)
class Drive:
    """The clean bag: points (N, 3), pose odom_T_lidar (4, 4) and boxes of each sweep, by its stamp in order [ns]."""

    stamps_ns: np.ndarray
    points: list[np.ndarray]
    poses: list[np.ndarray]
    boxes: list[list[dict]]


@dataclass
class Result:
    """What came of one kind; the numbers are NaN or 0 where there is no flow."""

    kind: str
    status: int
    said: list[str] = field(default_factory=list)
    sweeps: int = 0
    valid_share: float = 0.0
    normalised_epe: float = float('nan')
    still_moving: float = float('nan')
    note: str = ''


def read_drive(path: Path, boxes: Path) -> Drive:
    """Raises: DataError when boxes and clouds do not belong together, or a cloud has no odometry at its stamp."""
    poses = read_poses(path)
    stamps, points = [], []
    with Bag(path) as bag:
        for recorded in bag.messages([bag.point_cloud_topic()]):
            sweep = decode_cloud(decode_message(recorded.cdr, POINT_CLOUD))
            stamps.append(sweep.stamp_ns)
            points.append(sweep.points)
    found = read_boxes(boxes)
    if len(found) < len(stamps) or not set(stamps) <= set(poses):
        raise DataError(
            f'{path} has {len(stamps)} clouds and {len(poses)} poses, {boxes} has boxes of {len(found)} sweeps. Each '
            'cloud needs boxes, and odometry with its stamp.'
        )
    return Drive(np.array(stamps), points, [poses[stamp] for stamp in stamps], found)


def read_poses(path: Path) -> dict[int, np.ndarray]:
    """Return odom_T_child, (4, 4), of each odometry message by stamp [ns]; {} without odometry."""
    poses = {}
    with Bag(path) as bag:
        for recorded in bag.messages(bag.topics_of(ODOMETRY)):
            message = decode_message(recorded.cdr, ODOMETRY)
            p, q = message.pose.pose.position, message.pose.pose.orientation
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            poses[stamp] = from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
    return poses


def score(drive: Drive, flow_bag: Path, poses: dict[int, np.ndarray], result: Result) -> None:
    """Fill in the numbers of a result from the flow of a bag.

    poses: of the odometry of that bag, see `read_poses`. Velocities that are missing count as 0.
    """
    errors, speeds, num_moving, num_still, stamps = [], [], 0, 0, set()
    with Bag(flow_bag) as bag:
        for recorded in bag.messages([FLOW_TOPIC]):
            message = decode_message(recorded.cdr, POINT_CLOUD)
            sweep, velocity = decode_cloud(message), decode_velocity(message)
            # Clouds of a part of a revolution are stamped after the sweep that they are from.
            k = int(np.searchsorted(drive.stamps_ns, sweep.stamp_ns + _MILLISECOND_NS)) - 1
            if k < 1:
                continue
            stamps.add(k)
            lidar_T_cloud, distance = lidar_from_cloud(drive, k, sweep.points, poses)
            if distance > _SAME_PLACE:
                result.note = f'points are {distance:.2f} m from those of clean, so the score is not reliable'
            points = apply(lidar_T_cloud, sweep.points)
            velocity = velocity @ lidar_T_cloud[:3, :3].T
            known = np.isfinite(velocity).all(axis=1)
            in_box = np.zeros(len(points), bool)
            before_T_now = invert(drive.poses[k - 1]) @ drive.poses[k]
            dt = (drive.stamps_ns[k] - drive.stamps_ns[k - 1]) * 1e-9
            for box in box_points(points, drive.boxes[k], drive.boxes[k - 1], before_T_now, dt):
                in_box[box.rows] = True
                speed = np.linalg.norm(box.velocity, axis=1)
                if np.median(speed) > _MOVER:
                    found = np.where(known[box.rows, None], velocity[box.rows], 0)
                    errors.append(np.linalg.norm(found - box.velocity, axis=1))
                    speeds.append(speed)
            still = known & ~in_box
            num_still += np.count_nonzero(still)
            num_moving += np.count_nonzero(np.linalg.norm(velocity[still], axis=1) > _MOVER)
    result.sweeps = len(stamps)
    if errors:
        result.normalised_epe = float(np.concatenate(errors).mean() / np.concatenate(speeds).mean())
    if num_still:
        result.still_moving = num_moving / num_still


def lidar_from_cloud(drive: Drive, k: int, points: np.ndarray, poses: dict) -> tuple[np.ndarray, float]:
    """Return lidar_T_cloud, (4, 4), from the frame of a kind into that of clean, and the median distance left [m].

    Candidates: the same frame, the frame that the kind's odometry moves, and the world. The best one fits the points.
    """
    world = invert(drive.poses[k])
    stamp = min(poses, key=lambda stamp: abs(stamp - drive.stamps_ns[k]), default=None)
    candidates = [np.eye(4), world] + ([world @ poses[stamp]] if stamp is not None else [])
    chosen = points[np.isfinite(points).all(axis=1) & (np.abs(points) > 0.01).any(axis=1)]
    chosen = chosen[:: 1 + len(chosen) // 300].astype(np.float64)
    clean = drive.points[k]
    tree = cKDTree(clean[np.isfinite(clean).all(axis=1)])
    distances = [float(np.median(tree.query(apply(T, chosen))[0])) if len(chosen) else np.inf for T in candidates]
    best = int(np.argmin(distances))
    return candidates[best], distances[best]


def run_kind(folder: Path, out: Path, drive: Drive, options: list[str]) -> Result:
    """Compute the flow of one bag in a process of its own, and score it."""
    out.mkdir(parents=True, exist_ok=True)
    report = out / 'report.json'
    report.unlink(missing_ok=True)
    command = [sys.executable, '-m', 'zeroflow_ros.replay', folder, '--offline', '--out', out / 'flow', '--replace',
               '--report', report, *options]  # fmt: skip
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Result(folder.name, -1, ['timed out'])
    (out / 'log.txt').write_text(done.stdout + done.stderr)
    said = [line.split('\r')[-1].strip() for line in done.stderr.splitlines()]
    said = ['Traceback: ' + said[-1]] if any(line.startswith('Traceback') for line in said) else said
    result = Result(folder.name, done.returncode, [line for line in said if line])
    if report.is_file():
        result.valid_share = json.loads(report.read_text()).get('share_with_velocity', 0.0)
    if done.returncode == 0:
        score(drive, out / 'flow', read_poses(folder), result)
    return result


def verdict(result: Result, clean: Result) -> str:
    """Return one of RIGHT, REFUSED, WARNED and WRONG."""
    new = [line for line in result.said if line not in clean.said]
    cause = next((cause for kinds, cause in _CAUSES.items() if re.search(kinds, result.kind)), '')
    names_cause = any(re.search(cause, line, re.IGNORECASE) for line in new)
    if result.status:
        return REFUSED if names_cause and 'Traceback' not in ' '.join(new) else WRONG
    right = (
        result.normalised_epe <= _WITHIN * clean.normalised_epe
        and result.still_moving <= clean.still_moving + _MORE_MOVING
        and result.sweeps >= _LEAST * clean.sweeps
        and result.valid_share >= _LEAST * clean.valid_share
    )
    return RIGHT if right else WARNED if names_cause else WRONG


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table; one of them is CLEAN."""
    clean = next(result for result in results if result.kind == CLEAN)
    lines = [
        '| kind | sweeps with flow | points with velocity | movers, normalised EPE | still points that move | said '
        '| verdict |',
        '|---|---|---|---|---|---|---|',
    ]
    for result in results:
        said = [line for line in result.said if result is clean or line not in clean.said]
        text = '; '.join(_short(line) for line in [*said, result.note] if line) or 'nothing'
        numbers = [
            f'{result.sweeps}', f'{100 * result.valid_share:.0f} %', f'{result.normalised_epe:.3f}',
            f'{100 * result.still_moving:.1f} %',
        ]  # fmt: skip
        numbers = numbers if result.sweeps else ['0', '', '', '']
        lines.append(f'| {result.kind} | {" | ".join(numbers)} | {text} | {verdict(result, clean)} |')
    return '\n'.join(lines)


def _short(line: str, most: int = 110) -> str:
    line = re.sub(r'/\S*/', '', line).replace('|', '/')
    return line if len(line) <= most else line[:most].rsplit(' ', 1)[0] + ' ...'


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'field_report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('bags', type=Path, help='folder with one bag per sub-folder')
    parser.add_argument('boxes', type=Path, help='tracked boxes of the clean bag')
    parser.add_argument('--kinds', nargs='+', default=[], help='sub-folders to use, besides clean; default: all')
    parser.add_argument('--out', type=Path, default=Path('out/field'), help='folder for flow, logs and results.json')
    parser.add_argument('--options', default='', help="more options of replay, for example '--ego-motion none'")
    parsed = parser.parse_args(arguments)
    try:
        drive = read_drive(parsed.bags / CLEAN, parsed.boxes)
        kinds = [folder.name for folder in sorted(parsed.bags.iterdir()) if folder.is_dir() and folder.name != CLEAN]
        kinds = [CLEAN, *(kind for kind in kinds if not parsed.kinds or kind in parsed.kinds)]
        results = []
        for kind in kinds:
            print(f'{kind} ...', file=sys.stderr, flush=True)
            results.append(run_kind(parsed.bags / kind, parsed.out / kind, drive, parsed.options.split()))
    except (ZeroFlowError, OSError) as error:
        print(f'field_report: {error}', file=sys.stderr)
        return 1
    verdicts = {result.kind: verdict(result, results[0]) for result in results}
    write_json(parsed.out / 'results.json', {r.kind: {**vars(r), 'verdict': verdicts[r.kind]} for r in results})
    print(table(results))
    print(f'Results are in {parsed.out}')
    return 1 if WRONG in verdicts.values() else 0


if __name__ == '__main__':
    sys.exit(main())
