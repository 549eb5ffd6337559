# SPDX-License-Identifier: Apache-2.0
"""A subscription to a large sensor message whose QoS follows what the publishers offer."""

from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from zeroflow_ros.runtime.health import Health, Level

_POLICIES = {'reliable': ReliabilityPolicy.RELIABLE, 'best_effort': ReliabilityPolicy.BEST_EFFORT}


class SensorInput:
    """Subscribes to a topic, keep_last, and subscribes again when publishers offer another reliability.

    Best effort connects to every publisher, but loses most messages of LiDAR size with stock Fast DDS; reliable loses
    none, but does not connect to a best-effort publisher.

    topic: private name such as ~/input/pointcloud. message_type: of sensor_msgs. noun: what a message is called.
    reliability: 'auto' takes reliable unless a publisher offers less. depth: messages that wait.
    """

    def __init__(self, node: Node, topic: str, message_type: type, on_message: Callable, health: Health, *,
                 noun: str, reliability: str, depth: int):  # fmt: skip
        self._node, self._name, self._message_type, self._health = node, topic, message_type, health
        self._on_message, self._noun, self._depth = on_message, noun, depth
        self._type = f'sensor_msgs/msg/{message_type.__name__}'
        self._auto = reliability == 'auto'
        self.topic = node.resolve_topic_name(topic)
        # Reliable while there is no publisher: a best-effort one then raises an event at once, and nothing is lost.
        self.reliability = 'reliable' if self._auto else reliability
        self._subscription = self._subscribe()
        self.match_qos()

    def _subscribe(self):
        qos = QoSProfile(depth=self._depth, reliability=_POLICIES[self.reliability])
        events = SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible_qos)
        return self._node.create_subscription(
            self._message_type, self._name, self._on_message, qos, event_callbacks=events
        )

    def _on_incompatible_qos(self, _event) -> None:
        self._node.executor.create_task(self.match_qos)  # not here: the subscription is in use by its own event

    def _offered_reliability(self) -> dict[str, str]:
        """Return the offered reliability of each publisher of this type, by node name."""
        return {
            f'{info.node_namespace.rstrip("/")}/{info.node_name}': info.qos_profile.reliability.name.lower()
            for info in self._node.get_publishers_info_by_topic(self._name)
            if info.topic_type == self._type
        }

    def match_qos(self) -> None:
        """Compare the QoS of the publishers with that of the subscription; adapt or report a mismatch. Never raises."""
        try:
            self._match_qos()
        except Exception as error:  # the ROS graph may change meanwhile, and callbacks must not raise
            if self._node.context.ok():
                text = f'The publishers of {self.topic} could not be looked up: {error}'
                self._health.report_issue('qos lookup', 'input', Level.WARN, text)

    def _match_qos(self) -> None:
        offers = self._offered_reliability()
        best_effort = [name for name, offer in offers.items() if offer == 'best_effort']
        if self._auto and offers:
            wanted = 'best_effort' if best_effort else 'reliable'
            if wanted != self.reliability:
                self.reliability = wanted
                self._node.destroy_subscription(self._subscription)
                self._subscription = self._subscribe()
                self._health.report_issue(
                    f'qos changed on {self.topic}', 'input', Level.OK,
                    f'{self.describe()} This node now uses {wanted}.', log='info',
                )  # fmt: skip
        elif best_effort and self.reliability == 'reliable':
            text = (
                f'QoS does not match on {self.topic}: {", ".join(best_effort)} offers reliability best_effort, '
                f'this node requests reliable, so no {self._noun} arrives from there. Set the parameter '
                'input_reliability to auto or best_effort.'
            )
            self._health.log_once(f'qos of {self.topic}', text)
            self._health.report_issue(f'qos of {self.topic}', 'input', Level.ERROR, text, log='debug')

    def describe(self) -> str:
        """Describe the publishers of the topic and their QoS, or what to do if there are none."""
        offers = self._offered_reliability()
        others = {i.topic_type for i in self._node.get_publishers_info_by_topic(self._name)} - {self._type}
        if offers:
            named = ', '.join(f'{name} ({offer})' for name, offer in offers.items())
            return f'{self.topic} has {len(offers)} publisher{"s" * (len(offers) != 1)}: {named}.'
        wrong = f' of {self._type}, but of {", ".join(sorted(others))}' if others else ''
        return f"{self.topic} has 0 publishers{wrong}. Remap it: --ros-args -r '{self._name}:=/your/topic'."

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)
