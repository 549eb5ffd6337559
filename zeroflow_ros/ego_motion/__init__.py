# SPDX-License-Identifier: Apache-2.0
"""Poses over time and registration: how the sensor moved between two sweeps, without ROS."""
