# SPDX-License-Identifier: Apache-2.0
"""What the managed (lifecycle) nodes share: transitions, release of resources, timers, and diagnostics."""

import gc
import time
import traceback
from collections.abc import Callable, Iterable, Mapping

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from zeroflow_ros.errors import GpuLostError, ZeroFlowError
from zeroflow_ros.ros.messages import diagnostic_array
from zeroflow_ros.ros.parameters import apply_live_changes, read_parameters
from zeroflow_ros.runtime.health import Health, Level

_REPORT_S, _WATCH_S = 1.0, 0.5
_NO_CLOCK_S = 5.0


class ManagedNode(LifecycleNode):
    """A managed node that reads its parameters at construction and releases its resources in reverse order.

    kind: dataclass of the parameters. topics: those whose publishers take qos_overrides. A node implements `_set_up`,
    `_activate`, `_deactivate` and `_publish_diagnostics`, and puts into `_undo` what releases each resource. If
    configuring fails, the node logs the reason and stays unconfigured.

    Raises: ConfigError for an unknown parameter or an invalid value.
    """

    health: Health

    def __init__(self, name: str, kind: type, topics: Iterable[str], **node_arguments):
        super().__init__(name, automatically_declare_parameters_from_overrides=True, **node_arguments)
        qos = [
            f'qos_overrides.{self.resolve_topic_name(topic)}.publisher.{policy}'
            for topic in topics
            for policy in ('history', 'depth', 'reliability')
        ]
        self.parameters = read_parameters(self, kind, others=qos)
        apply_live_changes(self)
        self.unused_parameters: list[str] = []  # warnings about parameter files
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state
        self._undo: list[Callable[[], object]] = []  # calls that release the resources, in order of acquisition

    def _set_up(self) -> None:
        """Open everything. Raises: ZeroFlowError."""
        raise NotImplementedError

    def _activate(self) -> None:
        """Start publishing."""
        raise NotImplementedError

    def _deactivate(self) -> None:
        """Stop publishing."""
        raise NotImplementedError

    def _publish_diagnostics(self) -> None:
        """Publish the diagnostics, once a second."""
        raise NotImplementedError

    def _on_change_state(self, request, response):
        """Refuse a transition that the current state does not have: rclpy would raise, and the node would end."""
        try:
            return self._change_state(request, response)
        except Exception as error:
            self.get_logger().warning(f'The current state does not have this transition: {error}')
            response.success = False
            return response

    def autostart(self) -> bool:
        """Configure and activate, as a lifecycle manager would; return whether the node is active."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def on_configure(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._set_up)

    def on_activate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._activate)

    def on_deactivate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._deactivate)

    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.tear_down)

    def on_shutdown(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.tear_down)

    def on_error(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.tear_down)  # then the node is unconfigured and can be configured again

    def _transition(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        """Run the step of a transition and return the result; log errors here, because rclpy drops them."""
        try:
            step()
        except ZeroFlowError as error:
            self.get_logger().fatal(str(error))
            self.tear_down()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            if self.context.ok():  # else the node was stopped meanwhile
                self.get_logger().fatal(f'{type(error).__name__}: {error}\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def tear_down(self) -> None:
        """Stop taking input, finish the current item, and release all resources."""
        while self._undo:
            self._undo.pop()()
        self._forget()
        gc.unfreeze()  # see `run_node`
        gc.collect()  # callbacks and their owners refer to each other, and keep an engine alive

    def _forget(self) -> None:
        """Drop the references to what has been released."""

    def close(self) -> None:
        """Release all resources, and destroy the node."""
        self.tear_down()
        self.destroy_node()

    def _open_diagnostics(self) -> None:
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._undo.append(lambda: self.destroy_publisher(self._diagnostics))

    def _watch_input(self, match_qos: Callable[[], None], clock_jumped_back: Callable[[], None]) -> None:
        """Watch the topics and the clock, and start the diagnostics."""
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a paused bag stops ROS time, but not these timers
        self._started = time.monotonic()
        for seconds, callback in ((_REPORT_S, self._report), (_WATCH_S, match_qos)):
            timer = self.create_timer(seconds, callback, clock=steady)
            self._undo.append(lambda timer=timer: self.destroy_timer(timer))
        backward = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        jump = self.get_clock().create_jump_callback(backward, post_callback=lambda _: clock_jumped_back())
        self._undo.append(jump.unregister)

    def _report(self) -> None:
        try:
            self._publish_diagnostics()
        except GpuLostError:
            raise  # ends the process, so that systemd starts a new one
        except Exception as error:  # an error in the diagnostics must not end the node
            if self.context.ok():
                text = f'The diagnostics failed: {type(error).__name__}: {error}'
                self.health.report_issue('diagnostics', 'model', Level.ERROR, text, log='error')

    def _report_settings(self) -> None:
        """Report parameter files that are not for this node, and a clock that does not run."""
        for text in self.unused_parameters:
            self.health.report_issue(text, 'inference', Level.WARN, text, log='debug')
        use_sim_time = self.get_parameter('use_sim_time').value
        has_no_time = use_sim_time and self.get_clock().now().nanoseconds == 0
        if has_no_time and time.monotonic() - self._started > _NO_CLOCK_S:
            text = 'use_sim_time is set, but nothing comes on /clock. Play the bag with --clock, or unset it.'
            self.health.log_once('no clock', text)
            self.health.report_issue('no clock', 'input', Level.WARN, text, log='debug')

    def _publish_health(self, facts: Mapping[str, Mapping]) -> None:
        """Publish the state of every part. facts: values to show beside it, by part."""
        name = self.get_fully_qualified_name().lstrip('/')
        statuses = [(f'{name}: {s.part}', s.level, s.message, s.values) for s in self.health.statuses(facts)]
        self._diagnostics.publish(diagnostic_array(self.get_clock().now().to_msg(), statuses))
