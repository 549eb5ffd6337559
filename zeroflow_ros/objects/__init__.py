# SPDX-License-Identifier: Apache-2.0
"""From dynamic points to tracked objects, without ROS."""
