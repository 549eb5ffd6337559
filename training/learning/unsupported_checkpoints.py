# SPDX-License-Identifier: Apache-2.0
"""What a file holds that is no checkpoint of a student here: published models, compiled programs, other formats."""

import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from zeroflow_ros.errors import ModelError

SUPPORTED = (
    'Supported are checkpoints of training.train, FastFlow3D and FastFlow3D XL of ZeroFlow, and FastFlow3D, DeFlow and '
    'SeFlow of OpenSceneFlow'
)
_NUM_SHOWN = 3
# First parts of the keys. Source: github.com/KTH-RPL/OpenSceneFlow, commit 848bf86.
_BY_KEYS = {
    'Flow4D': {'embedder_4D', 'network_4D'},
    'DeltaFlow': {'pc2voxel', 'flowdecoder'},
    'SSF': {'voxel_encoder', 'backbone', 'head'},
    'VoteFlow': {'embedder', 'backbone', 'decoder'},
}
_DISPLAY = {name.lower(): name for name in (*_BY_KEYS, 'FastFlow3D', 'DeFlow', 'TeFlow')}
_DISPLAY |= {'deflowpp': 'DeFlow++', 'seflow': 'DeFlow', 'seflowpp': 'SeFlow++'}  # SeFlow trains DeFlow's network
_STUDENTS = ('FastFlow3D', 'DeFlow')  # those of OpenSceneFlow that we have
_THREE_SWEEPS = (96, 96, 3, 3)  # backbone.decoder_step4.weight of DeFlow++; 64 channels with two sweeps
_MAGIC = {
    b'version https://git-lfs': 'is a pointer of Git LFS, not the file itself. Get the file with: git lfs pull',
    b'<': 'is a web page, probably of a download that failed. Download the file again',
    b'{': 'is a JSON text, probably the answer of a server to a download that failed. Download the file again',
    b'ftrt': 'is a TensorRT engine. Give the checkpoint that it was made from',
    b'\x1f\x8b': 'is compressed with gzip. Unpack it with: gunzip (a .tar.gz with: tar xzf)',
    b'\x28\xb5\x2f\xfd': 'is compressed with zstd. Unpack it with: zstd -d',
    b'7z\xbc\xaf': 'is a 7-Zip archive. Unpack it and give the checkpoint in it',
    b'Rar!': 'is a RAR archive. Unpack it and give the checkpoint in it',
    b'\x89HDF': 'is an HDF5 file, as Keras writes it, not a checkpoint of torch',
    b'\x93NUMPY': 'is a NumPy array, not a checkpoint',
}
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_TAR = 257, b'ustar'  # place and mark
_BEFORE_ZIP = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the first bytes of torch.save before torch 1.6
_WEIGHT_FILES = ('.pt', '.pth', '.ckpt', '.pkl', '.bin')


class WeightsError(ModelError):
    """Weights that are not those of a student. details: one line per key, which the message leaves out."""

    def __init__(self, text: str, details: Iterable[str] = ()):
        super().__init__(text)
        self.details = list(details)

    def within(self, path: Path) -> 'WeightsError':
        """Return the same error with the name of the file."""
        return self if str(path) in str(self) else WeightsError(f'{path}: {self}', self.details)


def summary(lines: list[str]) -> str:
    """Return the first three of many differences in one line, and how many more there are."""
    more = len(lines) - _NUM_SHOWN
    return '; '.join(lines[:_NUM_SHOWN]) + (f'; and {more} more' if more > 0 else '')


def published_model(settings: dict, shapes: dict[str, tuple]) -> str | None:
    """Return the name of a published model that has no student here, and how it shows; None for all others.

    settings: of the checkpoint (OpenSceneFlow's cfg), {} without. shapes: of the weights by key, without prefixes.
    """
    model = settings.get('model')
    model = model if isinstance(model, dict) else {}
    target = model.get('target')
    kind = target.get('_target_') if isinstance(target, dict) else None
    name = str(kind or model.get('name') or '').rsplit('.', 1)[-1]
    name = _DISPLAY.get(name.lower(), name)
    if name and name not in _STUDENTS:
        return f'{name} by its settings'
    heads = {key.split('.', 1)[0] for key in shapes}
    for known, parts in _BY_KEYS.items():
        if parts <= heads:
            return f'{known} by its keys {", ".join(f"{part}.*" for part in sorted(parts))}'
    if tuple(shapes.get('backbone.decoder_step4.weight', ())) == _THREE_SWEEPS:
        return 'DeFlow++ by its backbone for three sweeps'
    return None


def unsupported_model(path: Path, model: str, shapes: dict[str, tuple]) -> WeightsError:
    """Return the error for a published model. model: from `published_model`."""
    return WeightsError(f'{path} holds {model}, a network without a student here. {SUPPORTED}.', _listed(shapes))


def unknown_model(path: Path, shapes: dict[str, tuple]) -> WeightsError:
    """Return the error for weights of which no key is known."""
    heads = Counter(key.split('.', 1)[0] for key in shapes).most_common(_NUM_SHOWN)
    found = ', '.join(f'{head}.* ({num})' for head, num in heads)
    text = f'{path} holds {len(shapes)} weights of a model that is not known here: {found}. {SUPPORTED}.'
    return WeightsError(text, _listed(shapes))


def _listed(shapes: dict[str, tuple]) -> list[str]:
    return [f'{key} {shape}' for key, shape in shapes.items()]


def without_weights(path: Path, content: object) -> ModelError:
    """Return the error for a file of torch.save that holds no weights of a network."""
    if isinstance(content, dict):
        keys = [str(key)[:40] for key in content]
        more = f' and {len(keys) - 8} more' if len(keys) > 8 else ''
        found = f'a dictionary with {", ".join(keys[:8])}{more}' if keys else 'an empty dictionary'
    else:
        found = f'one {type(content).__name__}'
    return ModelError(
        f'{path} holds no weights of a network, but {found}. Expected the state_dict of a network, alone or under '
        f'state_dict, model, or one other key. {SUPPORTED}.'
    )


def unreadable_file(path: Path, error: Exception) -> ModelError:
    """Return the error for a file that torch does not load: what it is, and what to give instead."""
    return ModelError(f'{path} {_kind_of_file(path) or _objects(path, error)}.')


def _kind_of_file(path: Path) -> str | None:
    """Return what a file is by its suffix, first bytes and members; None for a zip file of torch.save."""
    with open(path, 'rb') as file:
        start = file.read(512)
    if not start:
        return 'is empty. Copy or train it again'
    if path.suffix == '.onnx':
        return 'is an ONNX model file, not a checkpoint. Give the checkpoint that it was made from'
    if path.suffix == '.safetensors' or start[8:10] == b'{"':
        return "is a safetensors file. Save its weights as torch.save({'state_dict': safetensors.torch.load_file(IN)})"
    for magic, text in _MAGIC.items():
        if start.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(magic):
            return text
    if start[_TAR[0] :].startswith(_TAR[1]):
        return 'is a tar archive. Unpack it with: tar xf'
    if not start.strip(b'\0'):
        return 'begins with zeros only: the disk or the copy failed. Copy it again'
    if start.startswith(_BEFORE_ZIP):
        return 'begins as a file of torch.save, but cannot be read to its end: it is cut off or damaged. Copy it again'
    if not start.startswith(b'PK'):
        return None
    if not zipfile.is_zipfile(path):
        return f'is cut off: it ends after {path.stat().st_size} bytes, within its zip archive. Copy it again'
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any('/code/' in name for name in names):
        return 'is a compiled TorchScript program. Give the checkpoint that it was made from'
    if not any(name.endswith('data.pkl') for name in names):
        inside = next((name for name in names if name.endswith(_WEIGHT_FILES)), None)
        if inside:
            return f'is a zip archive that holds {inside}. Unpack it and give that file'
        if names and all(name.endswith('.npy') for name in names):
            return 'holds arrays of NumPy. Give it the suffix .npz if they are variables of DWARF'
        return 'is a zip archive without weights of torch.save, such as a program of torch.export. Give the checkpoint'
    return None


def _objects(path: Path, error: Exception) -> str:
    """Return which Python objects keep a file from being read, from torch's error."""
    text = str(error).strip()
    found = re.findall(r'GLOBAL ([\w.]+)|class ([\w.]+)', text)
    names = {name for pair in found for name in pair if '.' in name}
    own = {name for name in names if not name.startswith('torch.')}
    if names := sorted(own or {name for name in names if name.startswith('torch.nn.')}):
        return (
            f'cannot be read safely: it holds Python objects ({", ".join(names[:_NUM_SHOWN])}), whose code is not run. '
            "Save the weights alone: torch.save({'state_dict': model.state_dict()}, FILE)"
        )
    # torch names a bare number for a text file, and else advises to run the code of the file.
    if 'weights_only' in text or not zipfile.is_zipfile(path):
        return 'cannot be read safely: it is no file of torch.save with weights'
    return f'cannot be read safely: {text.splitlines()[0].rstrip(".")}'
