# SPDX-License-Identifier: Apache-2.0
"""What a board asks for: masks, names of pairs, and an archive that it would accept."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather
from submissions import FLOW, Known, Turning, write_masks

from training import submit
from training.scoring.boards import check_archive, encode
from zeroflow_ros.errors import DataError


@pytest.mark.parametrize(
    'masks, said',
    [
        (None, 'Give the official archive as --masks.*Masks of your own can differ by a point'),
        ({}, 'contains no masks'),
        ({'log/1000': np.ones(3, bool)}, 'has 4 points, its mask 3 rows: it belongs to other data'),
        ({'log/1000': np.ones(4, np.float32)}, 'should have one column, mask, of bool'),
        (
            {'log/1000': np.ones(4, bool), 'log/1': np.ones(4, bool)},
            'turning lacks 1 of 2 expected pairs, for example log/1',
        ),
    ],
)
def test_masks_that_do_not_do_are_refused_and_nothing_is_written(tmp_path, masks, said):
    path = None if masks is None else write_masks(tmp_path / 'masks.zip', masks)
    with pytest.raises(DataError, match=said):
        submit.submit(Known(), Turning(), 'v1', tmp_path / 'out' / 's.zip', masks=path)
    assert not list(tmp_path.glob('out/*')) and not list(tmp_path.glob('out/.*'))


def test_masks_that_are_no_archive_are_refused(tmp_path):
    (tmp_path / 'masks.zip').write_text('no')
    for name in ('masks.zip', 'none.zip'):
        with pytest.raises(DataError, match=r'should be the archive of masks'):
            submit.submit(Known(), Turning(), 'v1', tmp_path / 's.zip', masks=tmp_path / name)


@pytest.mark.parametrize('keys', [('clip_000001',), ('000001_1000',), ('a/1', 'a/1')])
def test_pairs_that_are_not_of_a_log_are_refused(tmp_path, keys):
    with pytest.raises(DataError, match='boards expect <log>/<stamp>'):
        submit.submit(Known(), Turning(keys), 'v3', tmp_path / 's.zip')


RIGHT = {name: np.zeros(2, np.float16) for name in FLOW}


@pytest.mark.parametrize(
    'files, said',
    [
        ({}, 'holds 0 files, expected 1; one that differs is a/1.feather'),
        ({'a/1.feather': RIGHT, 'a/2.feather': RIGHT}, 'one that differs is a/2.feather'),
        ({'a/1.feather': {name: value[:1] for name, value in RIGHT.items()}}, 'should have 2 rows, got 1'),
        ({'a/1.feather': {name: value.astype(np.float32) for name, value in RIGHT.items()}}, 'should have the columns'),
        ({'a/1.feather': dict(reversed(RIGHT.items()))}, 'should have the columns'),
        ({'a/1.feather': RIGHT | {'is_valid': np.ones(2, bool)}}, 'should have the columns'),
        ({'a/1.feather': RIGHT | {'flow_tz_m': np.full(2, np.nan, np.float16)}}, 'not finite'),
        ({'a/1.feather': None}, 'should be a feather file'),
    ],
)
def test_an_archive_that_a_board_would_refuse_is_found(tmp_path, files, said):
    with zipfile.ZipFile(tmp_path / 's.zip', 'w') as archive:
        for name, columns in files.items():
            archive.writestr(name, encode(columns) if columns else b'no')
    with pytest.raises(DataError, match=said):
        check_archive(tmp_path / 's.zip', 'v3', {'a/1.feather': 2}, None)


@pytest.mark.parametrize('metadata', [None, '{"Is Supervised?": true}'])
def test_an_archive_with_the_wrong_metadata_is_found(tmp_path, metadata):
    with zipfile.ZipFile(tmp_path / 's.zip', 'w') as archive:
        archive.writestr('a/1.feather', encode({'is_valid': np.ones(2, bool)} | RIGHT))
        if metadata:
            archive.writestr('metadata.json', metadata)
    with pytest.raises(DataError, match=r'metadata\.json'):
        check_archive(tmp_path / 's.zip', 'v2', {'a/1.feather': 2}, {'Is Supervised?': False})


def test_a_file_is_read_by_pyarrow_as_it_was_written():
    columns = {'is_valid': np.array([True, False]), 'flow_tx_m': np.array([0.5, -2], np.float16)}
    table = feather.read_table(io.BytesIO(encode(columns)))
    assert table.schema.types == [pa.bool_(), pa.float16()] and table.num_rows == 2
