# SPDX-License-Identifier: Apache-2.0
"""Hostile YAML: training configurations, teacher settings, and parameter files of the node."""

import dataclasses
import json
import random

import rclpy
import yaml
from hostile_examples import Examples, damage
from hypothesis import strategies as st
from processes import DOMAIN_ID, ROOT

from training.config import load_config
from training.label import read_settings
from training.learning.train_config import TrainConfig
from training.teachers import TEACHERS, build_teacher
from training.teachers.fast_nsf import FastNSFConfig
from training.teachers.nsfp import NSFPConfig
from training.teachers.rigid import RigidConfig
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.lidar.pillars import PillarGrid
from zeroflow_ros.ros.parameters import Parameters, read_parameters

_BOMB = ''.join(f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 9)}]\n' for k in range(1, 30))
_MERGES = ''.join(f'a{k}: &a{k} {{<<: [{", ".join([f"*a{k - 1}"] * 9)}]}}\n' for k in range(1, 30))
# PyYAML does not always turn these texts into a value or a YAMLError.
_TEXTS = st.sampled_from((
    '~', '', 'yes', 'true', '0', '1', '-1', '1e9', '1e400', '.nan', '.inf', '-.inf', '0x', '0b_', '0b2', '1:99', '-0o7',
    '9' * 30, '9' * 5000, '1' * 400, '2024-99-99', '2024-01-01', '1e-400', "'text'", '"\\ud800"', '"\\x00"', '[]', '{}',
    '[1, 2]', '[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]', '[1e308, 0.0, 0.0, 0.0, 1e308, 0.0, 1.0]', '[1.0, a]', '[[1.0]]',
    '{steps: 1}', '{steps: 3, batch: 1, cells: 8}', '{steps: -1, batch: 0, cells: 9}', '*nobody', '&a [*a]', '!!int x',
    '!!float x', '!!bool maybe', '!!timestamp x', '!!binary é', '!!python/object:os.system {}', '!!set {a, b}',
    '!!omap [a: 1]', '!!null x', '[' * 3000, '[' * 20_000, '{a: ' * 3000, '? [a]\n: b', '? {a: b}', '- a', '| x', '"',
    "'~nobody/model.onnx'", 'x' * 100_000, '"/' + 'x' * 300 + '"', '%TAG', '\t', '\x00', '\ufeff', '<<: 1', 'a: b: c',
    'odometry', 'tf', 'drop', 'subsample', 'previous', 'balanced_epe', '16-mixed', 'fastflow3d_lite', 'rigid',
))  # fmt: skip
_ODD_NAMES = ('learnig_rate', '1', '~', '[a]', '<<', 'use_sim_time', 'a.b', '*a', 'x' * 300, 'ros__parameters',
              'qos_overrides./flow_node/output/flow.publisher.depth')  # fmt: skip
_NAMES = {
    kind: [f.name for config in configs for f in dataclasses.fields(config)] * 4 + [*_ODD_NAMES]
    for kind, configs in {
        'training': (TrainConfig,),
        'teacher': (NSFPConfig, FastNSFConfig, RigidConfig),
        'node': (Parameters,),
    }.items()
}
_ENTRIES = st.lists(st.tuples(st.integers(0, 10**6), _TEXTS | st.text(max_size=12) | st.integers().map(str)),
                    min_size=1, max_size=3)  # fmt: skip
_DOCUMENTS = st.one_of(
    _ENTRIES, _ENTRIES, _ENTRIES, _ENTRIES, st.sampled_from((_BOMB + 'lr: *a29\n', _MERGES + 'lr: *a29\n')), _TEXTS
)
_GRID = PillarGrid(256, 0.4, -2.0, 4.0)
_SHIPPED = ('train_lite', 'train_zeroflow', 'teacher_nsfp', 'scaling_lite')
_ROS = ('/**:', '/flow_node:', 'flow_node:', '/*:', '/**/x:')


class Yaml:
    """In turn: training configuration, teacher settings, node parameters; with odd values, or as damaged files."""

    limit_s, margin_mb = 10.0, 1024

    def __init__(self, seed, folder):
        self._seed, self._documents, self._path = seed, Examples(_DOCUMENTS, seed), folder / 'hostile.yaml'
        self._shipped = [(ROOT / 'config' / f'{name}.yaml').read_bytes() for name in _SHIPPED]
        self._node_yaml = (ROOT / 'config' / 'node.yaml').read_bytes()
        self.prepare(0)
        for kind in ('training', 'teacher'):
            self._path.write_text('{}')
            self._use(kind)
        self._path.write_bytes(self._node_yaml)
        self._use('node')

    def prepare(self, case):
        self._random = rng = random.Random(f'{self._seed} {case}')
        self._kind = ('training', 'teacher', 'node', 'node')[case % 4]
        if case % 5 == 4:
            text = damage(self._node_yaml if self._kind == 'node' else rng.choice(self._shipped), rng, _BOMB.encode())
        else:
            text = self._text(self._documents[case]).encode(errors='surrogatepass')
        self._path.write_bytes(text)

    def _text(self, document):
        if isinstance(document, str):
            return document
        indent = '    ' if self._kind == 'node' else ''
        head = f'{self._random.choice(_ROS)}\n  ros__parameters:\n' if indent else ''
        names = _NAMES[self._kind]
        return head + ''.join(f'{indent}{names[place % len(names)]}: {value}\n' for place, value in document)

    def run(self, case):
        try:
            return self._use(self._kind)
        finally:
            if case % 50 == 0:
                self._path.write_bytes(self._node_yaml)
                assert self._use('node') == 'served (node)'

    def _use(self, kind):
        if kind == 'training':
            _plan(load_config(TrainConfig, self._path))
        elif kind == 'teacher':
            settings = read_settings(self._path)
            name = self._random.choice(list(TEACHERS))
            build_teacher(name, settings)
        else:
            return self._use_node()
        return f'served ({kind})'

    def _use_node(self):
        """Use parameters as the node does; main() turns errors of rcl into exit status 1."""
        context = rclpy.Context()
        try:
            rclpy.init(context=context, domain_id=DOMAIN_ID)
            try:
                arguments = ['--ros-args', '--params-file', str(self._path)]
                node = rclpy.create_node('flow_node', context=context, cli_args=arguments,
                                         automatically_declare_parameters_from_overrides=True)  # fmt: skip
            except MemoryError:
                raise
            except Exception as error:
                return f'refused by ROS ({type(error).__name__})'
            try:
                parameters = read_parameters(node)
            finally:
                node.destroy_node()
        finally:
            rclpy.try_shutdown(context=context)
        if parameters.model_path:
            load_engine(parameters.model_path)
        return 'served (node)'

    def finish(self):
        return {}


def _plan(config):
    """Use a configuration as a training does before its first step."""
    for changed in (config, config.for_pairs(100), config.with_steps(50)):
        changed.phase(0).grid(_GRID)
        rates = [changed.learning_rate(step) for step in (0, 1, max(0, min(changed.steps, 10**6)))]
        assert all(isinstance(rate, float) for rate in rates)
    assert yaml.safe_load(json.dumps(dataclasses.asdict(config)))  # as stored in a checkpoint
