# SPDX-License-Identifier: Apache-2.0
"""Tables pickled as pandas does it, without pandas: classes of the same names, with the same pickled state.

`old` is the layout of pandas 0.24 to 1.1, which the published PandaSet files have, `new` that of pandas 1.2 to 2.
"""

import gzip
import pickle
import sys
from contextlib import contextmanager
from types import ModuleType

import numpy as np


def _new_Index(cls, parts):
    raise NotImplementedError


def _unpickle_block(values, placement, ndim):
    raise NotImplementedError


class Index:
    def __init__(self, parts):
        self._parts = parts

    def __reduce__(self):
        return _new_Index, (type(self), self._parts)


class RangeIndex(Index):
    pass


class BlockManager:
    """As pandas.core.internals.managers.BlockManager; blocks: (values (K, N), places) each."""

    def __init__(self, blocks, axes, layout):
        self._blocks, self._axes, self._layout = blocks, axes, layout

    def __reduce_ex__(self, protocol):
        if self._layout == 'new':
            return BlockManager, (tuple(_Block(*block) for block in self._blocks), self._axes)
        blocks = [{'values': values, 'mgr_locs': places} for values, places in self._blocks]
        state = self._axes, [values for values, _ in self._blocks], [None] * len(blocks)
        return _new_object, (BlockManager,), (*state, {'0.14.1': {'axes': self._axes, 'blocks': blocks}})


class _Block:
    def __init__(self, values, places):
        self._values, self._places = values, places

    def __reduce__(self):
        return _unpickle_block, (self._values, self._places, 2)


class DataFrame:
    """As pandas.core.frame.DataFrame."""

    def __init__(self, manager, layout):
        self._manager, self._layout = manager, layout

    def __reduce_ex__(self, protocol):
        name = '_mgr' if self._layout == 'new' else '_data'
        state = {name: self._manager, '_typ': 'dataframe', '_metadata': [], 'attrs': {}}
        return _new_object, (DataFrame,), state


def _new_object(cls):
    raise NotImplementedError


_new_object.__name__ = '__newobj__'  # pickle then writes NEWOBJ, as for classes without __reduce__
_PLACES = {
    'pandas.core.frame': [DataFrame],
    'pandas.core.internals.managers': [BlockManager],
    'pandas._libs.internals': [_unpickle_block],
    'pandas.core.indexes.base': [_new_Index, Index],
    'pandas.core.indexes.range': [RangeIndex],
}


@contextmanager
def _as_pandas():
    """Let pickle find the classes in modules of pandas."""
    names = ['pandas', 'pandas.core', 'pandas.core.internals', 'pandas._libs', 'pandas.core.indexes', *_PLACES]
    before = {name: sys.modules.get(name) for name in names}
    try:
        for name in names:
            sys.modules[name] = ModuleType(name)
            for thing in _PLACES.get(name, []):
                setattr(sys.modules[name], thing.__name__, thing)
                thing.__module__ = name
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def frame_bytes(columns: dict, layout: str = 'old', protocol: int = 4) -> bytes:
    """Return a table of columns (N,) as pandas pickles it; columns of one type share a block, as in pandas."""
    names, blocks = list(columns), []
    arrays = [np.array(column, object) if isinstance(column[0], str) else np.asarray(column)
              for column in columns.values()]  # fmt: skip
    for dtype in dict.fromkeys(array.dtype for array in arrays):
        places = np.array([k for k, array in enumerate(arrays) if array.dtype == dtype])
        is_run = len(places) < 2 or (np.diff(places) == 1).all()
        where = slice(int(places[0]), int(places[-1]) + 1, 1) if is_run else places
        blocks.append((np.stack([arrays[k] for k in places]), where))
    axes = [Index({'data': np.array(names, object), 'name': None}),
            RangeIndex({'name': None, 'start': 0, 'stop': len(arrays[0]), 'step': 1})]  # fmt: skip
    with _as_pandas():
        return pickle.dumps(DataFrame(BlockManager(blocks, axes, layout), layout), protocol)


def write_frame(path, columns: dict, **options) -> None:
    """Write a table as *.pkl.gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(frame_bytes(columns, **options), 1))
