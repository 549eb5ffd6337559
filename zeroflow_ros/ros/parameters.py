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
from zeroflow_ros.lidar.dynamic_points import DYNAMIC_MIN_SPEED
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.point_times import TIME_UNITS
from zeroflow_ros.lidar.sweep_assembly import ASSEMBLE_SWEEPS
from zeroflow_ros.pipeline import OUTPUT_ON
from zeroflow_ros.runtime.parameter_fields import ROS_TYPE_NAMES, check_fields, short_repr
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

    Raises: ConfigError on a value of the wrong type, out of range, or in conflict with another one.
    """

    autostart: bool = _parameter(True, 'Configure and activate at start; false: a lifecycle manager does it.')
    model_path: str = _parameter('', 'Model file (.onnx with a model card); empty: the bundled model.')
    engine: str = _parameter(
        'onnxruntime', 'Inference engine: ONNX Runtime on the CPU, or TensorRT on an NVIDIA GPU, whose engine is built '
        'at the first start.', choices=ENGINES
    )  # fmt: skip
    num_threads: int = _parameter(2, 'CPU threads of onnxruntime.', low=1, high=256)
    engine_cache: str = _parameter('', 'Folder where tensorrt keeps its engines; empty: ~/.cache/zeroflow_ros/engines.')
    cpu_fallback: bool = _parameter(
        False, 'With engine tensorrt: run the model on the CPU, with a warning, if the GPU fails.'
    )
    build_only: bool = _parameter(False, 'With engine tensorrt: build the engine and exit.')
    refinements: int = _parameter(
        0, 'Extra inference passes with moving points warped by the flow so far, for models that take two sweeps: '
        'the bundled one, which takes five, gains nothing. Each pass takes as long as the first.', low=0, high=4
    )  # fmt: skip
    fit_objects: bool = _parameter(
        True, 'Each cluster of moving points gets the one motion with which it fits the sweeps before; false: the flow '
        'of the network.'
    )  # fmt: skip
    output_on: str = _parameter('latest', 'Sweep on which velocities are published.', choices=OUTPUT_ON)
    sensor_height: float = _parameter(
        math.nan, "Height of the cloud frame's origin above the ground [m]; .nan: estimate it from the ground."
    )
    base_frame: str = _parameter(
        'base_link', 'Frame of the vehicle whose z is up. If /tf_static connects it with the frame of the clouds, the '
        'sensor may be mounted in any orientation; else its z axis may be tilted by 15 degrees. Empty: do not look.'
    )  # fmt: skip
    base_T_lidar: tuple = _parameter(
        (), 'Pose [x, y, z, qx, qy, qz, qw] of the cloud frame in a frame whose z is up, instead of /tf_static; only '
        'its rotation is used, and its position for ego_box.'
    )  # fmt: skip
    ego_motion: str = _parameter('odometry', 'Source of the ego motion.', choices=EGO_MOTION)
    fixed_frame: str = _parameter(
        'odom', 'With ego_motion tf: a frame fixed in the world, whose transforms do not jump.'
    )
    odometry_T_lidar: tuple = _parameter(
        (), 'With ego_motion odometry: pose [x, y, z, qx, qy, qz, qw] of the cloud frame in the child frame of the '
        'odometry [m]; not set: both are the same frame, or tf has the transform.'
    )  # fmt: skip
    stamp_offset_s: float = _parameter(
        0.0, 'Added to the stamp of a cloud to look up its ego motion [s].', low=-100.0, high=100.0, live=True
    )
    ego_motion_timeout_s: float = _parameter(
        0.1, 'How long a sweep waits for its odometry or tf [s].', low=0.0, high=5.0, live=True
    )
    deskew: bool = _parameter(
        False, 'Motion-compensate each point to the stamp of its sweep; for clouds that have point times and are not '
        'deskewed yet.'
    )  # fmt: skip
    assemble_sweeps: str = _parameter(
        'auto', 'Join messages that surely hold parts of a revolution into whole sweeps; off: each message is a sweep.',
        choices=ASSEMBLE_SWEEPS
    )  # fmt: skip
    time_field: str = _parameter('', 'Field with the time of each point; empty: recognised by its name.')
    time_unit: str = _parameter(
        'auto', 'Unit of that field; auto: recognised by name, type and values. Otherwise its clock may be any: the '
        'earliest point is then taken to be at the stamp.', choices=('auto', *TIME_UNITS)
    )  # fmt: skip
    ego_box: tuple = _parameter(
        (), 'Box [x_min, x_max, y_min, y_max, z_min, z_max] of the own vehicle and its rider [m], in base_frame where '
        'the mount is known, else in the frame of the clouds: points inside count as no returns.'
    )  # fmt: skip
    min_range: float = _parameter(
        0.0, 'Points closer to the sensor than this count as no returns [m].', low=0.0, high=100.0
    )
    input_reliability: str = _parameter(
        'auto', 'QoS of the input cloud; auto: reliable if every publisher offers it.', choices=RELIABILITY
    )
    input_timeout_s: float = _parameter(
        2.0, 'Time without input before a warning; five times as long is an error [s].', low=0.1, high=3600.0, live=True
    )
    max_points: int = _parameter(
        500_000, 'Largest cloud that is processed as a whole [points].', low=1, high=10_000_000
    )
    over_max_points: str = _parameter(
        'drop', 'Larger clouds: drop them, or compute the velocity of every n-th point.', choices=OVER_MAX_POINTS
    )
    always_run: bool = _parameter(False, 'Run the model even without subscribers.', live=True)
    max_arrows: int = _parameter(2000, 'Maximum number of arrows in ~/output/markers.', low=0, high=100_000, live=True)
    min_speed: float = _parameter(
        0.5, 'Lowest speed of a point that gets an arrow [m/s].', low=0.0, high=100.0, live=True
    )
    arrow_seconds: float = _parameter(
        0.5, 'Length of an arrow: the distance its point travels in this time [s].', low=0.01, high=10.0, live=True
    )
    arrow_cell: float = _parameter(
        1.0, 'One arrow per square cell of this side length [m].', low=0.05, high=50.0, live=True
    )
    dynamic_min_speed: float = _parameter(
        DYNAMIC_MIN_SPEED, 'Lowest speed of a point in ~/output/dynamic_points, and of one that ~/output/static_points '
        'leaves out [m/s].', low=0.0, high=100.0, live=True
    )  # fmt: skip
    cluster_dynamic_points: bool = _parameter(
        False, 'Add a field cluster_id to ~/output/dynamic_points: one number per cluster.', live=True
    )
    max_processing_time_ms: float = _parameter(
        200.0, 'Input-to-output latency above which a warning is raised [ms].', low=1.0, high=60_000.0, live=True
    )
    max_consecutive_delay_ms: float = _parameter(
        1000.0, 'Time of uninterrupted excess latency before an error [ms].', low=1.0, high=600_000.0, live=True
    )

    def __post_init__(self):
        check_fields(self)
        check_ego_motion(self)
        check_pose(self.base_T_lidar, 'base_T_lidar')
        self.own_vehicle()
        if self.engine != 'tensorrt' and (self.build_only or self.cpu_fallback):
            raise ConfigError('build_only and cpu_fallback are for engine tensorrt; onnxruntime needs neither.')
        if self.deskew and self.ego_motion == 'none':
            raise ConfigError(
                "deskew needs ego motion, but ego_motion is 'none'. Set deskew to false, or ego_motion to "
                'odometry, tf or registration.'
            )

    def extrinsic(self):
        """Return odometry_T_lidar as (4, 4); None when it is not set."""
        return pose_matrix(self.odometry_T_lidar)

    def own_vehicle(self) -> OwnVehicle:
        """Return the region that ego_box and min_range describe. Raises: ConfigError."""
        return OwnVehicle(self.ego_box, self.min_range)

    def mount(self):
        """Return base_T_lidar as (4, 4); None when it is not set."""
        return pose_matrix(self.base_T_lidar)


def check_ego_motion(parameters) -> None:
    """Raise ConfigError where ego_motion, fixed_frame and odometry_T_lidar contradict each other."""
    if parameters.ego_motion == 'tf' and not parameters.fixed_frame:
        raise ConfigError("With ego_motion 'tf', fixed_frame must name a frame such as 'odom'; it is empty.")
    check_pose(parameters.odometry_T_lidar, 'odometry_T_lidar')


def pose_matrix(numbers: tuple[float, ...]):
    """Return [x, y, z, qx, qy, qz, qw] as (4, 4); None for no numbers.

    Raises: EgoMotionError or ValueError when it is no pose.
    """
    if not numbers:
        return None
    x, y, z, *quaternion = numbers
    if len(quaternion) != 4:
        raise ValueError(f'expected 7 numbers, got {len(numbers)}')
    return transforms.from_quaternion((x, y, z), quaternion)


def check_pose(numbers: tuple[float, ...], name: str) -> None:
    """Raise ConfigError unless a parameter is not set or a pose."""
    try:
        pose_matrix(numbers)
    except (EgoMotionError, ValueError) as error:
        raise ConfigError(
            f'{name} must be [x, y, z, qx, qy, qz, qw] with a quaternion of length 1, got '
            f'{short_repr(list(numbers))}. Identity is [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0].'
        ) from error


def _python_value(parameter: Parameter):
    """Return the value of a ROS parameter; a list as a tuple."""
    value = parameter.value
    return value if isinstance(value, bool | int | float | str) or value is None else tuple(value)


def read_parameters(node: Node, kind: type = Parameters, *, others: Iterable[str] = ()):
    """Check the values from YAML and the command line, declare every parameter, and return a `kind`.

    node: created with automatically_declare_parameters_from_overrides, so that unknown names are found.
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
            given[name] = _python_value(parameter)
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
        # ROS cannot infer the type of an empty list: declare the type; the parameter stays unset.
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


def with_changes(parameters, changes: Iterable[Parameter]):
    """Return the parameters with changes of run time applied; unknown names are ignored.

    Raises: ConfigError when the new values contradict each other.
    """
    names = {f.name for f in dataclasses.fields(parameters)}
    return dataclasses.replace(parameters, **{p.name: _python_value(p) for p in changes if p.name in names})


def apply_live_changes(node: Node) -> None:
    """Register a callback that applies changes of live parameters to `node.parameters`, or rejects them."""

    def on_set(changes) -> SetParametersResult:
        try:
            node.parameters = with_changes(node.parameters, changes)
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
        lines.append(f'| `{f.name}` | {ROS_TYPE_NAMES[f.type][0].split(" ", 1)[1]} | {default} | {live} | {meaning} |')
    return '\n'.join(lines)
