# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from training.datasets.ground_truth_objects import GroundTruthObject, actor_objects, box_objects, count_points
from training.datasets.tracked_boxes import TrackedBoxes
from zeroflow_ros import transforms

BOX = {'track_id': 1, 'category': 'Car', 'center': [10, 0, 0], 'size_lwh': [4.0, 2.0, 1.5], 'yaw': 0.0}


def read(folder, *sweeps) -> TrackedBoxes:
    (folder / 'boxes.json').write_text(json.dumps({'sweeps': sweeps}))
    return TrackedBoxes.read(folder / 'boxes.json')


def drive(boxes: TrackedBoxes, ego_speed: float):
    poses = {k: (0.1 * k, transforms.yaw_translation(0, 0.1 * k * ego_speed, 0)) for k in range(len(boxes.sweeps))}
    return box_objects(boxes, poses, {k: [7] * len(sweep) for k, sweep in enumerate(boxes.sweeps)})


@pytest.mark.parametrize(
    'label, places, ego_speed, velocity',
    [
        ('seen once', [10], 5, 0),
        ('stands, seen from a vehicle that drives', [10, 9.5, 9, 8.5, 8], 5, 0),
        ('drives', [10, 10.8, 11.6, 12.4, 13.2], 0, 8),
        ('drives ahead of the vehicle', [10, 10.3, 10.6, 10.9, 11.2], 5, 8),
        ('jitters by 2 cm', [10, 10.82, 11.58, 12.42, 13.18], 0, 8),
    ],
)
def test_velocity_of_a_box_is_over_ground(tmp_path, label, places, ego_speed, velocity):
    boxes = read(tmp_path, *([BOX | {'center': [x, 0, 0]}] for x in places))
    objects = drive(boxes, ego_speed)
    assert len(objects) == len(places)
    for number, x in enumerate(places):
        (found,) = objects[number]
        assert (found.track_id, found.category, found.num_points) == (1, 'Car', 7)
        np.testing.assert_allclose(found.center, [x, 0, 0])
        np.testing.assert_allclose(found.velocity, [velocity, 0, 0], atol=0.25)  # 2 cm over 0.2 s, at the ends
        assert found.speed == pytest.approx(abs(velocity), abs=0.25)


def test_a_box_that_comes_and_goes_has_the_velocity_of_the_sweeps_it_is_in(tmp_path):
    boxes = read(tmp_path, [], [BOX], [BOX | {'center': [10.5, 0, 0]}], [], [])
    objects = drive(boxes, 0.0)
    assert [len(objects[k]) for k in range(5)] == [0, 1, 1, 0, 0]
    assert objects[1][0].speed == objects[2][0].speed == pytest.approx(5)


def test_points_in_a_box_are_counted():
    points = np.array([[10, 0, 0], [12.05, 1.05, 0.7], [12.2, 0, 0], [10, 0, 0.8], [np.nan] * 3], np.float32)
    assert count_points(points, []) == []
    assert count_points(points, [BOX, BOX | {'center': [12, 0, 0], 'yaw': np.pi / 2}]) == [2, 2]


def test_an_outline_holds_what_is_above_and_below():
    car = GroundTruthObject(1, 'Car', np.array([10.0, 0, 0]), np.array([4.0, 2, 1.5]), np.pi / 2, np.zeros(3), 9)
    points = np.array([[10, 0, 9], [10, 1.9, 0], [11.9, 0, 0], [11.2, 0, 0], [np.nan] * 3])
    assert car.holds(np.zeros((0, 3)), 0.5).tolist() == []
    assert car.holds(points, 0.5).tolist() == [True, True, False, True, False]


def test_actors_of_a_clip_move_as_their_points_do():
    pytest.importorskip('embreex', reason='needs embreex')
    from training.simulation.clips import simulate_clip

    clip = simulate_clip(3, num_sweeps=3)
    flow = clip.flow(1, 0) * -clip.lidar.rate_hz
    objects = actor_objects(clip)
    assert len(objects) == 3 and any(each.speed > 0.5 for each in objects[1])
    sweep = clip.sweeps[1]
    for each in objects[1]:
        on_it = sweep.instance == each.track_id
        assert np.count_nonzero(on_it) == each.num_points
        assert each.holds(sweep.points[on_it], 0.3).all()  # m: an actor tilts with the road, its outline does not
        np.testing.assert_allclose(each.velocity, flow[on_it].mean(axis=0), atol=0.6)  # one that turns: of its middle
