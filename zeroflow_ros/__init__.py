# SPDX-License-Identifier: Apache-2.0
"""Real-time LiDAR scene flow on the vehicle: numpy, one engine, and ROS 2 at the edges."""

__version__ = '0.1.0'
