# SPDX-License-Identifier: Apache-2.0
"""Files that hold no checkpoint of a student: one line says what they are. Real files of torch, small weights."""

import argparse
import gzip
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='checkpoints need torch')

from test_lightning_import import DEFLOW, FASTFLOW3D, random_weights, write  # noqa: E402

from export.to_onnx import main as to_onnx  # noqa: E402
from training.learning.checkpoint import load_checkpoint  # noqa: E402
from training.learning.lightning_import import find_weights  # noqa: E402
from zeroflow_ros.errors import ModelError  # noqa: E402


def tensors(*heads, num=3):
    return {f'{head}.layer{k}.weight': torch.zeros(2, 2) for head in heads for k in range(num)}


FLOW4D = tensors('embedder_4D.feature_net', 'network_4D.Input', 'pointhead_3D.PPmodel_flow', num=40)
DELTAFLOW = tensors('pc2voxel.feature_net', 'backbone.conv0', 'flowdecoder.point_head', num=60)
SSF = tensors('voxel_layer', 'voxel_encoder.vfe', 'backbone.conv_input', 'head.offset_encoder', num=40)
VOTEFLOW = tensors('embedder.feature_net', 'backbone.encoder_step_1', 'decoder.decoder', 'volconv.conv', num=40)
THREE_SWEEPS = {
    **tensors('embedder', 'head.offset_encoder'),
    'backbone.decoder_step4.weight': torch.zeros(96, 96, 3, 3),
}
PUBLISHED = [
    ('Flow4D', 'src.models.Flow4D', FLOW4D),
    ('DeltaFlow', 'src.models.DeltaFlow', DELTAFLOW),
    ('SSF', 'scripts.network.models.ssf.SSF', SSF),
    ('VoteFlow', 'src.models.VoteFlow', VOTEFLOW),
    (r'DeFlow\+\+', 'src.models.DeFlowPP', THREE_SWEEPS),
]


@pytest.mark.parametrize('with_settings', [True, False])
@pytest.mark.parametrize('name, target, weights', PUBLISHED, ids=[name for name, *_ in PUBLISHED])
def test_a_published_model_without_a_student_is_named_in_one_line(
    tmp_path, monkeypatch, capsys, name, target, weights, with_settings
):
    path = write(
        tmp_path / 'best.ckpt', weights, monkeypatch, with_settings=with_settings, model_settings={'_target_': target}
    )
    how = 'settings' if with_settings else '(keys|backbone)'
    with pytest.raises(
        ModelError, match=rf'holds {name} by its {how}.*Supported are .*DeFlow.*OpenSceneFlow'
    ) as raised:
        load_checkpoint(path)
    assert '\n' not in str(raised.value) and len(str(raised.value)) < 500
    assert to_onnx([str(path), '--out', str(tmp_path / 'm.onnx')]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert to_onnx([str(path), '--out', str(tmp_path / 'm.onnx'), '--show-keys']) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1 + len(weights)


@pytest.mark.parametrize(
    'label, target, says',
    [
        ('a name only', {'name': 'flow4d'}, 'holds Flow4D by its settings'),
        ('the network of DeFlow', {'name': 'seflow'}, 'The weights do not fit'),
        ('a class of their own', {'_target_': 'src.models.my.FastFlow3DWide'}, 'holds FastFlow3DWide by its settings'),
        ('a network with the keys of DeFlow', {'_target_': 'src.models.ZeroFlowUNetXL'}, 'holds ZeroFlowUNetXL by'),
    ],
)
def test_settings_come_before_keys(tmp_path, monkeypatch, label, target, says):
    path = write(tmp_path / 'c.ckpt', tensors('embedder', 'backbone', 'head'), monkeypatch, model_settings=target)
    with pytest.raises(ModelError, match=says):
        load_checkpoint(path)


@pytest.mark.parametrize(
    'label, content',
    [
        ('a detector of OpenPCDet', {'model_state': tensors('vfe', 'backbone_3d', 'dense_head', num=80)}),
        ('a Lightning checkpoint', {'state_dict': {f'model.{k}': v for k, v in tensors('unet', num=80).items()}}),
        ('bare weights', tensors('encoder', 'decoder', num=80)),
        ('compiled', {'state_dict': {f'_orig_mod.{k}': v for k, v in tensors('encoder', num=80).items()}}),
    ],
)
def test_an_unknown_model_is_described_by_its_first_keys(tmp_path, label, content):
    torch.save(content, tmp_path / 'c.pt')
    with pytest.raises(
        ModelError, match=r'weights of a model that is not known here: \w+\.\* \(80\).*Supported'
    ) as raised:
        load_checkpoint(tmp_path / 'c.pt')
    assert '\n' not in str(raised.value) and len(raised.value.details) >= 80


def test_a_student_with_other_layers_shows_three_differences(tmp_path):
    weights = random_weights(FASTFLOW3D)
    for key in [key for key in weights if key.startswith('backbone.decoder')]:
        weights[key.replace('decoder', 'upsample')] = weights.pop(key)
    torch.save({'state_dict': {f'model.{key}': value for key, value in weights.items()}}, tmp_path / 'c.ckpt')
    with pytest.raises(ModelError, match=r'differences: missing .*; and \d+ more') as raised:
        load_checkpoint(tmp_path / 'c.ckpt', student='fastflow3d')
    assert '\n' not in str(raised.value) and 'c.ckpt' in str(raised.value) and len(raised.value.details) > 20


@pytest.mark.parametrize(
    'label, before, inner',
    [
        ('torch.compile of the network', 'model._orig_mod.', ''),
        ('torch.compile of the Lightning module', '_orig_mod.model.', ''),
        ('torch.compile of a layer', 'model.', '_orig_mod.'),
        ('DistributedDataParallel', 'module.model.', ''),
        ('both', 'module._orig_mod.model.', ''),
        ('DistributedDataParallel of the network', 'model.module.', ''),
        ('FSDP', '_fsdp_wrapped_module.model._fsdp_wrapped_module.', '_checkpoint_wrapped_module.'),
        ('bare weights, compiled', '_orig_mod.', ''),
        ('bare weights, data parallel', 'module.', ''),
    ],
)
def test_the_prefix_of_a_wrapper_is_stripped(tmp_path, label, before, inner):
    keys = list(DEFLOW)
    wrapped = {before + key.replace('.', f'.{inner}', 1): torch.zeros(1) for key in keys}
    torch.save({'state_dict': wrapped}, tmp_path / 'c.pt')
    found = find_weights(torch.load(tmp_path / 'c.pt', weights_only=True))
    assert [key.removeprefix('model.') for key in found] == keys


def test_a_compiled_checkpoint_opens(tmp_path):
    weights = random_weights(DEFLOW)
    compiled = {f'model._orig_mod.{key}': value for key, value in weights.items()}
    torch.save({'state_dict': compiled}, tmp_path / 'c.ckpt')
    assert load_checkpoint(tmp_path / 'c.ckpt', student='deflow').student == 'deflow'


def test_stored_settings_of_plain_classes_do_not_keep_a_file_from_being_read(tmp_path):
    about = {'path': pathlib.Path('/x'), 'args': argparse.Namespace(lr=1), 'best': np.float64(3), 'mean': np.zeros(3)}
    torch.save({'state_dict': tensors('encoder'), 'hyper_parameters': about}, tmp_path / 'c.ckpt')
    with pytest.raises(ModelError, match='not known here: encoder'):
        load_checkpoint(tmp_path / 'c.ckpt')


def zip_of(path, *names):
    with zipfile.ZipFile(path, 'w') as archive:
        for name in names:
            archive.writestr(name, b'{}')


FILES = {
    'empty.ckpt': (lambda path: path.write_bytes(b''), 'is empty'),
    'model.onnx': (lambda path: path.write_bytes(b'\x08\x08\x12\x07pytorch'), 'is an ONNX model file'),
    'model.safetensors': (lambda path: path.write_bytes(b'\x02\0\0\0\0\0\0\0{}'), 'is a safetensors file'),
    'pointer.ckpt': (lambda path: path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n'), 'git lfs pull'),
    'page.ckpt': (lambda path: path.write_bytes(b'\n<!DOCTYPE html>'), 'is a web page'),
    'text.ckpt': (lambda path: path.write_bytes(b'hello, this is text'), 'no file of torch.save'),
    'model.engine': (lambda path: path.write_bytes(b'ftrt\0\0'), 'is a TensorRT engine'),
    'marked.ckpt': (lambda path: path.write_bytes(b'\xef\xbb\xbf<!doctype html>'), 'is a web page'),
    'answer.ckpt': (lambda path: path.write_bytes(b'{"error": "not found"}'), 'is a JSON text'),
    'packed.ckpt': (lambda path: path.write_bytes(gzip.compress(b'weights')), 'gunzip'),
    'archive.ckpt': (lambda path: path.write_bytes(tarfile.TarInfo('weights').tobuf() + bytes(1024)), 'tar xf'),
    'zeros.ckpt': (lambda path: path.write_bytes(bytes(1000)), 'begins with zeros'),
    'keras.ckpt': (lambda path: path.write_bytes(b'\x89HDF\r\n\x1a\n'), 'is an HDF5 file'),
    'renamed.pt': (lambda path: path.write_bytes(b'\x30\0\0\0\0\0\0\0{"a":{}}'), 'is a safetensors file'),
    'release.pt': (lambda path: zip_of(path, 'readme.txt', 'weights/best.ckpt'), 'holds weights/best.ckpt. Unpack it'),
    'arrays.pt': (lambda path: zip_of(path, 'a.npy'), 'arrays of NumPy'),
    'tensor.pt': (lambda path: torch.save(torch.zeros(2), path), 'holds no weights of a network, but one Tensor'),
    'nothing.pt': (lambda path: torch.save({}, path), 'an empty dictionary'),
    'optimizer.pt': (lambda path: torch.save({'optimizer': {'state': {}}, 'epoch': 3}, path), 'with optimizer, epoch'),
    'script.pt': (lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path), 'compiled TorchScript program'),
    'exported.pt2': (lambda path: zip_of(path, 'exported/version', 'exported/models/m.json'), 'without weights'),
    'module.pt': (lambda path: torch.save(torch.nn.Linear(2, 2), path), r'torch.nn.modules.linear.Linear.*state_dict'),
    'folder.ckpt': (lambda path: path.mkdir(), 'is a folder, not a checkpoint'),
}


@pytest.mark.parametrize('name', FILES)
def test_a_file_of_another_kind_is_named(tmp_path, name):
    make, says = FILES[name]
    make(tmp_path / name)
    with pytest.raises(ModelError, match=says) as raised:
        load_checkpoint(tmp_path / name)
    assert 'weights_only' not in str(raised.value) and '\n' not in str(raised.value)


def test_a_cut_checkpoint_is_cut(tmp_path):
    torch.save({'state_dict': tensors('encoder')}, tmp_path / 'c.ckpt')
    whole = (tmp_path / 'c.ckpt').read_bytes()
    (tmp_path / 'c.ckpt').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=rf'is cut off: it ends after {len(whole) // 2} bytes'):
        load_checkpoint(tmp_path / 'c.ckpt')


def test_a_file_of_an_older_torch_that_is_cut_off_says_so(tmp_path):
    torch.save({'state_dict': tensors('encoder')}, tmp_path / 'c.ckpt', _use_new_zipfile_serialization=False)
    whole = (tmp_path / 'c.ckpt').read_bytes()
    (tmp_path / 'c.ckpt').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r'begins as a file of torch.save.*cut off'):
        load_checkpoint(tmp_path / 'c.ckpt')


@pytest.mark.parametrize(
    'label, content, is_found',
    [
        ('another name', {'net': tensors('encoder')}, True),
        ('two levels', {'checkpoint': {'model_weights': tensors('encoder')}, 'epoch': 3}, True),
        (
            'beside an optimizer',
            {'net': tensors('encoder'), 'optimizer': {'state': {0: {'step': torch.ones(1)}}}},
            True,
        ),
        ('two networks', {'generator': tensors('encoder'), 'critic': tensors('encoder')}, False),
        ('too deep', {'a': {'b': {'c': tensors('encoder')}}}, False),
    ],
)
def test_weights_under_another_name_are_found_where_they_are_the_only_ones(label, content, is_found):
    assert (find_weights(content) is not None) == is_found


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    weights = random_weights(DEFLOW)
    key = next(key for key, value in weights.items() if value.is_floating_point() and value.ndim)
    weights[key] = weights[key] * float('nan')
    torch.save({'state_dict': {f'model.{name}': value for name, value in weights.items()}}, tmp_path / 'c.ckpt')
    with pytest.raises(ModelError, match=r'1 of .* weights are NaN or infinite: .*diverged'):
        load_checkpoint(tmp_path / 'c.ckpt', student='deflow')


class Network(torch.nn.Linear):
    """A network as a whole in a file, as torch.save(model) writes it."""


def test_a_pickled_network_names_its_class_and_the_remedy(tmp_path):
    torch.save(Network(2, 2), tmp_path / 'c.pt')
    with pytest.raises(ModelError, match=r'Python objects \(.*Network.*state_dict'):
        load_checkpoint(tmp_path / 'c.pt')
