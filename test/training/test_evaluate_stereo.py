# SPDX-License-Identifier: Apache-2.0
"""The programs that score and draw, on stereo pairs."""

import json
import re

import pytest
from kitti_files import write_scene

from training import evaluate, inspect_flow


@pytest.fixture(scope='module')
def samples(shared_data):
    """Return the spec of the real samples."""
    return f'kitti_scene_flow:{shared_data}/kitti_sceneflow/training'


def test_the_classical_estimator_is_scored_as_kitti_scores_it(samples, tmp_path, capsys):
    out = tmp_path / 'stereo.json'
    assert evaluate.main(['--dataset', samples, '--pairs', '1', '--json', str(out)]) == 0
    report = json.loads(out.read_text(), parse_constant=pytest.fail)[samples]['classical']  # strict JSON
    outliers = report['pixels']['outliers_percent']['occ']
    # Plain semi-global matching and dense inverse search get 24 % on this pair, a floor that the estimator must beat.
    assert 0 < outliers['D1']['all'] < outliers['SF']['all'] < 14
    assert report['pixels']['pairs'] == 1 and report['failed_pairs'] == 0 and 'velocity' not in report
    text = capsys.readouterr().out
    row = next(line.split() for line in text.splitlines() if line.strip().startswith('classical'))
    assert float(row[4]) == pytest.approx(outliers['SF']['all'], abs=0.006) and str(out) in text


def test_pictures_of_stereo_pairs(samples, tmp_path, capsys):
    assert inspect_flow.main([samples, '--out', str(tmp_path), '--pairs', '1']) == 0
    assert (tmp_path / '000002_10.png').read_bytes().startswith(b'\x89PNG')
    assert '1 pairs in' in capsys.readouterr().out


def test_a_pair_without_ego_motion_is_drawn_without_the_estimator(tmp_path, capsys):
    root = write_scene(tmp_path / 'split', size=(96, 48))  # random images: nothing can be matched
    out = tmp_path / 'pictures'
    assert inspect_flow.main([f'kitti_scene_flow:{root}', '--out', str(out), '--estimator', 'classical']) == 0
    assert 'classical is not drawn for 000000_10: ' in capsys.readouterr().err
    assert (out / '000000_10.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'program, options, said',
    [
        (evaluate, ['--perturb', 'stray:0.01'], '--perturb is for sweeps'),
        (evaluate, ['--picture', 'scores.png'], '--picture is for sweeps'),
        (evaluate, ['--sweep', 'latest'], 'ground truth of the older frame of a pair only'),
        (evaluate, ['--estimator', 'embedded'], "Unknown estimator of stereo pairs 'embedded'"),
        (evaluate, ['--estimator', 'classical?size=2'], r"'size=2' .* is not a valid option. Known options: scale"),
        (evaluate, [], 'None of 1 pairs of kitti_scene_flow split has ground truth'),
        (inspect_flow, ['--view'], 'stereo pairs are drawn with --out FOLDER'),
        (inspect_flow, ['--out', 'x', '--estimator', 'rigid'], "Unknown estimator of stereo pairs 'rigid'"),
    ],
)
def test_what_stereo_pairs_do_not_have_is_said(tmp_path, capsys, program, options, said):
    root = write_scene(tmp_path / 'split', truth=False)
    dataset = [f'kitti_scene_flow:{root}'] if program is inspect_flow else ['--dataset', f'kitti_scene_flow:{root}']
    assert program.main([*dataset, *options]) == 1
    assert re.search(said, capsys.readouterr().err)
