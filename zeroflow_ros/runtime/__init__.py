# SPDX-License-Identifier: Apache-2.0
"""Keep a program running: workers, health, input checks, offline runs, subprocesses; without ROS."""
