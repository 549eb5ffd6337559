# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 decoding, sweeps, ground, pillars and point flow, without ROS."""
