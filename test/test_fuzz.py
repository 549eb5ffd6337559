# SPDX-License-Identifier: Apache-2.0
"""A few hundred hostile cases of each kind, the same ones each time; `make fuzz` runs all of them."""

import os
import time

import pytest
from fuzz import TARGETS, fuzz
from fuzz_process import run_target

from zeroflow_ros.errors import ModelError

pytest.importorskip('hypothesis', reason='needs hypothesis')
# camera_dds is left to `make fuzz`: it starts a second node.
CASES = {'clouds': 300, 'dds': 100, 'cards': 300, 'bags': 150, 'yaml': 150, 'images': 160}


@pytest.mark.parametrize('target', CASES)
def test_hostile_input_is_served_or_refused(target, tmp_path):
    assert target in TARGETS
    if target in ('dds', 'yaml'):
        pytest.importorskip('rclpy', reason='needs rclpy')
    if target == 'images':
        pytest.importorskip('cv2', reason='needs OpenCV')
    report = fuzz(target, cases=CASES[target], folder=tmp_path)
    assert not report.findings, '\n'.join(f'{f["again"]}\n{f["text"]}' for f in report.findings)
    assert report.cases == CASES[target] and sum(report.outcomes.values()) >= CASES[target] // 2


class Broken:
    """One case for each thing that must be found."""

    limit_s, margin_mb = 2.0, 256

    def __init__(self, seed, folder):
        pass

    def prepare(self, case):
        pass

    def run(self, case):
        match case:
            case 0:
                raise KeyError('of no family')
            case 1:
                os.abort()
            case 2:
                time.sleep(60)
            case 3:
                return str(len(bytearray(2**30)))
            case 4:
                try:
                    return str(len(bytearray(2**30)))
                except MemoryError as error:
                    raise ModelError('too late') from error
            case 5:
                raise ModelError('x' * 10_000)
            case 6:
                raise ModelError('as it should be')

    def finish(self):
        return {'findings': ['the whole run']}


def test_every_kind_of_trouble_is_found_and_the_rest_goes_on(tmp_path):
    report = run_target('broken', 'test_fuzz:Broken', seed=0, cases=8, folder=tmp_path)
    assert [(f['case'], f['kind']) for f in report.findings] == [
        (0, 'error'), (1, 'crash'), (2, 'hang'), (3, 'error'), (4, 'error'), (5, 'error'), (-1, 'run')
    ]  # fmt: skip
    assert 'of no family' in report.findings[0]['text'] and 'MemoryError' in report.findings[3]['text']
    assert 'hides MemoryError' in report.findings[4]['text'] and '10000 characters' in report.findings[5]['text']
    assert (report.cases, report.outcomes['served'], report.outcomes['ModelError']) == (8, 1, 1)
    assert '--target broken --seed 0 --first 1 --cases 1' in report.findings[1]['again']


def test_a_target_that_cannot_be_imported_is_a_finding(tmp_path):
    report = run_target('absent', 'no_such_module:Target', seed=0, cases=2, folder=tmp_path)
    assert [(f['kind'], f['text']) for f in report.findings] == [('crash', 'ended its process with exit status 1')] * 2
