# SPDX-License-Identifier: Apache-2.0
"""Let a quantised dense model take and return 8-bit tensors, channels last, instead of float32, channels first.

A file of 8 bits quantises its images first and dequantises its hidden layer last. On a CPU, this and two transpositions
take a quarter of its time. `read_8_bit` removes these steps from the graph before the session is made; the pillar
encoder and the point head do them for the pillars and points that there are. The flow is the same within rounding.
The file itself does not change. The few messages of ONNX that are needed are read here, so that the vehicle does not
need the package onnx.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeroflow_ros.engines.model_card import ModelCard
from zeroflow_ros.lidar.quantization import Quantization

# Numbers of fields, of onnx.proto: ModelProto, GraphProto, NodeProto, TensorProto.
_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_FROM, _TO, _NODE_NAME, _OP, _ATTRIBUTE = 1, 2, 3, 4, 5
_DATA_TYPE, _FLOATS, _INT32S, _INT64S, _TENSOR_NAME, _RAW = 2, 4, 5, 7, 8, 9
_FLOAT, _UINT8, _INT64 = 1, 2, 7  # TensorProto.DataType
_NUMPY = {_FLOAT: '<f4', _UINT8: 'u1', _INT64: '<i8'}
_INTS, _TYPE, _TYPE_INTS = 8, 20, 7  # fields of an AttributeProto, and the value of its type
# The end of a file from `export.quantize`, from the last one on.
_END = ('DequantizeLinear', 'QuantizeLinear', 'Transpose', 'DequantizeLinear', 'QuantizeLinear', 'Reshape',
        'DequantizeLinear')  # fmt: skip


@dataclass(frozen=True)
class EightBitModel:
    """An ONNX model whose tensors are uint8.

    model: the file. Its input `images` is (1, G, G, S * C), its output `hidden` is (1, G / b, G / b, b * b * H).
    """

    model: bytes
    images: Quantization
    hidden: Quantization


def read_8_bit(path: Path, card: ModelCard) -> EightBitModel | None:
    """Return the model of a file with 8-bit tensors; None where the file does not begin and end as expected.

    card: of the file. Files that `export.quantize` made from a dense model can be read.
    """
    if card.form != 'dense' or not card.precision.startswith('int8'):
        return None
    try:
        model = _fields(path.read_bytes())
        graph = _fields(next(value for number, value in model if number == _GRAPH))
        changed = _change(graph, card)
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None  # ONNX Runtime says what is wrong with a broken file
    if changed is None:
        return None
    graph, images, hidden = changed
    model = [(number, _message(graph) if number == _GRAPH else value) for number, value in model]
    return EightBitModel(_message(model), images, hidden)


def _change(graph: list, card: ModelCard) -> tuple[list, Quantization, Quantization] | None:
    """Return the fields of a graph with 8-bit tensors, and how they are stored; None where it is another graph."""
    tensors = dict(_tensor(value) for number, value in graph if number == _INITIALIZER)
    nodes = {at: _fields(value) for at, (number, value) in enumerate(graph) if number == _NODE}
    producer = {name: at for at, node in nodes.items() for name in _texts(node, _TO)}
    read = [name for node in nodes.values() for name in _texts(node, _FROM)]
    (start,) = (at for at, node in nodes.items() if 'images' in _texts(node, _FROM))
    name, end = 'hidden', []  # name: what the rest of the network returns
    for _ in _END:
        end.append(producer[name])
        name = _texts(nodes[end[-1]], _FROM)[0]
    _, _, transpose, _, _, reshape, _ = end
    is_expected = [_texts(nodes[at], _OP)[0] for at in (start, *end)] == ['QuantizeLinear', *_END]
    inner = [_texts(nodes[at], _TO)[0] for at in end[1:]]
    if not is_expected or any(read.count(one) != 1 for one in inner):
        return None
    of_images = _quantization(nodes[start], tensors)
    of_hidden, *others = (_quantization(nodes[at], tensors) for at in end if at not in (transpose, reshape))
    if of_images is None or of_hidden is None or any(one != of_hidden for one in others):
        return None
    block, cells, num_hidden = card.head.block, card.grid.cells, len(card.head_offset_weight)
    blocks = cells // block
    shape = tensors[_texts(nodes[reshape], _FROM)[1]].tolist()
    if shape != [block, block, num_hidden, blocks, blocks] or _permutation(nodes[transpose]) != [3, 4, 0, 1, 2]:
        return None  # in this order, the numbers of a block of cells are its channels
    changed = []
    for at, (number, value) in enumerate(graph):
        if at == start:
            value = _transpose('images', _texts(nodes[start], _TO)[0], (0, 3, 1, 2))
        elif at == max(end):
            value = _transpose(name, 'hidden', (0, 2, 3, 1))
        elif at in end:
            continue
        elif number == _INPUT:
            value = _value_info('images', (1, cells, cells, card.inputs['images'][1]))
        elif number == _OUTPUT:
            value = _value_info('hidden', (1, blocks, blocks, block * block * num_hidden))
        changed.append((number, value))
    return changed, of_images, of_hidden


def _quantization(node: list, tensors: dict[str, np.ndarray]) -> Quantization | None:
    """Return that of a QuantizeLinear or DequantizeLinear; None where it is not one of uint8, with one scale."""
    _, scale, zero_point = (tensors.get(name, np.empty(0)) for name in _texts(node, _FROM))
    if scale.dtype != np.float32 or zero_point.dtype != np.uint8 or scale.size != 1 or zero_point.size != 1:
        return None
    return Quantization(scale.item(), zero_point.item())


def _transpose(source: str, target: str, perm: Iterable[int]) -> bytes:
    attribute = [(1, b'perm'), *((_INTS, axis) for axis in perm), (_TYPE, _TYPE_INTS)]
    return _message([(_FROM, source.encode()), (_TO, target.encode()), (_NODE_NAME, f'{target}_8_bit'.encode()),
                     (_OP, b'Transpose'), (_ATTRIBUTE, _message(attribute))])  # fmt: skip


def _value_info(name: str, shape: Iterable[int]) -> bytes:
    dims = _message([(1, _message([(1, size)])) for size in shape])
    tensor_type = _message([(1, _UINT8), (2, dims)])
    return _message([(1, name.encode()), (2, _message([(1, tensor_type)]))])


def _texts(message: list, number: int) -> list[str]:
    return [value.decode() for found, value in message if found == number]


def _permutation(node: list) -> list[int]:
    (attribute,) = (_fields(value) for number, value in node if number == _ATTRIBUTE)
    return _numbers(attribute, _INTS) if _texts(attribute, 1) == ['perm'] else []


def _numbers(message: list, number: int) -> list[int]:
    """Return a repeated field of whole numbers, packed or not."""
    found = []
    for field, value in message:
        if field == number and isinstance(value, int):
            found.append(value)
        elif field == number:
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                found.append(one)
    return found


def _tensor(data: bytes) -> tuple[str, np.ndarray]:
    """Return the name and the values of a TensorProto; of types that are not needed, none."""
    message = _fields(data)
    (name,) = _texts(message, _TENSOR_NAME)
    (data_type,) = _numbers(message, _DATA_TYPE)
    raw = next((value for number, value in message if number == _RAW), None)
    if data_type not in _NUMPY:
        return name, np.empty(0)
    if raw is not None:
        return name, np.frombuffer(raw, _NUMPY[data_type])
    if data_type == _FLOAT:
        return name, np.frombuffer(b''.join(value for number, value in message if number == _FLOATS), '<f4')
    return name, np.array(_numbers(message, _INT32S if data_type == _UINT8 else _INT64S), _NUMPY[data_type])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a byte, and where the next field begins."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError('not a protocol buffer')
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> list[tuple[int, bytes | int]]:
    """Return (number, value) of each field of a message; numbers of 32 bits as bytes of that length."""
    fields, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (2, 5):
            length, at = _varint(data, at) if kind == 2 else (4, at)
            value, at = data[at : at + length], at + length
            if len(value) != length:
                raise ValueError('a protocol buffer ends too early')
            if kind == 5:
                value = _Fixed32(value)
        else:
            raise ValueError(f'a protocol buffer has a field of the kind {kind}')
        fields.append((number, value))
    return fields


class _Fixed32(bytes):
    """A number of 32 bits, not a text."""


def _message(fields: Iterable[tuple[int, bytes | int]]) -> bytes:
    """Return a message of fields (number, value); see `_fields`."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_encoded(number << 3), _encoded(value)]
        elif isinstance(value, _Fixed32):
            parts += [_encoded(number << 3 | 5), value]
        else:
            parts += [_encoded(number << 3 | 2), _encoded(len(value)), value]
    return b''.join(parts)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
