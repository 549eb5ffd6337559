# SPDX-License-Identifier: Apache-2.0
import pickle

import pytest

torch = pytest.importorskip('torch', reason='checkpoints need torch')

from training.learning.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from training.students import build_student  # noqa: E402
from zeroflow_ros.errors import ModelError  # noqa: E402

ABOUT = {'direction': 'both', 'ground': 'keep', 'z_origin': 'ground', 'licence': 'Apache-2.0', 'step': 7}


@pytest.fixture(scope='module')
def student():
    torch.manual_seed(0)
    return build_student('fastflow3d')


def lightning(student, **changes):
    """A file in the layout of PyTorch Lightning 1.9, as the official weights come in."""
    state_dict = {f'model.{key}': value for key, value in student.state_dict().items()}
    content = {
        'epoch': 49,
        'global_step': 78_750,
        'pytorch-lightning_version': '1.9.4',
        'state_dict': state_dict,
        'optimizer_states': [{'state': {}, 'param_groups': [{'lr': 2e-6}]}],
        'lr_schedulers': [],
        'hyper_parameters': {},
    }
    for key, value in changes.items():
        if value is None:
            del state_dict[key.replace('__', '.')]
        else:
            state_dict[key.replace('__', '.')] = value
    return content


def test_own_checkpoint_round_trip(tmp_path, student):
    Checkpoint('fastflow3d', student.state_dict(), ABOUT).save(tmp_path / 'c.pt')
    back = load_checkpoint(tmp_path / 'c.pt')
    assert back.provenance == ABOUT
    for key, value in back.build().state_dict().items():
        assert torch.equal(value, student.state_dict()[key])
    assert [path.name for path in tmp_path.iterdir()] == ['c.pt']


@pytest.mark.parametrize('is_zip', [True, False])
def test_official_checkpoint_is_read_with_its_conventions(tmp_path, student, is_zip):
    torch.save(lightning(student), tmp_path / 'official.ckpt', _use_new_zipfile_serialization=is_zip)
    back = load_checkpoint(tmp_path / 'official.ckpt')
    assert back.student == 'fastflow3d'
    assert (back.provenance['direction'], back.provenance['ground']) == ('forward', 'remove')
    assert (back.policies['network_frame'], back.policies['z_origin']) == ('source', 'ground')
    assert (back.provenance['epoch'], back.provenance['step']) == (49, 78_750)
    for key, value in back.build().state_dict().items():
        assert torch.equal(value, student.state_dict()[key])


@pytest.mark.parametrize(
    'label, changes, says',
    [
        ('a key is missing', {'model.head.decoder.2.bias': None}, r'missing head\.decoder\.2\.bias \(3,\)'),
        ('an extra key', {'model.head.mask.weight': torch.zeros(128, 3)}, r'unknown head\.mask\.weight'),
        (
            'a wide head, as another code base has it',
            {'model.head.decoder.0.weight': torch.zeros(32, 256)},
            r'head\.decoder\.0\.weight is \(32, 256\), expected \(32, 131\)',
        ),
        ('a foreign prefix', {'ema.head.decoder.2.bias': torch.zeros(3)}, r'ema\.head'),
    ],
)
def test_differences_are_listed(tmp_path, student, label, changes, says):
    torch.save(lightning(student, **changes), tmp_path / 'c.ckpt')
    with pytest.raises(ModelError, match=says):
        load_checkpoint(tmp_path / 'c.ckpt')


class Bomb:
    def __reduce__(self):
        return (print, ('code of the checkpoint runs',))


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save({'state_dict': {'model.x': Bomb()}}, tmp_path / 'bomb.ckpt')
    with pytest.raises(ModelError, match='safely'):
        load_checkpoint(tmp_path / 'bomb.ckpt')
    assert 'runs' not in capsys.readouterr().out


@pytest.mark.parametrize('content', [b'', b'text', pickle.dumps({'a': 1})])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / 'c.pt').write_bytes(content)
    with pytest.raises(ModelError):
        load_checkpoint(tmp_path / 'c.pt')


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(ModelError, match=r'training\.train'):
        load_checkpoint(tmp_path / 'none.pt')
