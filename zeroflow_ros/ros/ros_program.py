# SPDX-License-Identifier: Apache-2.0
"""Start, run and end a ROS node as a program: arguments, spinning, exit code."""

import contextlib
import gc
import signal
from collections.abc import Callable

import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from zeroflow_ros.errors import ConfigError, ZeroFlowError
from zeroflow_ros.ros.parameter_files import refusal_hint, unused_parameters
from zeroflow_ros.runtime.command_line import forget_interrupt, repeat_lost_interrupts
from zeroflow_ros.runtime.malloc_tuning import keep_freed_memory


def run_node(name: str, argv: list[str], make: Callable[[], Node], start: Callable[[Node], bool] | None = None) -> int:
    """Make a node and spin it until it is stopped; return the exit code.

    name: of the logger while there is no node. argv: the program and its arguments. start: called with the node; it
    logs the error and returns False when the node cannot start. The node's close() releases all resources; its
    unused_parameters gets the warnings about parameter files that are not for it.
    """
    interrupt = _Interrupt()
    try:
        interrupt.handle()
        return _run_node(name, argv, make, start, interrupt)
    except KeyboardInterrupt:  # in the middle of handling another error, which came of the same Ctrl-C
        return 0
    finally:
        forget_interrupt()


class _Interrupt:
    """Ctrl-C while a node starts raises KeyboardInterrupt, once: building an engine takes minutes.

    Later it does nothing: rclpy then shuts the context down, which ends the loop of the executor.
    """

    def __init__(self):
        self.is_raised, self.has_come = True, False

    def handle(self) -> None:
        """Install this; before rclpy.init, which puts its own handler in front of it."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self)
            repeat_lost_interrupts()

    def __call__(self, *_) -> None:
        self.has_come = True
        if self.is_raised:
            self.is_raised = False
            raise KeyboardInterrupt


def _run_node(name, argv, make, start, interrupt: _Interrupt) -> int:
    node, is_up = None, False
    try:
        keep_freed_memory()
        rclpy.init(args=argv)
        is_up = True
        if rest := remove_ros_args(argv)[1:]:
            raise ConfigError(f'Unknown arguments {rest}. ROS arguments come after --ros-args; see --help.')
        node = make()
        node.unused_parameters = warn_of_unused_parameters(node, argv)
        if start is not None and not start(node):
            return 1 if rclpy.ok() and not interrupt.has_come else 0  # 0: stopped while starting
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        # The garbage collector need not look at modules and models again, in the middle of a sweep.
        gc.freeze()
        interrupt.is_raised = False
        while rclpy.ok():  # rclpy.spin sometimes misses a signal, and then waits until the next event
            executor.spin_once(timeout_sec=1.0)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except ZeroFlowError as error:
        rclpy.logging.get_logger(name).fatal(str(error))
        return 1
    except Exception as error:
        if interrupt.has_come or (is_up and not rclpy.ok()):  # stopped while starting
            return 0
        if node is not None:
            raise
        # rcl raises several types of error for an unreadable YAML file or argument.
        hint = refusal_hint(argv) or 'In YAML, leave out parameters without a value ([], ~).'
        text = f'ROS refuses an argument or a parameter file: {error}. {hint}'
        rclpy.logging.get_logger(name).fatal(text)
        return 1
    finally:
        interrupt.is_raised = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not turn the end into a traceback
        if node is not None:
            node.close()
        with contextlib.suppress(RCLError):  # the signal handler of rclpy has just shut down
            rclpy.try_shutdown()
        gc.freeze()  # the interpreter's end takes no time to collect what ends with it
    return 0


def warn_of_unused_parameters(node: Node, argv: list[str]) -> list[str]:
    """Log a warning for each parameter file of which no section is for this node; return the texts."""
    texts = unused_parameters(argv, node.get_fully_qualified_name())
    for text in texts:
        node.get_logger().warning(text)
    return texts


def node_log(node: Node) -> Callable[[str, str], None]:
    """Return a function that logs a sentence with a severity of debug, info, warning or error."""
    # One line each: rclpy forbids a call site to change its severity.
    logs = {
        'debug': lambda text: node.get_logger().debug(text),
        'info': lambda text: node.get_logger().info(text),
        'warning': lambda text: node.get_logger().warning(text),
        'error': lambda text: node.get_logger().error(text),
    }
    return lambda severity, text: logs[severity](text)
