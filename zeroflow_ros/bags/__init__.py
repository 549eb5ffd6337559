# SPDX-License-Identifier: Apache-2.0
"""Read rosbag1 and rosbag2 recordings and write rosbag2 mcap, without ROS."""
