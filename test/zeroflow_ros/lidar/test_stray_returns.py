# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.lidar.stray_returns import stray_share


def street(rng, num_points):
    ground = np.c_[rng.uniform(-12, 12, (num_points, 2)), np.full(num_points, -1.8)]
    walls = np.c_[rng.uniform(-12, 12, num_points), rng.choice([-8.0, 8.0], num_points),
                  rng.uniform(-1.8, 3, num_points)]  # fmt: skip
    return np.concatenate([ground, walls]).astype(np.float32)


def with_snow(rng, points, share):
    number = int(share * len(points))
    distance, azimuth = rng.exponential(8, number) + 2, rng.uniform(0, 2 * np.pi, number)
    flakes = np.c_[distance * np.cos(azimuth), distance * np.sin(azimuth), rng.uniform(-1.5, 2, number)]
    return np.concatenate([points, flakes.astype(np.float32)])


def test_snow_is_seen_and_a_clean_street_is_not():
    rng = np.random.default_rng(0)
    clean = street(rng, 30_000)
    assert stray_share(clean) < 0.001
    found = [stray_share(with_snow(rng, clean, share)) for share in (0.01, 0.02, 0.05)]
    assert 0.003 < found[0] < found[1] < found[2] and found[2] > 0.012


@pytest.mark.parametrize('points', [
    np.empty((0, 3), np.float32), np.full((9000, 3), np.nan, np.float32), np.full((9000, 3), 3e38, np.float32),
    np.zeros((9000, 3), np.float32), street(np.random.default_rng(0), 4500),
], ids=['empty', 'NaN', 'huge', 'zeros', 'sparse'])  # fmt: skip
def test_a_cloud_that_cannot_tell(points):
    assert np.isnan(stray_share(points))


@pytest.mark.parametrize('drive', ['kitti_0005_a', 'apollo_columbia_park', 'kitti_braking'])
def test_recorded_drives_are_clean(shared_data, drive):
    from zeroflow_ros.bags.bag import Bag
    from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
    from zeroflow_ros.lidar.point_cloud import decode_cloud

    with Bag(shared_data / 'bags' / drive) as bag:
        points = decode_cloud(decode_message(bag.first(bag.point_cloud_topic()).cdr, POINT_CLOUD)).points
    assert stray_share(points) < 0.001
    assert not stray_share(points[::8]) > 0.012
