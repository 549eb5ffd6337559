# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros.objects.track import Track

SIZE = np.array([4.0, 2.0, 1.5])


def track_of(places, flow, dt=0.1) -> Track:
    """Return a track that was seen at places (S, 2) [m], one sweep after the other, with a flow [m/s]."""
    track = Track(7)
    for k, place in enumerate(places):
        track.add_detection(k * dt, np.append(place, 1.0), SIZE, np.append(flow, 0.2))
    return track


def straight(speed, num_sweeps=6, noise=0.0):
    rng = np.random.default_rng(0)
    return np.column_stack([0.1 * speed * np.arange(num_sweeps), np.zeros(num_sweeps)]) + rng.normal(
        0, noise, (num_sweeps, 2)
    )


@pytest.mark.parametrize(
    'label, places, flow, moved_along_flow',
    [
        ('seen once', straight(8, 1), (8, 0), False),
        ('drives as it claims', straight(8), (8, 0), True),
        ('flow is slow by a third', straight(8), (5.3, 0), True),
        ('claims to drive and stands', straight(0), (3, 0), False),
        ('stands, and its middle shakes', straight(0, noise=0.1), (3, 0), False),
        ('goes elsewhere', straight(3), (0, 3), False),
        ('goes the other way', straight(3), (-3, 0), False),
        ('a pedestrian, half a second', straight(1.4), (1.2, 0), True),
        ('has not gone far yet', straight(1.4, 3), (1.4, 0), False),
        ('jumps much faster than it claims', straight(20), (2, 0), False),
    ],
)
def test_who_moves_has_gone_where_its_flow_says(label, places, flow, moved_along_flow):
    assert track_of(places, flow).moved_along_flow(0.3) == moved_along_flow


def test_line_through_places_gives_place_velocity_and_heading():
    track = track_of(straight(8) + [5, 3], (6, 0))
    np.testing.assert_allclose(track.position, [9, 3], atol=1e-9)
    np.testing.assert_allclose(track.velocity, [0.8 * 8 + 0.2 * 6, 0], atol=1e-9)
    np.testing.assert_allclose(track.position_at(0.7), [9 + 0.2 * 7.6, 3], atol=1e-9)
    assert (track.yaw, track.speed, track.num_hits) == (pytest.approx(0), pytest.approx(8), 6)
    assert (track.z, track.climb, track.last_seen) == (1.0, 0.2, 0.5)


def test_what_is_older_than_a_second_is_forgotten():
    places = np.concatenate([straight(8, 20), straight(8, 20)[-1] + straight(2, 20)])
    assert track_of(places, (2, 0)).velocity[0] == pytest.approx(2, abs=0.01)


def test_size_follows_what_is_seen_slowly():
    track = track_of(straight(8), (8, 0))
    track.add_detection(0.6, np.array([4.8, 0, 1]), SIZE * 2, np.array([8.0, 0, 0]))
    np.testing.assert_allclose(track.size, SIZE * 1.3)
