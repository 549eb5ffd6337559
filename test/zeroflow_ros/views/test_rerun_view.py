# SPDX-License-Identifier: Apache-2.0
"""What is shown, read back from the file by Rerun's own reader. No viewer is opened: there is no screen here."""

import re
import subprocess
import sys

import numpy as np
import pytest
from processes import ROOT
from tiny_bag import BOX_SPEED, CLOUD_TOPIC, EGO_SPEED, ODOMETRY_TOPIC, PERIOD_NS, START_NS, street, write_bag

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message, encode_message, flow_cloud_message
from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.replay import main
from zeroflow_ros.views import rerun_view
from zeroflow_ros.views.rerun_view import STATIC_COLOR, UNKNOWN_COLOR, WORLD, point_colors

POINTS, ARROWS, EGO, TRAJECTORY = (
    f'{WORLD}/{part}' for part in (rerun_view.POINTS, rerun_view.ARROWS, rerun_view.EGO, rerun_view.TRAJECTORY)
)
NUM_SWEEPS = 5
STAMPS = [START_NS + k * PERIOD_NS for k in range(NUM_SWEEPS)]
NAN = np.nan


@pytest.fixture(scope='module')
def chunks():
    """Return what a recording holds by entity and component: {'/world/ego/points': {'stamp': [..], ..}}."""
    reader = pytest.importorskip('rerun.chunk', reason="needs rerun-sdk (170 MB, not installed by 'make test')")

    def read(path):
        found = {}
        for chunk in reader.RrdReader(path).stream():
            batch = chunk.to_record_batch()
            columns = found.setdefault(chunk.entity_path, {})
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if name == 'stamp' or ':' in name:  # not log_time, the wall clock
                    values = column.cast('int64').to_pylist() if name == 'stamp' else column.to_pylist()
                    columns.setdefault(name.split(':')[-1], []).extend(values)
        return found

    return read


def rgb(packed):
    """Return colours (N, 3) from Rerun's 0xRRGGBBAA."""
    packed = np.asarray(packed, np.uint32)
    return np.stack([packed >> shift & 255 for shift in (24, 16, 8)], axis=1)


def recorded_flow(tmp_path, *, odometry=True):
    """Write a recording as the project does: half of each sweep drives, the ground stands, a few rows are unknown."""
    source = write_bag(tmp_path / 'bag', num_sweeps=NUM_SWEEPS)
    with Bag(source) as bag, BagWriter(tmp_path / 'flow.mcap') as writer:
        for m in bag.messages([CLOUD_TOPIC, *([ODOMETRY_TOPIC] if odometry else [])]):
            if m.topic == ODOMETRY_TOPIC:
                writer.write(m.topic, m.msgtype, m.time_ns, m.cdr)
                continue
            message = decode_message(m.cdr, POINT_CLOUD)
            velocity = np.zeros((4000, 3), np.float32)
            velocity[2000:, 0] = BOX_SPEED
            velocity[::50] = NAN
            velocity[1] = NAN
            cloud = flow_cloud(message, velocity, np.isfinite(velocity[:, 0]) * np.uint8(3))
            cdr = encode_message(flow_cloud_message(message.header, cloud), POINT_CLOUD)
            writer.write('/flow_node/output/flow', POINT_CLOUD, m.time_ns, cdr)
    return tmp_path / 'flow.mcap'


COLORS = [
    ('empty', np.zeros((0, 3)), np.zeros((0, 3))),
    ('unknown', [[NAN, NAN, NAN]], [UNKNOWN_COLOR]),
    ('still', [[0.49, 0, 0]], [STATIC_COLOR]),
    ('infinite is fast', [[np.inf, 0, 0]], [[255, 51, 38]]),
    ('15 m/s and more are red', [[0, -15, 0], [0, 0, 90]], [[255, 51, 38]] * 2),
]


@pytest.mark.parametrize(('velocity', 'expected'), [row[1:] for row in COLORS], ids=[row[0] for row in COLORS])
def test_colour_says_speed(velocity, expected):
    found = point_colors(np.asarray(velocity, np.float32))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(expected).reshape(-1, 3))


def test_a_bag_is_shown_while_it_is_computed(chunks, tmp_path, capsys):
    path = write_bag(tmp_path / 'bag', num_sweeps=NUM_SWEEPS)
    assert main([str(path), '--view-file', str(tmp_path / 'out' / 'flow.rrd')]) == 0
    said = capsys.readouterr().out
    assert 'sweeps 5, flow 4' in said and f'Flow is in {tmp_path}/out/flow.rrd' in said
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['flow.rrd']
    found = chunks(tmp_path / 'out' / 'flow.rrd')
    points, ego, trajectory = (found[f'/{name}'] for name in (POINTS, EGO, TRAJECTORY))
    assert points['stamp'] == ego['stamp'] == trajectory['stamp'] == found[f'/{ARROWS}']['stamp'] == STAMPS[1:]
    for k, positions, colors in zip(range(1, NUM_SWEEPS), points['positions'], points['colors'], strict=True):
        expected = street(k)[:, :3]
        expected = expected[np.isfinite(expected[:, 0])]
        np.testing.assert_array_equal(positions, expected)
        assert len(colors) == len(expected) == 3920
    # The vehicle drives along x; the world is the frame of the first sweep.
    np.testing.assert_allclose([t[0][0] for t in ego['translation']], EGO_SPEED * 0.1 * np.arange(1, 5), atol=1e-5)
    assert [len(strips[0]) for strips in trajectory['strips']] == [1, 2, 3, 4]


def test_flow_on_the_previous_sweep_is_shown_where_that_sweep_was(chunks, tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=NUM_SWEEPS)
    arguments = ['--output-on', 'previous', '--view-file', str(tmp_path / 'flow.rrd'), '--out', str(tmp_path / 'flow')]
    assert main([str(path), *arguments]) == 0
    ego = chunks(tmp_path / 'flow.rrd')[f'/{EGO}']
    assert ego['stamp'] == STAMPS[:-1]
    np.testing.assert_allclose([t[0][0] for t in ego['translation']], EGO_SPEED * 0.1 * np.arange(4), atol=1e-5)
    with Bag(tmp_path / 'flow') as bag:
        assert len(list(bag.messages([bag.point_cloud_topic()]))) == NUM_SWEEPS - 1


def test_recorded_flow_is_shown_as_it_is(chunks, tmp_path, capsys):
    assert main([str(recorded_flow(tmp_path)), '--view-file', str(tmp_path / 'flow.rrd')]) == 0
    assert '5 recorded sweeps with flow are in' in capsys.readouterr().out
    found = chunks(tmp_path / 'flow.rrd')
    points, ego, arrows = (found[f'/{name}'] for name in (POINTS, EGO, ARROWS))
    assert points['stamp'] == ego['stamp'] == STAMPS
    np.testing.assert_allclose([t[0][0] for t in ego['translation']], EGO_SPEED * 0.1 * np.arange(5), atol=1e-5)
    for colors in points['colors']:
        kinds, counts = np.unique(rgb(colors), axis=0, return_counts=True)
        said = {tuple(kind.tolist()): count for kind, count in zip(kinds, counts, strict=True)}
        assert said.pop(UNKNOWN_COLOR) == 1 and said.pop(STATIC_COLOR) == 1959
        assert list(said.values()) == [1960]  # one speed, one colour
    for vectors in arrows['vectors']:
        assert len(vectors) > 50
        np.testing.assert_allclose(vectors, [[BOX_SPEED * 0.5, 0, 0]] * len(vectors), atol=1e-5)


def test_recorded_flow_without_odometry_has_no_way_and_says_so(chunks, tmp_path, capsys):
    path = recorded_flow(tmp_path, odometry=False)
    assert main([str(path), '--view-file', str(tmp_path / 'flow.rrd'), '--start', '0.15', '--duration', '0.2']) == 0
    assert 'trajectory of the vehicle is not shown' in capsys.readouterr().err
    found = chunks(tmp_path / 'flow.rrd')
    assert found[f'/{POINTS}']['stamp'] == STAMPS[2:4]
    assert not {f'/{EGO}', f'/{TRAJECTORY}'} & set(found)


def test_after_an_unknown_motion_another_way_begins(chunks, tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=8)
    with Bag(path) as bag, BagWriter(tmp_path / 'gap') as writer:
        for m in bag.messages([CLOUD_TOPIC, ODOMETRY_TOPIC]):
            if m.topic == ODOMETRY_TOPIC or (m.stamp_ns - START_NS) // PERIOD_NS not in (3, 4, 5):
                writer.write(m.topic, m.msgtype, m.time_ns, m.cdr)
    assert main([str(tmp_path / 'gap'), '--view-file', str(tmp_path / 'flow.rrd')]) == 0
    found = chunks(tmp_path / 'flow.rrd')
    assert found[f'/{EGO}']['stamp'] == [START_NS + k * PERIOD_NS for k in (1, 2, 7)]
    assert [len(strips[0]) for strips in found[f'/{TRAJECTORY}']['strips']] == [1, 2, 1]


def _existing(tmp):
    (tmp / 'flow.rrd').write_bytes(b'mine')
    return [write_bag(tmp / 'bag', num_sweeps=2), '--view-file', tmp / 'flow.rrd']


ERRORS = {
    'no screen': (lambda tmp: [write_bag(tmp / 'bag', num_sweeps=2), '--view'], r'no screen .* --view-file FILE\.rrd'),
    'wrong suffix': (lambda tmp: [write_bag(tmp / 'bag', num_sweeps=2), '--view-file', tmp / 'flow'], r'ends in \.rrd'),
    'exists': (_existing, r'flow\.rrd exists already.*--replace'),
    'no sweep': (
        lambda tmp: [recorded_flow(tmp), '--view-file', tmp / 'flow.rrd', '--start', '9'],
        r'no cloud in this part',
    ),
    'one sweep': (
        lambda tmp: [write_bag(tmp / 'bag', num_sweeps=2), '--view-file', tmp / 'flow.rrd', '--duration', '0.05'],
        r'got flow \(1 first_sweep\)',
    ),
}


@pytest.mark.parametrize('label', ERRORS)
def test_an_error_says_what_to_do_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys, label):
    pytest.importorskip('rerun', reason="needs rerun-sdk (170 MB, not installed by 'make test')")
    for variable in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(variable, raising=False)
    make, expected = ERRORS[label]
    arguments = list(map(str, make(tmp_path)))
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert re.search(expected, said), said
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_without_the_sdk_the_way_to_it_is_named(tmp_path):
    path = write_bag(tmp_path / 'bag', num_sweeps=2)
    program = (
        "import sys; sys.modules['rerun'] = None\n"
        'from zeroflow_ros.replay import main\n'
        f"sys.exit(main(['{path}', '--view-file', '{tmp_path}/flow.rrd']))"
    )
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Run 'pip install rerun-sdk'" in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr
