# SPDX-License-Identifier: Apache-2.0
"""A tiny Argoverse 2 log in the official layout, written by an independent writer."""

import json

import numpy as np
import pyarrow as pa
from pyarrow import feather

STAMPS = [1_000, 100_001_000, 200_001_000]  # ns
POINTS = np.array([[5, 0, -0.3], [5, 0, 0.05], [5, 0, 0.25], [5, 0, -9], [500, 0, -0.3], [-15, 0, -0.3]], np.float32)


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(columns), path)


def write_log(log, points=POINTS):
    """Write a log of three sweeps; the vehicle drives 1 m along x of the city between them."""
    for stamp in STAMPS:
        columns = dict(zip('xyz', points.astype(np.float16).T, strict=True))
        columns['offset_ns'] = np.arange(len(points), dtype=np.int32) * 1_000_000
        write(log / 'sensors' / 'lidar' / f'{stamp}.feather', **columns)
    still, stamps = np.zeros(4), [STAMPS[2], 50_000_000, STAMPS[0], STAMPS[1]]  # in no order, and one in between
    write(log / 'city_SE3_egovehicle.feather', timestamp_ns=np.array(stamps),
          qw=still + 1, qx=still, qy=still, qz=still,
          tx_m=np.array([102, 100.5, 100, 101]), ty_m=still + 100, tz_m=still + 10.3)  # fmt: skip
    heights = np.full((40, 80), 10.0, np.float16)  # rows are y, columns x; 2 pixels to the metre from (90, 90)
    heights[:, :10] = np.nan  # x < 95
    (log / 'map').mkdir()
    np.save(log / 'map' / 'log_ground_height_surface____PIT.npy', heights)
    placement = {'R': [1, 0, 0, 1], 't': [-90, -90], 's': 2}
    (log / 'map' / 'log___img_Sim2_city.json').write_text(json.dumps(placement))
    return log


def annotate(log, rows):
    """Write boxes of 4 x 2 x 2 m: (sweep, track, category, x, y)."""
    sweeps, tracks, categories, x, y = zip(*rows, strict=True)
    zero = np.zeros(len(rows))
    write(log / 'annotations.feather', timestamp_ns=np.array(STAMPS)[list(sweeps)], track_uuid=list(tracks),
          category=list(categories), length_m=zero + 4, width_m=zero + 2, height_m=zero + 2, qw=zero + 1, qx=zero,
          qy=zero, qz=zero, tx_m=np.array(x, float), ty_m=np.array(y, float), tz_m=zero)  # fmt: skip
