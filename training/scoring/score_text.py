# SPDX-License-Identifier: Apache-2.0
"""Scores as text tables."""

import math
from pathlib import Path

_OVERALL = (
    ('with flow', lambda r: r['share_with_flow']),
    ('3-way [m]', lambda r: r['three_way']['mean']),
    ('FD', lambda r: r['three_way']['FD']),
    ('FS', lambda r: r['three_way']['FS']),
    ('BS', lambda r: r['three_way']['BS']),
    ('AccS', lambda r: r['acc_strict']),
    ('AccR', lambda r: r['acc_relaxed']),
    ('angle', lambda r: r['angle_error_rad']),
    ('IoU', lambda r: r['dynamic_iou']),
    ('>0.5m/s', lambda r: r['moving_share']),
    ('new>0.5', lambda r: r['came_into_view_moving_share']),
)
_MOVING = (
    ('norm. EPE', lambda r: r['dynamic_normalised_epe']),
    ('EPE m/s', lambda r: r['dynamic_epe_mps']),
    ('true m/s', lambda r: r['dynamic_speed_mps']),
    ('still m/s', lambda r: r['static_epe_mps']),
    ('bucketed', lambda r: r['bucketed_35m']['mean_dynamic']),
    ('static [m]', lambda r: r['bucketed_35m']['mean_static']),
)
_STEREO_PIXELS = (
    *((m, lambda r, m=m: r['outliers_percent']['occ'][m]['all']) for m in ('D1', 'D2', 'Fl', 'SF')),
    ('SF bg', lambda r: r['outliers_percent']['occ']['SF']['bg']),
    ('SF fg', lambda r: r['outliers_percent']['occ']['SF']['fg']),
    ('SF noc', lambda r: r['outliers_percent']['noc']['SF']['all']),
    ('SF meas.', lambda r: r['outliers_percent_measured']['occ']['SF']['all']),
    ('measured', lambda r: 100 * r['density']['SF']),
    ('EPE3D [cm]', lambda r: 100 * r['epe_3d']['all']),
    ('AccR 3D', lambda r: 100 * r['acc_relaxed_3d']['all']),
)
_ONE_CAMERA = (
    *((m, lambda r, m=m: r['pooled_percent'][m]) for m in ('D1', 'D2', 'Fl', 'SF')),
    *((f'{m} publ.', lambda r, m=m: r['published_percent'][m]) for m in ('D1', 'D2', 'Fl', 'SF')),
    ('AbsRel', lambda r: r['published_abs_rel']),
    ('SqRel', lambda r: r['published_sq_rel']),
)
_DEPTH = (
    ('AbsRel', lambda r: r['abs_rel']),
    ('SqRel', lambda r: r['sq_rel']),
    ('RMSE', lambda r: r['rmse']),
    ('RMSE log', lambda r: r['rmse_log']),
    ('<1.25', lambda r: r['delta_1']),
    ('<1.25^2', lambda r: r['delta_2']),
    ('<1.25^3', lambda r: r['delta_3']),
)
_SHOWN_DEPTHS = (('none', 80.0, 'none'), ('garg', 80.0, 'none'), ('garg', 50.0, 'none'), ('garg', 80.0, 'median'))
_STEREO_VELOCITY = (
    ('norm. EPE', lambda r: r['mover_normalised_epe']),
    ('EPE m/s', lambda r: r['mover_epe_mps']),
    ('true m/s', lambda r: r['mover_speed_mps']),
    ('with flow', lambda r: 100 * r['mover_with_velocity_share']),
    ('found', lambda r: 100 * r['mover_found_share']),
    ('static >0.5', lambda r: 100 * r['static_fast_share']),
    ('static moves', lambda r: 100 * r['static_moving_share']),
)


def stereo_score_text(name: str, reports: dict[str, dict]) -> str:
    """Return the reports of all stereo estimators on one dataset as tables, one line per estimator."""
    lines = []
    for kind, columns, title in (
        ('pixels', _STEREO_PIXELS, 'outliers [%] as KITTI counts them, occluded pixels included; shares [%]'),
        ('velocity', _STEREO_VELOCITY, 'velocity of movers within 30 m; shares [%] of their points and of static ones'),
    ):
        chosen = {estimator: report[kind] for estimator, report in reports.items() if kind in report}
        if chosen:
            first = next(iter(chosen.values()))
            count = f'{first["pixels"]:,} pixels' if kind == 'pixels' else f'{first["mover_points"]:,} points of movers'
            lines += [f'{name}: {first["pairs"]} pairs, {count}', *_table(title, columns, chosen, digits=2)]
    lines += _one_camera_lines(reports) + _depth_lines(name, reports)
    timed = [('ms', lambda r: r['ms_per_pair'])]
    lines += [
        f'  {short_name(estimator)}: {report["skipped_pairs"]} pairs not scored, without an earlier image'
        for estimator, report in reports.items()
        if report.get('skipped_pairs')
    ]
    lines += [
        f'  {short_name(estimator)}: {report["failed_pairs"]} pairs failed, for example {report["failures"][0]}'
        for estimator, report in reports.items()
        if report['failed_pairs']
    ]
    return '\n'.join([*lines, *_table('median time of a pair, on this machine', timed, reports, digits=0)])


def _one_camera_lines(reports: dict[str, dict]) -> list[str]:
    chosen = {estimator: report['one_camera'] for estimator, report in reports.items() if 'one_camera' in report}
    title = (
        'one camera: outliers [%], nothing filled; publ.: as published, by the mean number of pixels of the 200 '
        'images; depth errors with a baseline of 0.54 m'
    )
    return _table(title, _ONE_CAMERA, chosen, digits=3) if chosen else []


def _depth_lines(name: str, reports: dict[str, dict]) -> list[str]:
    chosen = {estimator: report['depth'] for estimator, report in reports.items() if 'depth' in report}
    rows = {}
    for estimator, report in chosen.items():
        for row in report['rows']:
            crop, cap, scaling = (row[part] for part in ('crop', 'cap', 'scaling'))
            if (crop, cap, scaling) in _SHOWN_DEPTHS:
                said = (
                    f'{"whole image" if crop == "none" else crop} to {cap:g} m{", median scaled" * (scaling != "none")}'
                )
                rows[f'{short_name(estimator)}, {said}'] = row
    if not rows:
        return []
    first = next(iter(chosen.values()))
    return [
        f'{name}: {first["images"]} images, {first["pixels"]:,} pixels with true depth',
        *_table('depth: mean of the images; SqRel, RMSE [m]', _DEPTH, rows, digits=3),
    ]


def score_text(name: str, reports: dict[str, dict]) -> str:
    """Return the reports of all estimators on one dataset as tables, one line per estimator."""
    first = next(iter(reports.values()))
    lines = [f'{name}: {first["pairs"]} pairs, {first["points"]:,} points']
    lines += _table('all points', _OVERALL, reports)
    lines += _table(
        'dynamic points (0.05 m or more); static points; bucketed normalised EPE within 35 m', _MOVING, reports
    )
    by_class = [(kind, lambda r, kind=kind: r['by_class'][kind]['normalised_epe']) for kind in first['by_class']]
    lines += _table('normalised EPE of dynamic points, by class', by_class, reports)
    groups = [
        (range_label(group), lambda r, k=k: r['by_speed'][k]['normalised_epe' if k else 'epe'])
        for k, group in enumerate(first['by_speed'])
    ]
    lines += _table('normalised EPE by ground-truth flow [m]; first group: EPE [m]', groups, reports)
    for kind, what in (('static_epe', 'up to'), ('dynamic_epe', 'above')):
        ranges = [
            (range_label(part), lambda r, k=k, kind=kind: r['by_range'][k][kind])
            for k, part in enumerate(first['by_range'])
        ]
        mean = ('mean', lambda r, kind=kind: r[f'range_mean_{kind.removesuffix("_epe")}'])
        lines += _table(f'EPE [m] of points {what} 1.4 m/s, by distance [m]', [*ranges, mean], reports)
    return '\n'.join(lines)


def perturbation_text(name: str, reports: dict[str, dict[str, dict]]) -> str:
    """Return the reports by perturbation and estimator as one table, one line per perturbation, the first is clean."""
    clean = next(iter(reports.values()))
    first = next(iter(clean.values()))
    width = max(len(perturbation) for perturbation in reports)
    names = {estimator: short_name(estimator) for estimator in clean}
    columns = {estimator: max(32, len(short) + 2) for estimator, short in names.items()}
    lines = [
        f'{name}: {first["pairs"]} pairs, {first["points"]:,} points',
        '  norm. EPE: of dynamic points; / clean: its ratio to that of the first line; >0.5m/s: share of all points',
        ' ' * (width + 12) + ''.join(f'{names[estimator]:>{column}}' for estimator, column in columns.items()),
        ' ' * (width + 4) + '  points' + ''.join(f'{"norm. EPE   / clean   >0.5m/s":>{c}}' for c in columns.values()),
    ]
    errors = []
    for perturbation, by_estimator in reports.items():
        points = next((f'{report["points"]:,}' for report in by_estimator.values() if 'points' in report), '-')
        line = f'    {perturbation:{width}}{points:>8}'
        for estimator, column in columns.items():
            report = by_estimator[estimator]
            error, share = (report.get(key, math.nan) for key in ('dynamic_normalised_epe', 'moving_share'))
            ratio = error / clean[estimator]['dynamic_normalised_epe'] if 'error' not in report else math.nan
            values = f'{_number(error):>9}{_number(ratio, 2):>10}{_number(100 * share, 1, " %"):>10}'
            line += f'{values:>{column}}'
            if 'error' in report:
                errors.append(f'  {names[estimator]}, {perturbation}: {report["error"]}')
        lines.append(line)
    return '\n'.join(lines + errors)


def _table(title: str, columns, reports: dict[str, dict], digits: int = 4) -> list[str]:
    if not columns:
        return []
    width = max(len(short_name(name)) for name in reports)
    column = max(10, 2 + max(len(heading) for heading, _ in columns))
    lines = [f'  {title}', ' ' * (width + 4) + ''.join(f'{heading:>{column}}' for heading, _ in columns)]
    for name, report in reports.items():
        values = ''.join(f'{_number(value(report), digits):>{column}}' for _, value in columns)
        lines.append(f'    {short_name(name):{width}}{values}')
    return lines


def range_label(group: dict) -> str:
    """Return the limits of a group as text."""
    return f'{group["from"]:g}-{group["to"]:g}' if math.isfinite(group['to']) else f'> {group["from"]:g}'


def short_name(name: str) -> str:
    """Return a short name for a heading: the last two parts of a path, other names unchanged."""
    return '/'.join(Path(name).parts[-2:]) if '/' in name else name


def _number(value: float, digits: int = 4, unit: str = '') -> str:
    return '-' if math.isnan(value) else f'{value:.{digits}f}{unit}'
