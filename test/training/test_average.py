# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from training.average import average, main
from training.learning.checkpoint import Checkpoint, load_checkpoint
from training.students import build_student

ABOUT = {'ground': 'keep', 'z_origin': 'ground', 'direction': 'both', 'licence': 'Apache-2.0', 'data': 'none'}


def checkpoint(seed: int, student: str = 'fastflow3d_lite', **about) -> Checkpoint:
    torch.manual_seed(seed)
    return Checkpoint(student, build_student(student).state_dict(), ABOUT | about)


def test_the_average_has_the_weighted_mean_of_all_weights(tmp_path):
    parts = [checkpoint(1), checkpoint(2)]
    for part, name in zip(parts, 'ab', strict=True):
        part.save(tmp_path / f'{name}.pt')
    files = [str(tmp_path / f'{name}.pt') for name in 'ab']
    assert main([*files, '--weights', '3', '1', '--out', str(tmp_path / 'c.pt')]) == 0
    found = load_checkpoint(tmp_path / 'c.pt')
    for key, value in found.state_dict.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * parts[0].state_dict[key] + 0.25 * parts[1].state_dict[key])
    assert [part['share'] for part in found.provenance['averaged']] == [0.75, 0.25]
    assert found.optimizer is None


@pytest.mark.parametrize(
    'second, weights, message',
    [
        (checkpoint(2, 'deflow_lite'), [1, 1], 'only weights of one student'),
        (checkpoint(2, direction='forward'), [1, 1], 'differ in direction'),
        (checkpoint(2), [1], 'Expected 2 positive weights'),
        (checkpoint(2), [1, -1], 'Expected 2 positive weights'),
        (checkpoint(2), [1, float('nan')], 'Expected 2 positive weights'),
    ],
)
def test_what_cannot_be_averaged_is_refused(second, weights, message):
    with pytest.raises(Exception, match=message):
        average({'a': checkpoint(1), 'b': second}, weights)


def test_an_existing_file_and_a_single_checkpoint_are_refused(tmp_path, capsys):
    checkpoint(1).save(tmp_path / 'a.pt')
    assert main([str(tmp_path / 'a.pt'), '--out', str(tmp_path / 'a.pt')]) == 1
    assert 'exists' in capsys.readouterr().err
    assert main([str(tmp_path / 'a.pt'), str(tmp_path / 'a.pt'), '--out', str(tmp_path / 'b.pt')]) == 1
    assert 'two or more' in capsys.readouterr().err
