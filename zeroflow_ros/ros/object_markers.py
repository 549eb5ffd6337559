# SPDX-License-Identifier: Apache-2.0
"""Tracked objects as markers for RViz and Foxglove: a box, an arrow of one second of motion, and a text."""

import colorsys
from collections.abc import Iterable

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from zeroflow_ros.objects.tracker import MovingObject

BOXES, VELOCITY, LABELS = 'boxes', 'velocity', 'labels'  # namespaces; the marker id is the track ID
_SMALLEST = 0.2  # m: a shorter box edge is drawn at this length
_GOLDEN = 0.618  # turns of hue per track ID: consecutive IDs differ in colour
_ARROW = (0.12, 0.3, 0.4)  # m: shaft, head, length of the head
_TEXT_HEIGHT = 0.7  # m
_SEEN_OPACITY, _UNSEEN_OPACITY = 0.5, 0.2  # of a box whose object is seen in this sweep, or not


def object_markers(header: Header, objects: Iterable[MovingObject], lifetime: float) -> MarkerArray:
    """Return three markers for each object, in the frame of `header`.

    lifetime: seconds until a viewer removes them when nothing newer comes.
    """
    seconds = int(lifetime)
    lifespan = Duration(sec=seconds, nanosec=int((lifetime - seconds) * 1e9))
    array = MarkerArray()
    for each in objects:
        rgb = colorsys.hsv_to_rgb(each.track_id * _GOLDEN % 1, 0.75, 1.0)
        for namespace, kind in ((BOXES, Marker.CUBE), (VELOCITY, Marker.ARROW), (LABELS, Marker.TEXT_VIEW_FACING)):
            marker = Marker(header=header, ns=namespace, id=each.track_id, type=kind, action=Marker.ADD)
            marker.lifetime = lifespan
            marker.pose.orientation.w = 1.0
            marker.color = ColorRGBA(r=rgb[0], g=rgb[1], b=rgb[2], a=1.0)
            array.markers.append(marker)
        box, arrow, label = array.markers[-3:]
        x, y, z = each.center.tolist()
        box.pose.position = Point(x=x, y=y, z=z)
        box.pose.orientation.z, box.pose.orientation.w = float(np.sin(each.yaw / 2)), float(np.cos(each.yaw / 2))
        box.scale.x, box.scale.y, box.scale.z = np.maximum(each.size, _SMALLEST).tolist()
        box.color.a = _UNSEEN_OPACITY if each.unseen_s > 0 else _SEEN_OPACITY
        head = (each.center + each.velocity).tolist()
        arrow.points = [Point(x=x, y=y, z=z), Point(x=head[0], y=head[1], z=head[2])]
        arrow.scale.x, arrow.scale.y, arrow.scale.z = _ARROW
        label.pose.position = Point(x=x, y=y, z=z + float(each.size[2]) / 2 + _TEXT_HEIGHT)
        label.scale.z = _TEXT_HEIGHT
        label.text = f'{each.track_id}  {float(np.hypot(*each.velocity[:2])):.1f} m/s'
    return array
