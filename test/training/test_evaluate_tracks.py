# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from training.evaluate_tracks import DYNAMIC_MIN_SPEED, main, open_drives, read_options
from zeroflow_ros.errors import ConfigError, DataError
from zeroflow_ros.objects.tracker import TrackerOptions


def test_settings_become_options():
    assert read_options([]) == TrackerOptions()
    assert read_options(['min_speed=1', 'confirm_hits=3']) == TrackerOptions(min_speed=1.0, confirm_hits=3)


@pytest.mark.parametrize(
    'setting, said',
    [('min_sped=1', 'Known names: min_speed'), ('min_speed=x', 'NAME=VALUE'), ('confirm_hits=1', 'must be from 2')],
)
def test_a_setting_that_is_none_is_refused(setting, said):
    with pytest.raises(ConfigError, match=said):
        read_options([setting])


@pytest.mark.parametrize('spec', ['', 'simulation:', 'simulation:a', 'bag:path', 'av2:LOG'])
def test_what_has_no_known_objects_is_refused(spec):
    with pytest.raises(DataError, match=r'simulation:FIRST-LAST or bag:BAG\+BOXES'):
        open_drives(spec, None, num_sweeps=5)


def test_the_speed_is_that_of_the_node():
    parameters = pytest.importorskip('zeroflow_ros.ros.parameters', reason='needs rclpy')
    assert parameters.Parameters().dynamic_min_speed == DYNAMIC_MIN_SPEED


def test_program_scores_a_simulated_drive(tmp_path, capsys):
    pytest.importorskip('embreex', reason='needs embreex')
    out = tmp_path / 'objects.json'
    arguments = ['--dataset', 'simulation:1000003', '--sweeps', '8', '--sensor', 'hdl32', '--json', str(out)]
    assert main([*arguments, '--set', 'confirm_hits=3']) == 0
    (report,) = json.loads(out.read_text()).values()
    assert list(report) == ['clusters', 'tracker', 'whole']
    assert all(each['sweeps'] == 7 and each['due'] == report['tracker']['due'] > 20 for each in report.values())
    assert report['clusters']['recall'] > report['tracker']['recall'] > 0.1
    assert report['tracker']['false_per_sweep'] < report['clusters']['false_per_sweep'] / 3
    text = capsys.readouterr().out
    assert 'Pedestrian (' in text and 'settled' in text and f'Written to {out}' in text


def test_program_scores_a_recorded_drive(shared_data, capsys):
    """What the live test gets on a machine with nothing else to do."""
    bags = shared_data / 'bags'
    assert main(['--dataset', f'bag:{bags / "kitti_0005_a"}+{bags / "kitti_0005_a_boxes.json"}']) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('tracker'))
    recall, settled, false, _, velocity_error = (float(number) for number in line.split()[1:6])
    assert recall > 0.7 and settled > 0.85 and false < 1.5 and velocity_error < 1.0


def test_program_draws_the_last_sweep(tmp_path):
    pytest.importorskip('embreex', reason='needs embreex')
    image = pytest.importorskip('matplotlib.image', reason='needs matplotlib')
    picture = tmp_path / 'objects.png'
    arguments = ['--dataset', 'simulation:207', '--sweeps', '6', '--sensor', 'hdl32', '--picture', str(picture)]
    assert main(arguments) == 0
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape == (1000, 1600, 3)
    white = (pixels[120:] > 0.98).all(axis=2)
    assert np.count_nonzero(white) > 500, 'boxes and arrows'


def test_bad_input_is_one_line(capsys):
    assert main(['--dataset', 'bag:nowhere+nothing.json']) == 1
    assert 'nothing.json should be a JSON file of tracked boxes' in capsys.readouterr().err
