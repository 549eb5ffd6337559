# SPDX-License-Identifier: Apache-2.0
"""The sentence with which a launch ends when a node has died. test/test_launch.py has whole launches."""

import pytest

from zeroflow_ros.ros.required_nodes import end_text, reason_in_log

INFO = '[INFO] [1795957480.02] [flow_node]: fine'
FATAL = '[FATAL] [1795957481.02] [flow_node]: No model file at nowhere.onnx: give one'


@pytest.mark.parametrize(
    'label, lines, expected',
    [
        ('no log', [], ''),
        ('blank lines', ['', ' '], ''),
        ('a fatal line', [INFO, FATAL], 'No model file at nowhere.onnx: give one'),
        ('lines after it', [FATAL, INFO, ''], 'No model file at nowhere.onnx: give one'),
        ('coloured', [f'\x1b[31m{FATAL}\x1b[0m'], 'No model file at nowhere.onnx: give one'),
        ('two errors', [FATAL, '[ERROR] [1.0] [a.b]: later'], 'later'),
        ('a program without a node', ['replay: There is no bag at x'], 'replay: There is no bag at x'),
        ('a traceback', [INFO, 'Traceback (most recent call last):', 'ValueError: x'], 'ValueError: x'),
    ],
)
def test_the_reason_is_the_last_error(label, lines, expected):
    assert reason_in_log(lines) == expected


@pytest.mark.parametrize(
    'status, reason, expected',
    [
        (1, 'x', 'flow_node-1 has ended with exit status 1: x'),
        (1, '', 'flow_node-1 has ended with exit status 1.'),
        (-9, 'x', 'flow_node-1 was ended by SIGKILL, as when memory runs out: x'),
        (-11, '', 'flow_node-1 was ended by SIGSEGV.'),
        (-99, '', 'flow_node-1 was ended by signal 99.'),
    ],
)
def test_the_sentence_says_how_a_process_ended(status, reason, expected):
    assert end_text('flow_node-1', status, reason) == expected
