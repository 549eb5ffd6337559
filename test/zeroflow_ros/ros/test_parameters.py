# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from rclpy.parameter import Parameter  # noqa: E402

from zeroflow_ros.errors import ConfigError  # noqa: E402
from zeroflow_ros.ros.parameters import Parameters, parameter_table, read_parameters, with_changes  # noqa: E402

CONFIG = Path(__file__).parents[3] / 'config' / 'node.yaml'


@pytest.fixture(scope='module')
def context():
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


def read(context, *args, others=()):
    """Return (parameters, node) as of a node with these ROS arguments."""
    node = rclpy.create_node('flow_node', context=context, cli_args=['--ros-args', *args],
                             automatically_declare_parameters_from_overrides=True)  # fmt: skip
    try:
        return read_parameters(node, others=others), node
    finally:
        node.destroy_node()


def test_defaults(context):
    parameters, node = read(context)
    np.testing.assert_equal(dataclasses.asdict(parameters), dataclasses.asdict(Parameters()))
    for f in dataclasses.fields(Parameters):
        descriptor = node.describe_parameter(f.name)
        assert descriptor.description.endswith('.') and descriptor.read_only == (not f.metadata['live'])
        assert type(f.default) is f.type
        if f.metadata['low'] is not None:
            assert descriptor.integer_range or descriptor.floating_point_range


def test_values_of_the_user_are_taken(context):
    args = ['-p', 'min_speed:=2.5', '-p', 'odometry_T_lidar:=[1.0,0.0,2.0,0.0,0.0,0.0,1.0]', '-p', 'always_run:=true']
    parameters, node = read(context, *args)
    assert (parameters.min_speed, parameters.always_run) == (2.5, True)
    assert parameters.extrinsic()[:3, 3] == pytest.approx([1, 0, 2]) and Parameters().extrinsic() is None
    assert node.get_parameter('min_speed').value == 2.5
    assert list(node.get_parameter('odometry_T_lidar').value) == [1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    'argument, said',
    [
        ('min_sped:=1.0', ['min_sped', "nearest known one is 'min_speed'"]),
        ('modelpath:=a', ["'model_path'"]),
        ('arrow.cell:=1.0', ["'arrow_cell'"]),
        ('min_speed:=1', ["'min_speed'", 'a double', 'the integer 1', 'like 1.0']),
        ('num_threads:=2.0', ["'num_threads'", 'an integer', 'the double 2.0']),
        ('always_run:=1', ["'always_run'", 'a bool', 'the integer 1']),
        ('model_path:=7', ["'model_path'", 'a string']),
        ('odometry_T_lidar:=[1,0]', ['list of doubles']),
        ('odometry_T_lidar:=[1.0,0.0]', ['[x, y, z, qx, qy, qz, qw]']),
        ('odometry_T_lidar:=[0.0,0.0,0.0,0.0,0.0,0.0,0.0]', ['quaternion of length 1']),
        ('min_speed:=-0.1', ['from 0.0 to 100.0', '-0.1']),
        ('min_speed:=.inf', ['from 0.0 to 100.0']),
        ('sensor_height:=.inf', ['finite']),
        ('num_threads:=0', ['from 1 to 256']),
        ('ego_motion:=imu', ['odometry, tf, registration, none', "'imu'"]),
        ('engine:=torch', ['onnxruntime']),
        (f'engine:={"x" * 10_000}', ['onnxruntime', 'xxx...']),
        (f'min_speed:={"x" * 10_000}', ['a double', 'xxx...']),
    ],
)
def test_bad_parameter_is_an_error_that_says_what_to_do(context, argument, said):
    with pytest.raises(ConfigError) as error:
        read(context, '-p', argument)
    assert all(part in str(error.value) for part in said) and len(str(error.value)) < 2000, error.value


def test_values_must_make_sense_together():
    with pytest.raises(ConfigError, match='fixed_frame'):
        Parameters(ego_motion='tf', fixed_frame='')
    with pytest.raises(ConfigError, match='deskew'):
        Parameters(ego_motion='none', deskew=True)


def test_parameters_of_ros_itself_are_known(context):
    name = 'qos_overrides./flow_node/output/flow.publisher.depth'
    read(context, '-p', 'use_sim_time:=true', '-p', f'{name}:=3', others=['qos_overrides./flow_node/output/flow.'])
    with pytest.raises(ConfigError, match='qos_overrides'):
        read(context, '-p', f'{name}:=3')


def test_changes_at_run_time():
    before = Parameters()
    after = with_changes(before, [Parameter('min_speed', value=1.5), Parameter('use_sim_time', value=True)])
    assert (after.min_speed, before.min_speed) == (1.5, 0.5)
    with pytest.raises(ConfigError, match='min_speed'):
        with_changes(before, [Parameter('min_speed', value=1000.0)])


def test_shipped_yaml_is_valid(context):
    content = yaml.safe_load(CONFIG.read_text())
    (shipped,) = (node['ros__parameters'] for node in content.values())
    parameters, _ = read(context, '--params-file', str(CONFIG))
    for name, value in shipped.items():
        np.testing.assert_equal(getattr(parameters, name), value)


def test_table_has_a_line_for_every_parameter():
    lines = parameter_table().splitlines()
    assert len(lines) == 2 + len(dataclasses.fields(Parameters))
    assert '| `min_speed` | double | 0.5 | yes | Lowest speed of a point that gets an arrow [m/s]. |' in lines
