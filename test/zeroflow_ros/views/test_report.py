# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from zeroflow_ros.views.report import hardware, latency_table, percentiles, write_json


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([], {'count': 0}),
        ([7.0], {'count': 1, 'p50': 7.0, 'p95': 7.0, 'p99': 7.0, 'max': 7.0}),
        (range(101), {'count': 101, 'p50': 50.0, 'p95': 95.0, 'p99': 99.0, 'max': 100.0}),
    ],
)
def test_percentiles(values, expected):
    assert percentiles(values) == expected


def test_the_table_leaves_out_stages_that_were_never_timed():
    table = latency_table({'decode': percentiles([1.0, 3.0]), 'tf': percentiles([])})
    assert table.splitlines()[1].split() == ['decode', '2.0', '2.9', '3.0', '3.0']
    assert 'tf' not in table


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / 'new' / 'report.json'
    for content in ({'a': 1}, {'b': [1.5, None]}):
        write_json(path, content)
        assert json.loads(path.read_text()) == content
    with pytest.raises(TypeError):
        write_json(path, {'c': object()})
    assert json.loads(path.read_text()) == {'b': [1.5, None]}
    assert [p.name for p in path.parent.iterdir()] == ['report.json']


def test_hardware_says_where_figures_come_from():
    found = hardware()
    assert found['cores'] >= 1 and found['memory_gb'] > 0 and found['cpu']
    json.dumps(found)
