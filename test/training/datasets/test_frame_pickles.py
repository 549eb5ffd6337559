# SPDX-License-Identifier: Apache-2.0
"""Pickled tables: those that pandas wrote, and files that want to do something else."""

import base64
import gzip
import os
import pickle
import sys
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
from pandas_pickles import frame_bytes

from training.datasets.frame_pickles import read_frame
from zeroflow_ros.errors import DataError

# Written by pandas itself: 1.5.3 with numpy 1.26, protocol 4; 2.2.3 with numpy 1.26, protocol 5; 3.1.1 with numpy 2.4,
# with and without pyarrow, which then holds the strings.
BY_PANDAS_1 = """
H4sIAAAAAAACA41TzWoUQRDe+fMvYgyiRhSPsh5ciCcPwkJWBB1cIScRQlMz07szZqZn6O5hXTCgB2MCfUv5UL6Fj+AbxOqeXbLRPaQP3dXd1V991fX
V1/Dnr6DnhtlqQGSgBmkt+WAioeJorr8CDa+dfYpPv+Eh9k3IqqlE83jVvRCaSwGlGlQgYMqlQnNzt6zTg3fdnp73zb3FE1YWiTp/g2aTtaIp0oOSs8
Q+Im9zV7RVM+/gq7bUBUgJc4Jlkqe1UFq2qbaOkXNEc5Wwncspxr3vOPIS/IF72I+92I/9I8w3TZTpeWNTMf77F3hy3N0HxvuC4/H47RkNN8VDjcnJP
lEO4NkOGoIywQgo62C3Vcjp1lxL2oJYCaIfqbJIuYtLoTyLGvt2zjfyW/mWZZPfWXLxHJdt408uMHj5D4OeZTC63dXm97Bb/wyRjvMnFCW4dJxk5zxO
/mhdFN/rLXCDOLw0brHCP3++lv3ZYvgd/WWUMI5Wo2i0P719UU8Z/8zVIAFFKrzBBJ+xN/aMPjn/YKKl7fSYkUbxf6IRbR66IoZtW2RUphISXlIN5zA
jUKVBF7UASdrZSEniElireNaVNxRW9OP2yH7DR/NgHTsJYmrp7dl1hVL+aUya0CA1KcKEStcNpWoNTobnMLmdqJdIkNRmNoVly7GKa3A57RNn0Jqa6R
DNFTYpYerM+1CW9UyxrG1IeKA5c5kpPFZtMvgLmeuxR9QDAAA=
"""
BY_PANDAS_2 = """
H4sIAKBNDGsC/4VTS4sTQRBOMhlfEXdXUVcUjxIPG1hB8CAENiLoYIQ9iJelqZnppIedF/0gBlzQg3EX+rbl/j39Cf6DtbqTsIkPrEN39UzVV191f/Up/PY9aHizWzWU
KaheUkneG0koONqrL0DDS++f4uPPeIRd22bFWKJ9uBqelZrLEnLVK6CEMZcK7fW9vEoO38zPlN61dxYpLM9idZGDdoOZss6Sw5yz2CVRtL1dmqKezuELk+sMpIQp
wTLJk6pUWppEu8DQB6K9TNg+5BSjxhccNGP8ivvYjZpRK2rNUGzYMNXT2rViW2+f4cnx/H9gmx9xOBy+PifzS9TXGJ8cEOUAdnbREpQNBkBdB3tGIae/9kpsMmJV
Ev1Q5VnCfV0q1XSoUcutomNvrrRBLpdZgrbDRrIqYjMazW/mbLOxaj/68/1nH8W2bY3WqD7/jWqDyLgWZ0RzgNpVfUQsgnUeYqd71lrANxseNt69gBUP/gUqni4g
g6j9J+SS9/nCliV8gWyFt3jy3wLtKFwtoNHd//a6ylL+gateDIq0eY2VfMJeuW90h+KdDZe+V2lKykVxQ2w5MYhbSymEdLjvn7ZtTJbS4+UQ85xedgoTAlUadFaV
IElRnYSEL4EZxdP5o7dLNwpDM3OU39t7f2MnoRw7evtuX6EkxJCUokFq0oltK13V1KpzODlNj8ndQhNGMqXhcy0sB5EVXIPv6YA4g9Y0YkdoL7FRDmPv3oU8ryaK
paYmOYLmzHem8FiZuPcLNCvmeOoDAAA=
"""
BY_PANDAS_3 = """
H4sICAx4DGsC/3BkM19ub3BhLnBrbACVVEtv1DAQ3kdSaMtTFQWJqnBB2h66UnvigFTRViAakUrlXFlO4l1HmziRH2pXogIOLS3yDdN/w3/hJ8CNWxk7G5ot
Qggfkkk833zzjWf83v/y1Wu5pWdKzBIsjJ7dxhK/4Dgn5rNZ+WCOTE97KB9yo5crn35ccNJPmSSc4Uz0c8zwkHDA3tjMinj0uvoGeE8vTiAoSyNxiTH6NlKs
TONRRlBkQeCtF6acMed4DJ5LCJXjw0v3cPu53dnE8YgkFnZzAqsB828kT9nQecH+zqOZH1740ewZ2qr3tuW4tPpA9ljSgpmX735WhTgBP73IVF6O+8gJzVUm
UxcbBCJO4oIJyVUsLd53nkZfgwwmfEHr2Gy1I2MZe0E76BwbuqT9pKbs7D41Z6fVble335owDHcuYLlHsCFNdLYPpevi1TWjIRCBPycm0tcjlUIqDCT6Iktj
4siAoW2DBR0ncZ7eoncbku/RxSlt9CFdthnSx838ehXjFoZT7m4qUXPSdeswTaAXmtUBm/A0hqqjAS/ySA0G1dGf32k117eN6v19w9AnujOYqsGzKzVoAbsl
PgH9W0Za2nVIo3tF6U7vvDMJ3265sNHaZVi68regdG8Ssht4f4as876YrJrCEaSNvOnuPwm8wG8SSGPL/GB6jBJySEQ/woIYPYcYOUCv7D+oIfSrX9tuDBMY
TfPfB+z/PmBPqTSB7slwRDI46TE+AE4hsUwLhjn08XwMg88xUgJmq248j9nbIFQuvIKs5vYwG5JGavRTCD0pMZfQkdoTsihBsjUIGG2HJG60PARzALeMlTJw
t4yeRTmR2Gnbh+SwlHCXHMFsokGGh868j7OsOBAoUSU0PpYEOQnCnAoV9X8Btt8ESMgEAAA=
"""
BY_PANDAS_3_PYARROW = """
H4sICAF4DGsC/3BkM19wYS5wa2wAjVRLb9NAEM7DKaQtbXmo9FAhccJFqkVuHJCqPgQCiyC1BySkaDW211mrjmOt1wqRKI8DpUh7Y8nv4ydw5FZm1zZNggrd
g2d2M4/vm8zMx9b3XqtmjlxIIQkgU7J9AAKechhQ9U1tfVInypYWGfS5kvcKG8cfcupEiaA8gThzBpBAn3L0Xd6Lh/7xy+KO7rZcL11IHHnZhY+SqyRP0sg/
jinxtBNayxulMXAOY7RZ2+V8ODoSPEr6u/rtAlGbpECMnZJL6Ri0oYM5lFwhnGYCEZY/Iwp2S66IcUpJOOQE4ghpYrblGHifksyEV5/VoXIbbs2t9ZTdRY92
OiZeHoaGyGSjNnuapbRKafzZ5qS6w3bHM2+0p7rCaHKBBBqFYjW5VJA6MHfEcq2koJ59+FUEOC08fPAZRca5J697eRSLKMHCtLI48rUj4q279S8Gu/6yJbZS
VIjdZHdstv5vlpuX8lqY41Xd94Hv5dkcM/aAbbGHM9DZtsbMOgivMQtQ3k7yQTp2iOki1CmPfPwTSciHgz8FtydrM7h+7BTy5w6yNwFQBlX5GuFj9fVMx7fd
pqw/Ud1u98U5HvNxa0J5GsipkvV9JTSMDsJqzlXulT1plOnqNcWOZMPrTId9d2lY9qYM2nStv4NWTM7LUyUxKaIp5Oz1fxNYbms6gVD4P8qN2bkM6FuaOR5k
VMlFktARea7fsFDYea1KN3Md4KyrK7RMa6plHs21TNXy7VIul3K9lPfnWqm653kUxODReAyjTICIhgnwsY+LhwPJMxpctcukleht1c3N03skuXgISZ9OMWWT
Lg6NAC5wZKSF+yHFCmqFolI3ntSMnEWwqXAL6sqEZgvirhlQAaZUPew6EAJ33YmezjCGvlHvQhwPRxkJ8hQnEwQlhlmmzrLcc34DZ3pjGGgFAAA=
"""


def write(path, text):
    path.write_bytes(base64.b64decode(text))
    return path


@pytest.mark.parametrize(
    'text', [BY_PANDAS_1, BY_PANDAS_2, BY_PANDAS_3, BY_PANDAS_3_PYARROW],
    ids=['pandas 1.5', 'pandas 2.2', 'pandas 3.1', 'pandas 3.1, pyarrow'],
)  # fmt: skip
def test_what_pandas_wrote_is_read(tmp_path, text):
    columns = read_frame(write(tmp_path / '0.pkl.gz', text), 'uuid label yaw stationary camera_used')
    assert {name: column.tolist() for name, column in columns.items()} == {
        'uuid': ['a-1', 'b'], 'label': ['Car', 'Bus'], 'yaw': [0.5, 1.0], 'stationary': [True, False],
        'camera_used': [-1, 2],
    }  # fmt: skip


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('layout', ['old', 'new'])
def test_layouts_and_protocols(tmp_path, layout, protocol):
    table = {
        'x': np.arange(5.0), 'name': list('abcde'), 'y': np.arange(5.0) * 2, 'd': np.arange(5),
        'f': np.arange(5, dtype=np.float32), 'flag': np.arange(5) > 2, 'big': np.arange(5, dtype='>i4'),
    }  # fmt: skip
    (tmp_path / 'plain.pkl').write_bytes(frame_bytes(table, layout, protocol))
    columns = read_frame(tmp_path / 'plain.pkl', ' '.join(table))
    for name, column in table.items():
        np.testing.assert_array_equal(columns[name], column)


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ('touch was_here',)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def strings_of(kind='string', length=2, offsets=(0, 1, 2), text=b'ab', validity=None):
    """Return a pickle of strings as pyarrow writes it, without pyarrow."""
    library = ModuleType('pyarrow.lib')
    for name in ('type_for_alias', '_restore_array'):
        setattr(library, name, lambda: None)
        vars(library)[name].__name__, vars(library)[name].__qualname__ = name, name
        vars(library)[name].__module__ = 'pyarrow.lib'
    buffers = [validity, np.int32(offsets).tobytes(), text]
    parts = Call(library.type_for_alias, kind), length, 0, 0, buffers, [], None
    with patch.dict(sys.modules, {'pyarrow': ModuleType('pyarrow'), 'pyarrow.lib': library}):
        return pickle.dumps(Call(library._restore_array, parts))


@pytest.mark.parametrize(
    'content, said',
    [
        (pickle.dumps(Runs()), 'posix.system, which no table of numbers needs'),
        (pickle.dumps({'x': Runs()}), 'posix.system'),
        (b"cbuiltins\neval\n(S'open(\"was_here\", \"w\")'\ntR.", 'builtins.eval'),
        (b"cnumpy\nload\n(S'was_here'\ntR.", 'numpy.load'),
        (b'cpandas\nread_pickle\n(tR.', 'pandas.read_pickle'),
        (b"cnumpy\nndarray\n}S'a'\nI1\nsb.", 'it sets the state of a type'),
        (b'cnumpy.core.multiarray\n_reconstruct\nN}\x86b.', 'it sets the state of a'),
        (pickle.dumps([1, 2]), 'it holds a list, not a table'),
        (pickle.dumps(np.zeros(3)), 'it holds a Array, not a table'),
        (b'cpyarrow.lib\nfoo\n(tR.', 'pyarrow.lib.foo'),
        (b'cpyarrow.lib\npy_buffer\n(I1000000000000\ntR.', 'a int where bytes are expected'),
        (strings_of(length=10**12), 'more strings than offsets'),
        (strings_of(offsets=[0, 1, 9]), 'offsets of strings beyond their text'),
        (strings_of(offsets=[0, 2, 1]), 'offsets of strings beyond their text'),
        (strings_of(validity=b'\x01'), 'strings that are missing'),
        (strings_of(kind='decimal'), 'columns of type decimal are not supported'),
        (b'', 'not a pickled table'),
        (b'not a pickle', 'not a pickled table'),
        (frame_bytes({'x': [1.0]})[:-40], 'not a pickled table'),
        (frame_bytes({'x': [1.0]}), 'lacks the columns y; it has x'),
        (frame_bytes({'x': np.array(['2020-01-01'], 'M8[ns]')}), 'not supported'),
        (gzip.compress(frame_bytes({'x': [1.0]}))[:-20], 'may be cut'),
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_nothing_runs(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'table').write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_frame(tmp_path / 'table', 'y')
    assert not (tmp_path / 'was_here').exists()


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('training.datasets.frame_pickles._LARGEST', 10_000)
    (tmp_path / 'bomb').write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(DataError, match='far more than a sweep'):
        read_frame(tmp_path / 'bomb', 'x')


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match='cannot be read'):
        read_frame(tmp_path / 'none', 'x')
