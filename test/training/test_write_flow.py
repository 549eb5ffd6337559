# SPDX-License-Identifier: Apache-2.0
"""Results written back into scenes: total flow, under a name of their own, whole or not at all."""

import numpy as np
import pytest
from scenes import EGO0_T_EGO1, stamp, write_scene

from training import write_flow
from training.datasets import open_dataset
from training.datasets.total_flow import residual_to_total
from zeroflow_ros.errors import ConfigError, DataError


class Known:
    """Gives a residual flow; NaN in the first row, as where a model sees nothing."""

    def __init__(self, residual, name='known', fails_at=None):
        self.residual, self.name, self.fails_at, self.asked = residual.copy(), name, fails_at, []
        self.residual[0] = np.nan

    def flow(self, item):
        self.asked.append(item.key)
        if item.key == self.fails_at:
            raise DataError('no flow')
        return self.residual


def results(path, name):
    import h5py

    with h5py.File(path) as file:
        return {stamp: group[name][:] for stamp, group in file.items() if name in group}


def test_a_result_is_total_flow_like_the_ground_truth(tmp_path):
    path = tmp_path / 'a.h5'
    residual = write_scene(path)
    before = results(path, 'flow')
    assert write_flow.write_flow(Known(residual), open_dataset(str(tmp_path)), 'ours') == (1, 0)
    found = results(path, 'ours')
    assert list(found) == [stamp(0), stamp(1)] and found[stamp(0)].dtype == np.float32
    for name in found:
        np.testing.assert_allclose(found[name], before[name], atol=1e-5)
    # Row 0 has no flow of ours; it stands, and so moves as the vehicle makes it.
    points = open_dataset(str(tmp_path))[0].pair.points0
    np.testing.assert_allclose(
        found[stamp(0)][0], residual_to_total(np.zeros((1, 3)), points[:1], EGO0_T_EGO1)[0], atol=1e-5
    )
    assert {name: value.tobytes() for name, value in results(path, 'flow').items()} == {
        name: value.tobytes() for name, value in before.items()
    }
    assert not list(tmp_path.glob('*.partial'))


def test_it_goes_on_where_it_stopped(tmp_path):
    for name in 'ab':
        residual = write_scene(tmp_path / f'{name}.h5')
    dataset = open_dataset(str(tmp_path))
    with pytest.raises(DataError, match='no flow'):
        write_flow.write_flow(Known(residual, fails_at=f'b/{stamp(1)}'), dataset, 'ours')
    assert results(tmp_path / 'a.h5', 'ours') and not results(tmp_path / 'b.h5', 'ours')
    again = Known(residual)
    assert write_flow.write_flow(again, dataset, 'ours') == (1, 1)
    assert again.asked == [f'b/{stamp(0)}', f'b/{stamp(1)}']
    assert not list(tmp_path.glob('*.partial'))


def test_results_of_another_origin_are_not_written_over_unless_told_to(tmp_path):
    residual = write_scene(tmp_path / 'a.h5')
    dataset = open_dataset(str(tmp_path))
    write_flow.write_flow(Known(residual), dataset, 'ours')
    with pytest.raises(DataError, match=r"already has results named 'ours' from known.*--replace"):
        write_flow.write_flow(Known(residual * 0, 'other'), dataset, 'ours')
    assert results(tmp_path / 'a.h5', 'ours')[stamp(0)][150, 0] == pytest.approx(
        results(tmp_path / 'a.h5', 'flow')[stamp(0)][150, 0], abs=1e-5
    )
    write_flow.write_flow(Known(residual * 0, 'other'), dataset, 'ours', replace=True)
    moved = results(tmp_path / 'a.h5', 'flow')[stamp(0)] - results(tmp_path / 'a.h5', 'ours')[stamp(0)]
    np.testing.assert_allclose(np.linalg.norm(moved[100:200], axis=1), 0.8, atol=1e-5)
    import h5py

    with h5py.File(tmp_path / 'a.h5', 'r+') as file:
        file[f'{stamp(1)}/deflow'] = residual
    with pytest.raises(DataError, match='from another program'):
        write_flow.write_flow(Known(residual), dataset, 'deflow')


@pytest.mark.parametrize('name', ['flow', 'lidar', 'eval_mask', '', 'a/b', '..', 'with space'])
def test_names_of_the_format_and_names_that_are_none_are_refused(tmp_path, name):
    residual = write_scene(tmp_path / 'a.h5')
    with pytest.raises(ConfigError, match='The name of a result must consist of letters'):
        write_flow.write_flow(Known(residual), open_dataset(str(tmp_path)), name)


def test_the_program(tmp_path, capsys):
    write_scene(tmp_path / 'a.h5')
    assert write_flow.main(['zero', f'osf:{tmp_path}', '--name', 'zero']) == 0
    assert "'zero' written into 1 scenes" in capsys.readouterr().out
    assert len(results(tmp_path / 'a.h5', 'zero')) == 2
    assert write_flow.main(['zero', 'simulation:0', '--name', 'zero']) == 1
    assert 'does not consist of scenes' in capsys.readouterr().err
