# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from zeroflow_ros.objects.tracker import MovingObject
from zeroflow_ros.ros.object_markers import BOXES, LABELS, VELOCITY, object_markers


def moving_object(track_id=3, unseen_s=0.0, size=(4, 2, 1.5)):
    return MovingObject(
        track_id, np.array([10.0, 5, -1]), np.array(size, float), 0.6, np.array([5.0, 3, 0]), unseen_s, 9
    )


def test_no_objects_no_markers():
    assert object_markers(Header(), [], 0.3).markers == []


def test_an_object_has_a_box_an_arrow_and_a_text_with_its_number():
    header = Header(frame_id='lidar')
    header.stamp.sec = 5
    array = object_markers(header, [moving_object(), moving_object(4)], 1.25)
    array = deserialize_message(serialize_message(array), MarkerArray)  # what a field of the wrong type would not pass
    assert [(m.ns, m.id) for m in array.markers] == [(ns, k) for k in (3, 4) for ns in (BOXES, VELOCITY, LABELS)]
    box, arrow, label, other, *_ = array.markers
    assert all(m.header == header and (m.lifetime.sec, m.lifetime.nanosec) == (1, 250_000_000) for m in array.markers)
    assert (box.type, arrow.type, label.type) == (Marker.CUBE, Marker.ARROW, Marker.TEXT_VIEW_FACING)
    assert (box.scale.x, box.scale.y, box.scale.z) == (4, 2, 1.5)
    assert 2 * np.arctan2(box.pose.orientation.z, box.pose.orientation.w) == pytest.approx(0.6)
    tail, head = arrow.points
    assert (head.x - tail.x, head.y - tail.y, head.z - tail.z) == (5, 3, 0)
    assert label.text == '3  5.8 m/s' and label.pose.position.z > box.pose.position.z + 0.75
    assert box.color != other.color, 'neighbours in number differ'


def test_what_is_not_seen_now_is_fainter_and_nothing_is_flat():
    seen, unseen = object_markers(Header(), [moving_object(), moving_object(4, 0.1, (0, 0, 0))], 0.3).markers[::3]
    assert unseen.color.a < seen.color.a and unseen.scale.x > 0 < unseen.scale.z
