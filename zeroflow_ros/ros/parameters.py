# SPDX-License-Identifier: Apache-2.0
"""The flow node's ROS parameters: one frozen dataclass, declared with description, range and type."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from zeroflow_ros import transforms
from zeroflow_ros.engines.selection import ENGINES
from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.pipeline import OUTPUT_ON
from zeroflow_ros.runtime.parameter_fields import SAID, check_fields, shown
from zeroflow_ros.runtime.parameter_fields import parameter as _parameter

EGO_MOTION = ('odometry', 'tf', 'registration', 'none')
RELIABILITY = ('auto', 'reliable', 'best_effort')
OVER_MAX_POINTS = ('drop', 'subsample')
_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple: Parameter.Type.DOUBLE_ARRAY,
}


@dataclass(frozen=True)
class Parameters:
    """All parameters of the flow node and their defaults.

    Raises: ConfigError on a value of the wrong type, out of range, or at odds with another one.
    """

    autostart: bool = _parameter(True, 'Configure and activate at start; false: a lifecycle manager does it.')
    model_path: str = _parameter('', 'Model file (.onnx with a model card); empty for the model in the package.')
    engine: str = _parameter(
        'onnxruntime', 'What runs the model: the CPU, or an NVIDIA GPU, for which an engine is built at the first '
        'start.', choices=ENGINES
    )  # fmt: skip
    num_threads: int = _parameter(2, 'CPU threads of onnxruntime.', low=1, high=256)
    engine_cache: str = _parameter('', 'Folder where tensorrt keeps its engines; empty: ~/.cache/zeroflow_ros/engines.')
    cpu_fallback: bool = _parameter(
        False, 'With engine tensorrt: run the model on the CPU when the GPU cannot, which is a warning.'
    )
    build_only: bool = _parameter(False, 'With engine tensorrt: build the engine, and end.')
    refinements: int = _parameter(
        0, 'How often the model is asked again, with what moves moved by its flow so far: more exact velocities, for '
        'as long again as the first time.', low=0, high=4
    )  # fmt: skip
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
    dynamic_min_speed: float = _parameter(
        0.4, 'Slowest point in ~/output/dynamic_points [m/s].', low=0.0, high=100.0, live=True
    )
    cluster_dynamic_points: bool = _parameter(
        False, 'Give ~/output/dynamic_points a field cluster_id: points of one body have one number.', live=True
    )
    max_processing_time_ms: float = _parameter(
        200.0, 'Message in to flow out: longer is a warning [ms].', low=1.0, high=60_000.0, live=True
    )
    max_consecutive_delay_ms: float = _parameter(
        1000.0, 'Longer without a break for this time is an error [ms].', low=1.0, high=600_000.0, live=True
    )

    def __post_init__(self):
        check_fields(self)
        check_ego_motion(self)
        if self.engine != 'tensorrt' and (self.build_only or self.cpu_fallback):
            raise ConfigError('build_only and cpu_fallback are for engine tensorrt; onnxruntime needs neither.')
        if self.deskew and self.ego_motion == 'none':
            raise ConfigError(
                "With ego_motion 'none' nobody knows how to deskew. Set deskew to false, or ego_motion to odometry, tf "
                'or registration.'
            )

    def extrinsic(self):
        """Return odometry_T_lidar as (4, 4); None when it is not set."""
        if not self.odometry_T_lidar:
            return None
        x, y, z, *quaternion = self.odometry_T_lidar
        if len(quaternion) != 4:
            raise ValueError(f'expected 7 numbers, got {len(self.odometry_T_lidar)}')
        return transforms.from_quaternion((x, y, z), quaternion)


def check_ego_motion(parameters) -> None:
    """Raise ConfigError where ego_motion, fixed_frame and odometry_T_lidar do not make sense together."""
    if parameters.ego_motion == 'tf' and not parameters.fixed_frame:
        raise ConfigError("With ego_motion 'tf', fixed_frame must name a frame such as 'odom'; it is empty.")
    if parameters.odometry_T_lidar:
        try:
            parameters.extrinsic()
        except (EgoMotionError, ValueError) as error:
            raise ConfigError(
                'odometry_T_lidar must be [x, y, z, qx, qy, qz, qw] with a quaternion of length 1, got '
                f'{shown(list(parameters.odometry_T_lidar))}. Identity is [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0].'
            ) from error


def _plain(parameter: Parameter):
    """Return the value of a ROS parameter as Python holds it here; a list is a tuple."""
    value = parameter.value
    return value if isinstance(value, bool | int | float | str) or value is None else tuple(value)


def read_parameters(node: Node, kind: type = Parameters, *, others: Iterable[str] = ()):
    """Take what the user gave (YAML, command line), check it, and declare every parameter; return a `kind`.

    node: created with automatically_declare_parameters_from_overrides, so that unknown names can be seen.
    kind: a dataclass whose fields are made by `parameter_fields.parameter`.
    others: names that other parts declare; one that ends in '.' stands for all that begin with it.
    Raises: ConfigError that names an unknown parameter and the nearest known one, or a bad value.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
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
    parameters = kind(**given)
    for name, f in fields.items():
        value = getattr(parameters, name)
        # An empty list has no type of its own in ROS: declared by its type it stays unset.
        default = list(value) or _TYPES[tuple] if f.type is tuple else value
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


def changed(parameters, changes: Iterable[Parameter]):
    """Return the parameters with those changed at run time; names that are not ours are passed over.

    Raises: ConfigError when the new values do not make sense together.
    """
    names = {f.name for f in dataclasses.fields(parameters)}
    return dataclasses.replace(parameters, **{p.name: _plain(p) for p in changes if p.name in names})


def follow_changes(node: Node) -> None:
    """From now on let the live parameters of a node change `node.parameters`, or say why they cannot."""

    def on_set(changes) -> SetParametersResult:
        try:
            node.parameters = changed(node.parameters, changes)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(on_set)


def parameter_table(kind: type = Parameters) -> str:
    """Return all parameters of a node as a Markdown table, for its page."""
    lines = ['| parameter | type | default | live | meaning |', '|---|---|---|---|---|']
    for f in dataclasses.fields(kind):
        default = {'': "''", (): 'not set'}.get(f.default, f.default)
        meaning = f.metadata['doc'] + (f' `{"`, `".join(f.metadata["choices"])}`' if f.metadata['choices'] else '')
        live = 'yes' if f.metadata['live'] else ''
        lines.append(f'| `{f.name}` | {SAID[f.type][0].split(" ", 1)[1]} | {default} | {live} | {meaning} |')
    return '\n'.join(lines)
