# SPDX-License-Identifier: Apache-2.0
"""What makes the vehicle faster where it is installed, and is None where it is not."""

try:
    from zeroflow_ros.lidar import numba_kernels  # needs numba; numpy gives the same in two to four times the time
except ImportError:
    numba_kernels = None
