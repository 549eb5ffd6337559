# SPDX-License-Identifier: Apache-2.0
"""Recordings: read rosbag1 and rosbag2, write rosbag2 mcap, without ROS."""
