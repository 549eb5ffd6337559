# SPDX-License-Identifier: Apache-2.0
"""Simulated LiDAR clips of street scenes: shapes, sensors, streets."""
