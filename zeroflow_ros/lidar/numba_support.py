# SPDX-License-Identifier: Apache-2.0
"""Import the numba kernels where numba is installed; `numba_kernels` is None otherwise."""

try:
    from zeroflow_ros.lidar import numba_kernels  # numpy gives the same results in two to four times the time
except ImportError:
    numba_kernels = None
