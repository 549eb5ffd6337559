# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a PointCloud2 to sweeps, pillars and the flow of points, without ROS."""
