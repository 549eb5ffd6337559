# SPDX-License-Identifier: Apache-2.0
"""Read pickled tables of pandas without pandas, and without running what a pickle asks for.

A pickle can call any function of any installed package. This unpickler resolves only the names that tables of numbers
and strings consist of, and each of them to a stand-in below that checks its arguments: neither pandas nor the functions
of numpy or pyarrow that rebuild arrays are called. Any other name ends the reading. Tables of pandas 0.24 to 3 are
understood.
"""

import gzip
import io
import pickle
import zlib
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np

from zeroflow_ros.errors import DataError

_LARGEST = 1 << 28  # bytes of an unpacked file: a sweep of 170,000 points takes 8 MB


def _bytes(data) -> bytes:
    if not isinstance(
        data, bytes | bytearray | memoryview | pickle.PickleBuffer
    ):  # bytes(10**12) would fill the memory
        raise pickle.UnpicklingError(f'a {type(data).__name__} where bytes are expected')
    return bytes(data)


class _Dtype:
    """A type of numbers, or of objects. code: as `numpy.dtype` takes it."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        dtype = np.dtype(str(code))
        if dtype.kind not in 'fiubO' or dtype.fields or dtype.subdtype:
            raise pickle.UnpicklingError(f'columns of type {code!r} are not supported')
        self.dtype = dtype

    def __setstate__(self, state):
        if self.dtype.kind != 'O' and state[1] in ('<', '>', '='):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array that is being rebuilt. values: the result."""

    def __init__(self, values: np.ndarray | None = None):
        self.values = np.zeros(0) if values is None else values

    def __setstate__(self, state):
        _, shape, kind, is_fortran, data = state
        if not isinstance(kind, _Dtype) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise pickle.UnpicklingError('an array of an unknown type or shape')
        if kind.dtype.kind == 'O':
            flat = np.empty(len(data), object)
            flat[:] = [item.values if isinstance(item, _Array) else item for item in data]
        else:
            flat = np.frombuffer(_bytes(data), kind.dtype)
        self.values = flat.reshape(shape, order='F' if is_fortran else 'C')


class _Index:
    """The labels of an axis. labels: a list; None where they are not needed, as of a range."""

    def __init__(self, labels: list | None = None):
        self.labels = labels


class _Manager:
    """The blocks of a table, each as values and the numbers of its columns.

    Newer pandas calls it with blocks and axes; older ones set the state that is understood since pandas 0.14.
    """

    def __init__(self, blocks=(), axes=(), verify_integrity: bool = True):
        self.blocks, self.axes = list(blocks), list(axes)

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) >= 4 and '0.14.1' in state[3]:
            known = state[3]['0.14.1']
            self.axes, self.blocks = list(known['axes']), [(b['values'], b['mgr_locs']) for b in known['blocks']]
        elif state is not None:
            raise pickle.UnpicklingError('a table of a version of pandas before 0.14')


class _Frame:
    """A table. manager: its blocks."""

    manager: _Manager | None = None

    def __setstate__(self, state):
        self.manager = state.get('_mgr', state.get('_data'))


class _Strings:
    """A column of strings of pandas 3, which holds an array of numpy or of pyarrow. values: as of `_Array`, (1, N)."""

    def __init__(self):
        self.values = np.zeros((1, 0), object)

    def __setstate__(self, state):
        held = state.get('_pa_array') if isinstance(state, dict) else state[-1]
        if isinstance(held, _Array) and held.values.dtype.kind == 'O' and held.values.ndim == 1:
            self.values = held.values[None]
        else:
            raise pickle.UnpicklingError('a column of strings of an unknown layout')


def _empty_strings(kind, checksum, state) -> _Strings:
    return _Strings()


def _string_dtype(*_) -> None:
    """Stand in for pandas.StringDtype; how strings are stored is seen in their column."""


def _arrow_type(alias: str) -> np.dtype:
    """Return the type of the offsets of a pyarrow array of strings."""
    kinds = {'string': '<i4', 'large_string': '<i8'}
    if alias not in kinds:
        raise pickle.UnpicklingError(f'columns of type {str(alias)[:40]} are not supported')
    return np.dtype(kinds[alias])


def _arrow_array(parts: tuple) -> _Array:
    """Return strings (N,) of a pyarrow array: type, length, number of nulls, offset, buffers and what strings lack."""
    kind, length, _, first, (validity, offsets, text), *_ = parts
    if validity is not None or not isinstance(kind, np.dtype):
        raise pickle.UnpicklingError('strings that are missing')
    if not 0 <= length <= len(offsets or b''):
        raise pickle.UnpicklingError('more strings than offsets')
    strings = np.empty(length, object)
    if length:
        ends = np.frombuffer(offsets, kind, length + 1, first * kind.itemsize).tolist()
        if ends[0] < 0 or ends[-1] > len(text or b'') or sorted(ends) != ends:
            raise pickle.UnpicklingError('offsets of strings beyond their text')
        strings[:] = [text[begin:end].decode() for begin, end in pairwise(ends)]
    return _Array(strings)


def _arrow_chunks(chunks: list, kind=None) -> _Array:
    return _Array(np.concatenate([np.zeros(0, object), *(chunk.values for chunk in chunks)]))


def _empty_array(subtype, shape, code) -> _Array:
    return _Array()


def _array_from_buffer(data, kind: _Dtype, shape, order: str) -> _Array:
    if kind.dtype.kind == 'O':
        raise pickle.UnpicklingError('objects in a buffer')
    return _Array(np.frombuffer(_bytes(data), kind.dtype).reshape(shape, order='F' if order == 'F' else 'C'))


def _scalar(kind: _Dtype, data: bytes):
    return np.frombuffer(data, kind.dtype)[0] if kind.dtype.kind != 'O' else data


def _new_index(kind, parts: dict) -> _Index:
    data = parts.get('data')
    return _Index(data.values.ravel().tolist() if isinstance(data, _Array | _Strings) else None)


def _block(values, places, ndim: int = 2, *_) -> tuple:
    return values, places


def _encoded(text: str, encoding: str = 'latin1') -> bytes:
    return text.encode('latin1')


_ADMITTED = {
    **{(place, 'DataFrame'): _Frame for place in ('pandas.core.frame', 'pandas')},
    ('pandas.core.internals.managers', 'BlockManager'): _Manager,
    ('pandas.core.internals', 'BlockManager'): _Manager,
    ('pandas._libs.internals', '_unpickle_block'): _block,
    ('pandas.core.indexes.base', '_new_Index'): _new_index,
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _Dtype,
    ('builtins', 'slice'): slice,
    ('__builtin__', 'slice'): slice,
    ('_codecs', 'encode'): _encoded,
    **{(place, 'Index'): _Index for place in ('pandas.core.indexes.base', 'pandas')},
    **{('pandas.core.indexes.numeric', name): _Index for name in ('Int64Index', 'UInt64Index', 'Float64Index')},
    **{(place, 'RangeIndex'): _Index for place in ('pandas.core.indexes.range', 'pandas')},
    **{
        (place, name): _Strings
        for place, name in (
            ('pandas.arrays', 'StringArray'),
            ('pandas.arrays', 'ArrowStringArray'),
            ('pandas.core.arrays.string_', 'StringArray'),
            ('pandas.core.arrays.string_arrow', 'ArrowStringArray'),
        )
    },
    **{(place, 'StringDtype'): _string_dtype for place in ('pandas', 'pandas.core.arrays.string_')},
    ('pandas._libs.arrays', '__pyx_unpickle_NDArrayBacked'): _empty_strings,
    ('pyarrow.lib', 'type_for_alias'): _arrow_type,
    ('pyarrow.lib', 'py_buffer'): _bytes,
    ('pyarrow.lib', '_restore_array'): _arrow_array,
    ('pyarrow.lib', 'chunked_array'): _arrow_chunks,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _empty_array for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): _scalar for core in ('core', '_core')},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _array_from_buffer for core in ('core', '_core')},
}


class _Unpickler(pickle._Unpickler):
    """Resolves the admitted names only, and sets the state of the stand-ins only.

    It is the unpickler in Python: damaged pickles made the one in C report a freed buffer that was still in use.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)  # opcode -> method, as the base class has it

    def find_class(self, module: str, name: str):
        """Return the stand-in of a name. Raises: UnpicklingError for any name that is not admitted."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f'it refers to {module}.{name}, which no table of numbers needs') from None

    def load_build(self) -> None:
        """Set the state of an object. Raises: UnpicklingError when it is no stand-in, for example a class."""
        state = self.stack.pop()
        if type(self.stack[-1]) not in (_Dtype, _Array, _Strings, _Manager, _Frame):
            raise pickle.UnpicklingError(f'it sets the state of a {type(self.stack[-1]).__name__}')
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def read_frame(path: Path, names: str) -> dict[str, np.ndarray]:
    """Return columns (N,) of a table that pandas pickled, gzip-compressed or not, by name.

    names: of the columns, separated by spaces.
    Raises: DataError when the file is missing, cut, no such table, or lacks a column.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b'\x1f\x8b':
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise DataError(f'{path} unpacks to more than {_LARGEST >> 20} MB, far more than a sweep.')
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path} cannot be read, it may be cut: {error}. Copy it again.') from error
    try:
        columns = _columns(_Unpickler(io.BytesIO(data)).load())
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises many types
        raise DataError(f'{path} is not a pickled table of numbers and strings: {str(error)[:300]}.') from error
    lacking = [name for name in names.split() if name not in columns]
    if lacking:
        raise DataError(f'{path} lacks the columns {", ".join(lacking)}; it has {", ".join(map(str, columns))}.')
    return {name: columns[name] for name in names.split()}


def _columns(frame) -> dict[str, np.ndarray]:
    """Return the columns (N,) of a table. Raises: UnpicklingError when it is none."""
    if not isinstance(frame, _Frame) or not isinstance(frame.manager, _Manager) or not frame.manager.axes:
        raise pickle.UnpicklingError(f'it holds a {type(frame).__name__.lstrip("_")}, not a table')
    labels, columns = frame.manager.axes[0].labels, {}
    if labels is None:
        raise pickle.UnpicklingError('its columns have no names')
    for block, places in frame.manager.blocks:
        values = block.values if isinstance(block, _Array | _Strings) else None
        numbers = np.arange(len(labels))[places.values if isinstance(places, _Array) else places]
        if values is None or values.ndim != 2 or len(values) != len(numbers):
            raise pickle.UnpicklingError('it has columns that are neither numbers nor strings')
        columns |= {labels[number]: row for number, row in zip(numbers.tolist(), values, strict=True)}
    if len({len(column) for column in columns.values()}) > 1:
        raise pickle.UnpicklingError('its columns differ in length')
    return columns
