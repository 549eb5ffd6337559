# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 messages of any layout."""

import struct
from types import SimpleNamespace

SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 8, 9: 8, 10: 8, 11: 1}
XYZ = [('x', 0, 7, 1), ('y', 4, 7, 1), ('z', 8, 7, 1)]
XYZI = [*XYZ, ('intensity', 12, 7, 1)]


def message(data=b'', fields=XYZI, *, height=1, width=None, point_step=16, row_step=None, big=False, frame='velodyne'):
    """A PointCloud2 by duck type."""
    width = len(data) // point_step // max(height, 1) if width is None else width
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=12, nanosec=345), frame_id=frame),
        height=height,
        width=width,
        fields=[SimpleNamespace(name=n, offset=o, datatype=d, count=c) for n, o, d, c in fields],
        is_bigendian=big,
        point_step=point_step,
        row_step=width * point_step if row_step is None else row_step,
        data=data,
        is_dense=True,
    )


ONE = struct.pack('<4f', 1, 2, 3, 4)
