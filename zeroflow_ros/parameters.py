# SPDX-License-Identifier: Apache-2.0
"""The node's ROS parameters: one frozen dataclass, declared with description, range and type."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from zeroflow_ros import transforms
from zeroflow_ros.engine import ENGINES
from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.pipeline import OUTPUT_ON

EGO_MOTION = ('odometry', 'tf', 'registration', 'none')
RELIABILITY = ('auto', 'reliable', 'best_effort')
OVER_MAX_POINTS = ('drop', 'subsample')
_TYPES = {
    bool: (Parameter.Type.BOOL, 'a bool', 'true'),
    int: (Parameter.Type.INTEGER, 'an integer', '10'),
    float: (Parameter.Type.DOUBLE, 'a double', '10.0'),
    str: (Parameter.Type.STRING, 'a string', "'text'"),
    tuple: (Parameter.Type.DOUBLE_ARRAY, 'a list of doubles', '[0.0, 1.0]'),
}


def _parameter(default, doc: str, *, low=None, high=None, choices: tuple = (), live: bool = False):
    """Describe one parameter; low and high are both given or both absent, a live one may change while running."""
    return field(default=default, metadata={'doc': doc, 'low': low, 'high': high, 'choices': choices, 'live': live})


@dataclass(frozen=True)
class Parameters:
    """All parameters of the flow node and their defaults.

    Raises: ConfigError on a value of the wrong type, out of range, or at odds with another one.
    """

    autostart: bool = _parameter(True, 'Configure and activate at start; false: a lifecycle manager does it.')
    model_path: str = _parameter('', 'Model file (.onnx with a model card); empty for the model in the package.')
    engine: str = _parameter('onnxruntime', 'What runs the model.', choices=ENGINES)
    num_threads: int = _parameter(2, 'CPU threads of the engine.', low=1, high=256)
    output_on: str = _parameter('latest', 'The sweep whose points get the velocities.', choices=OUTPUT_ON)
    sensor_height: float = _parameter(
        math.nan, "Height of the cloud frame's origin above the ground [m]; .nan: see it in the sweeps."
    )
    ego_motion: str = _parameter('odometry', 'Where the ego motion comes from.', choices=EGO_MOTION)
    fixed_frame: str = _parameter('odom', 'With ego_motion tf: the frame that does not move and does not jump.')
    odometry_T_lidar: tuple = _parameter(
        (), 'With ego_motion odometry: pose [x, y, z, qx, qy, qz, qw] of the cloud frame in the child frame of the '
        'odometry [m]; not set: the two are one frame, or tf knows.'
    )  # fmt: skip
    stamp_offset_s: float = _parameter(
        0.0, 'Added to the stamp of a cloud where its ego motion is looked up [s].', low=-1.0, high=1.0, live=True
    )
    ego_motion_timeout_s: float = _parameter(
        0.1, 'How long a sweep waits for its odometry or tf [s].', low=0.0, high=5.0, live=True
    )
    deskew: bool = _parameter(
        False, 'Move each point to where it would have been seen at the stamp, by its time and the ego motion; for '
        'clouds that have times and do not come in deskewed.'
    )  # fmt: skip
    input_reliability: str = _parameter(
        'auto', 'QoS of the input cloud; auto: reliable where every publisher offers it.', choices=RELIABILITY
    )
    input_timeout_s: float = _parameter(
        2.0, 'A silence of the input that is a warning, five times it an error [s].', low=0.1, high=3600.0, live=True
    )
    max_points: int = _parameter(500_000, 'The largest cloud that is taken whole [points].', low=1, high=10_000_000)
    over_max_points: str = _parameter(
        'drop', 'A larger cloud is dropped, or every n-th of its points gets a velocity.', choices=OVER_MAX_POINTS
    )
    always_run: bool = _parameter(False, 'Run the model even if nobody listens to its output.', live=True)
    max_arrows: int = _parameter(2000, 'Most arrows in ~/output/markers.', low=0, high=100_000, live=True)
    min_speed: float = _parameter(0.5, 'Slowest point that gets an arrow [m/s].', low=0.0, high=100.0, live=True)
    arrow_seconds: float = _parameter(
        0.5, 'An arrow is as long as the way of its point in this time [s].', low=0.01, high=10.0, live=True
    )
    arrow_cell: float = _parameter(1.0, 'One arrow per cell of this side [m].', low=0.05, high=50.0, live=True)
    max_processing_time_ms: float = _parameter(
        200.0, 'Message in to flow out: longer is a warning [ms].', low=1.0, high=60_000.0, live=True
    )
    max_consecutive_delay_ms: float = _parameter(
        1000.0, 'Longer without a break for this time is an error [ms].', low=1.0, high=600_000.0, live=True
    )

    def __post_init__(self):
        for f in dataclasses.fields(self):
            _check(f, getattr(self, f.name))
        if self.ego_motion == 'tf' and not self.fixed_frame:
            raise ConfigError("With ego_motion 'tf', fixed_frame must name a frame such as 'odom'; it is empty.")
        if self.deskew and self.ego_motion == 'none':
            raise ConfigError(
                "With ego_motion 'none' nobody knows how to deskew. Set deskew to false, or ego_motion to odometry, tf "
                'or registration.'
            )
        if self.odometry_T_lidar:
            try:
                self.extrinsic()
            except (EgoMotionError, ValueError) as error:
                raise ConfigError(
                    'odometry_T_lidar must be [x, y, z, qx, qy, qz, qw] with a quaternion of length 1, got '
                    f'{_shown(list(self.odometry_T_lidar))}. Identity is [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0].'
                ) from error

    def extrinsic(self):
        """Return odometry_T_lidar as (4, 4); None when it is not set."""
        if not self.odometry_T_lidar:
            return None
        x, y, z, *quaternion = self.odometry_T_lidar
        if len(quaternion) != 4:
            raise ValueError(f'expected 7 numbers, got {len(self.odometry_T_lidar)}')
        return transforms.from_quaternion((x, y, z), quaternion)


def _check(f: dataclasses.Field, value) -> None:
    """Raise ConfigError unless `value` is of the type and in the range of the parameter."""
    _, expected, example = _TYPES[f.type]
    if f.type is float and type(value) is int:
        example = str(float(value))
    if type(value) is not f.type or (f.type is tuple and any(type(number) is not float for number in value)):
        raise ConfigError(
            f"Parameter '{f.name}' must be {expected}, got {_in_yaml(value)}. In YAML write it like {example}, on the "
            f'command line like -p {f.name}:={example.replace(" ", "")}.'
        )
    low, high, choices = f.metadata['low'], f.metadata['high'], f.metadata['choices']
    if low is not None and not low <= value <= high:
        raise ConfigError(f"Parameter '{f.name}' must be from {low} to {high}, got {value}.")
    if choices and value not in choices:
        raise ConfigError(f"Parameter '{f.name}' must be one of {', '.join(choices)}, got {_shown(value)}.")
    if f.type is float and math.isinf(value):
        raise ConfigError(f"Parameter '{f.name}' must be finite, got {value}.")


def _in_yaml(value) -> str:
    names = {bool: 'the bool', int: 'the integer', float: 'the double', str: 'the string', tuple: 'the list'}
    return (
        f'{names.get(type(value), type(value).__name__)} {_shown(list(value) if isinstance(value, tuple) else value)}'
    )


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:200]}...'


def _plain(parameter: Parameter):
    """Return the value of a ROS parameter as Python holds it here; a list is a tuple."""
    value = parameter.value
    return value if isinstance(value, bool | int | float | str) or value is None else tuple(value)


def read_parameters(node: Node, *, others: Iterable[str] = ()) -> Parameters:
    """Take what the user gave (YAML, command line), check it, and declare every parameter.

    node: created with automatically_declare_parameters_from_overrides, so that unknown names can be seen.
    others: names that other parts declare; one that ends in '.' stands for all that begin with it.
    Raises: ConfigError that names an unknown parameter and the nearest known one, or a bad value.
    """
    fields = {f.name: f for f in dataclasses.fields(Parameters)}
    others = ('use_sim_time', 'start_type_description_service', 'qos_overrides./clock.', *others)
    prefixes = tuple(name for name in others if name.endswith('.'))
    given = {}
    for name, parameter in node.get_parameters_by_prefix('').items():
        if name in fields:
            given[name] = _plain(parameter)
            node.undeclare_parameter(name)
        elif name not in others and not name.startswith(prefixes):
            name = name[:80]
            nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"Unknown parameter '{name}'; the nearest known one is '{nearest}'. Known are {', '.join(fields)}."
            )
    parameters = Parameters(**given)
    for name, f in fields.items():
        value = getattr(parameters, name)
        # An empty list has no type of its own in ROS: declared by its type it stays unset.
        default = list(value) or _TYPES[tuple][0] if f.type is tuple else value
        node.declare_parameter(name, default, _descriptor(f))
    return parameters


def _descriptor(f: dataclasses.Field) -> ParameterDescriptor:
    meta = f.metadata
    descriptor = ParameterDescriptor(description=meta['doc'], read_only=not meta['live'])
    if meta['choices']:
        descriptor.additional_constraints = 'one of ' + ', '.join(meta['choices'])
    if meta['low'] is not None and f.type is int:
        descriptor.integer_range = [IntegerRange(from_value=meta['low'], to_value=meta['high'])]
    elif meta['low'] is not None:
        descriptor.floating_point_range = [FloatingPointRange(from_value=meta['low'], to_value=meta['high'])]
    return descriptor


def changed(parameters: Parameters, changes: Iterable[Parameter]) -> Parameters:
    """Return the parameters with those changed at run time; names that are not ours are passed over.

    Raises: ConfigError when the new values do not make sense together.
    """
    names = {f.name for f in dataclasses.fields(Parameters)}
    return dataclasses.replace(parameters, **{p.name: _plain(p) for p in changes if p.name in names})


def parameter_table() -> str:
    """Return all parameters as a Markdown table, for the README."""
    lines = ['| parameter | type | default | live | meaning |', '|---|---|---|---|---|']
    for f in dataclasses.fields(Parameters):
        default = {'': "''", (): 'not set'}.get(f.default, f.default)
        meaning = f.metadata['doc'] + (f' `{"`, `".join(f.metadata["choices"])}`' if f.metadata['choices'] else '')
        live = 'yes' if f.metadata['live'] else ''
        lines.append(f'| `{f.name}` | {_TYPES[f.type][1].split(" ", 1)[1]} | {default} | {live} | {meaning} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    print(parameter_table())
