# SPDX-License-Identifier: Apache-2.0
"""Submissions: total flow where a board wants it, residual where it wants that, nothing that a board would refuse."""

import importlib
import sys
import types
import zipfile
from importlib.util import find_spec
from unittest.mock import MagicMock

import numpy as np
import pytest
from argoverse2_files import STAMPS, write_log
from scenes import stamp, write_scene
from submissions import FLOW, Known, Turning, flow_of, read, write_masks

from training import submit
from training.datasets import open_dataset
from training.datasets.argoverse2_log import read_columns
from training.scoring.boards import decode, encode
from zeroflow_ros.errors import DataError

AV2_LOG = 'av2/val/7fab2350-7eaf-3b7e-a39d-6937a4c1bede'


# By hand: what stands at (3, 2, 1) of ego0 is 2 m ahead and 2 m to the left of the vehicle once it has driven, and so
# at (2, -2, 1) of ego1 once it has turned; 2 m further along y of ego0 is (4, -2, 1). The origin is seen 1 m behind,
# that is at (0, 1, 0) of ego1; 4 cm along y of ego0 are 4 cm along x of ego1. (7, 7, 7) got no flow: (7, -6, 7).
TOTAL = np.array([[1, -4, 0], [-1, -4, 0], [0.04, 1, 0], [0, -13, 0]])
RESIDUAL = np.array([[0, 2, 0], [0, 0, 0], [0, 0.04, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    'board, name, expected, others',
    [
        ('v1', 'log/1000.feather', TOTAL, {'is_dynamic': [True, False, False, False]}),
        ('v2', 'log/0000000000.feather', RESIDUAL, {'is_valid': [True] * 4}),
        ('v3', 'log/1000.feather', RESIDUAL, {}),
    ],
)
def test_of_a_vehicle_that_moves_v1_gets_total_flow_and_the_others_residual(tmp_path, board, name, expected, others):
    masks = write_masks(tmp_path / 'masks.zip', {'log/1000': np.ones(4, bool)}) if board == 'v1' else None
    found = submit.submit(Known(Turning.residual), Turning(), board, tmp_path / 'out' / 's.zip', masks=masks)
    assert found == {'files': 1, 'rows': 4, 'without_flow': 0.25}
    files = read(tmp_path / 'out' / 's.zip')
    if board == 'v2':
        assert files.pop('metadata.json') == {'Is Supervised?': False}
    [(found_name, columns)] = files.items()
    assert found_name == name and list(columns) == {
        'v1': [*FLOW, 'is_dynamic'], 'v2': ['is_valid', *FLOW], 'v3': FLOW
    }[board]  # fmt: skip
    np.testing.assert_allclose(flow_of(columns), expected, atol=1e-5)  # exact in float16 but for 0.04
    assert all(columns[name].dtype == np.float16 for name in FLOW)
    for column, values in others.items():
        assert columns[column].dtype == bool and columns[column].tolist() == values


def test_v1_has_the_rows_of_the_mask_in_their_order(tmp_path):
    masks = write_masks(tmp_path / 'm.zip', {'log/1000': np.array([False, True, False, True])})
    submit.submit(Known(Turning.residual), Turning(('log/1000', 'log/2000')), 'v1', tmp_path / 's.zip', masks=masks)
    [columns] = read(tmp_path / 's.zip').values()
    np.testing.assert_allclose(flow_of(columns), TOTAL[[1, 3]], atol=1e-5)


def test_v2_counts_sweeps_by_five_in_each_log(tmp_path):
    keys = [f'{log}/{1000 * k}' for log in ('b', 'a') for k in range(2, 14)]  # 12 pairs each
    submit.submit(Known(), Turning(tuple(keys)), 'v2', tmp_path / 's.zip', supervised=True)
    files = read(tmp_path / 's.zip')
    assert files.pop('metadata.json') == {'Is Supervised?': True}
    assert sorted(files) == [f'{log}/{number:010d}.feather' for log in 'ab' for number in (0, 5, 10)]


def test_v3_has_all_pairs_or_those_listed(tmp_path):
    dataset = Turning(('a/1000', 'a/2000', 'b/1000'))
    submit.submit(Known(), dataset, 'v3', tmp_path / 's.zip')
    assert sorted(read(tmp_path / 's.zip')) == ['a/1000.feather', 'a/2000.feather', 'b/1000.feather']
    submit.submit(Known(), dataset, 'v3', tmp_path / 's.zip', only=('b/1000',))
    assert sorted(read(tmp_path / 's.zip')) == ['b/1000.feather']
    with pytest.raises(DataError, match='turning lacks 2 of 3 expected pairs, for example c/1'):
        submit.submit(Known(), dataset, 'v3', tmp_path / 's.zip', only=('a/1000', 'c/1', 'c/2'))
    assert sorted(read(tmp_path / 's.zip')) == ['b/1000.feather']  # what was there stays


def test_an_estimator_of_zero_flow_on_a_log_submits_the_motion_of_the_vehicle(tmp_path, capsys):
    """The vehicle drives 1 m along x between sweeps, so what stands comes 1 m nearer."""
    write_log(tmp_path / 'logs' / 'log')
    mask = np.array([True, True, False, True, False, True])
    masks = write_masks(tmp_path / 'masks.zip', {f'log/{STAMPS[0]}': mask, f'log/{STAMPS[1]}': ~mask})
    out, dataset = tmp_path / 's.zip', f'av2:{tmp_path / "logs"}'
    assert submit.main(['zero', dataset, '--board', 'v1', '--masks', str(masks), '--out', str(out)]) == 0
    assert '2 files, 6 rows, checked; 0.0% of the rows have no flow' in capsys.readouterr().out
    for columns in read(out).values():
        np.testing.assert_allclose(flow_of(columns), np.tile([-1, 0, 0], (len(columns['is_dynamic']), 1)), atol=1e-6)
        assert not columns['is_dynamic'].any()
    assert submit.main(['zero', dataset, '--board', 'v3', '--out', str(out)]) == 0
    files = read(out)
    assert sorted(files) == [f'log/{STAMPS[k]}.feather' for k in (0, 1)]
    assert not any(flow_of(columns).any() for columns in files.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ['logs', 'masks.zip', 's.zip']


def test_scenes_are_submitted_too(tmp_path):
    residual = write_scene(tmp_path / 'a.h5')
    dataset = open_dataset(str(tmp_path))
    submit.submit(Known(residual), dataset, 'v3', tmp_path / 's.zip')
    files = read(tmp_path / 's.zip')
    assert sorted(files) == [f'a/{stamp(k)}.feather' for k in (0, 1)]
    for columns in files.values():
        np.testing.assert_allclose(flow_of(columns), residual, atol=5e-4)  # m, of 0.8 m in float16
    masks = write_masks(tmp_path / 'm.zip', {f'a/{stamp(0)}': np.ones(400, bool)})
    with pytest.raises(DataError, match=r'may be in a LiDAR frame.*\?calibration=LOGS'):
        submit.submit(Known(residual), dataset, 'v1', tmp_path / 's.zip', masks=masks)


def test_v2_does_not_number_sweeps_of_scenes_that_lack_some(tmp_path):
    write_scene(tmp_path / 'a.h5', with_flow=False, stamps=[str(10**18 + k * 100_000_000) for k in (0, 1, 3, 4)])
    with pytest.raises(DataError, match=r'numbers the sweeps of a log.*lacks some \(1 gap_too_long\)'):
        submit.submit(Known(), open_dataset(str(tmp_path)), 'v2', tmp_path / 's.zip')


def test_flow_that_float16_cannot_hold_or_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / 's.zip').write_text('of yesterday')
    with pytest.raises(DataError, match=r'log/1000 has a flow of 1e\+05 m, more than float16 can hold'):
        submit.submit(Known(np.full((4, 3), 1e5, np.float32)), Turning(), 'v3', tmp_path / 's.zip')
    with pytest.raises(DataError, match='has 4 points, its flow has the shape'):
        submit.submit(Known(np.zeros((3, 3), np.float32)), Turning(), 'v3', tmp_path / 's.zip')
    assert [path.name for path in tmp_path.iterdir()] == ['s.zip']
    assert (tmp_path / 's.zip').read_text() == 'of yesterday'


def test_options_of_another_board_are_refused(tmp_path, capsys):
    for option in (['--masks', 'm.zip'], ['--supervised']):
        with pytest.raises(SystemExit):
            submit.main(['zero', 'av2:none', '--board', 'v3', '--out', str(tmp_path / 's.zip'), *option])
    assert submit.main(['zero', 'av2:none', '--board', 'v3', '--out', str(tmp_path / 's.zip')]) == 1
    assert 'is not an Argoverse 2 log' in capsys.readouterr().err


class Frame(dict):
    """What av2's check asks of a pandas frame."""

    def __init__(self, columns):
        super().__init__(columns)
        self.columns = list(columns)

    def __len__(self):
        return len(next(iter(self.values())))

    def sum(self):
        return np.array([values.sum() for values in self.values()])


@pytest.fixture
def make_submission_archive(monkeypatch):
    """Return av2's module of that name; skips where av2 is not installed. What is lacking of pandas is stood in for."""
    if find_spec('av2') is None:
        pytest.skip('needs the package av2; `make test` installs it')
    pandas, progress = types.ModuleType('pandas'), types.ModuleType('rich.progress')
    pandas.read_feather = lambda file: Frame(decode((file.read if hasattr(file, 'read') else file.read_bytes)(), file))
    progress.track = lambda files, description: files
    for name, module in (
        ('pandas', pandas),
        ('rich', MagicMock()),
        ('rich.progress', progress),
        ('click', MagicMock()),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    name = 'av2.evaluation.scene_flow.make_submission_archive'
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_av2_accepts_a_v1_submission_and_nothing_else(tmp_path, make_submission_archive):
    mask = np.array([True, True, False, True])
    masks = write_masks(tmp_path / 'masks.zip', {'log/1000': mask, 'log/2000': ~mask})
    submit.submit(Known(Turning.residual), Turning(('log/1000', 'log/2000')), 'v1', tmp_path / 's.zip', masks=masks)
    folder = tmp_path / 'submission'
    with zipfile.ZipFile(tmp_path / 's.zip') as archive:
        archive.extractall(folder)
    make_submission_archive.validate(folder, masks)
    one = folder / 'log' / '1000.feather'
    columns = decode(one.read_bytes(), 'one')
    for wrong, said in (
        ({name: values[:2] for name, values in columns.items()}, 'has 2 rows but it should have 3'),
        (columns | {'flow_tx_m': columns['flow_tx_m'].astype(np.float32)}, 'should be float16'),
        (columns | {'is_valid': columns['is_dynamic']}, 'extra columns'),
    ):
        one.write_bytes(encode(wrong))
        with pytest.raises(ValueError, match=said):
            make_submission_archive.validate(folder, masks)


class Oracle:
    """Knows the true residual flow."""

    name = 'oracle'

    def flow(self, item):
        return item.truth.flow


def test_true_flow_of_a_labelled_pair_is_submitted_as_it_was_labelled(tmp_path, shared_data):
    log = shared_data / AV2_LOG
    labels = read_columns(log, 'flow_labels.feather', ' '.join(FLOW + ['dynamic']))
    dataset = open_dataset(f'av2:{log}')
    mask = (np.abs(dataset[0].pair.points0[:, :2]) <= 50).all(1) & ~dataset[0].is_ground0
    masks = write_masks(tmp_path / 'masks.zip', {dataset.key(0): mask})
    submit.submit(Oracle(), dataset, 'v1', tmp_path / 's.zip', masks=masks)
    [columns] = read(tmp_path / 's.zip').values()
    np.testing.assert_allclose(flow_of(columns), flow_of(labels)[mask], atol=2e-3)  # m: float16 of up to 2 m
    assert (columns['is_dynamic'] == labels['dynamic'][mask]).mean() > 0.999
