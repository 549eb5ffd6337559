# SPDX-License-Identifier: Apache-2.0
"""Configurations of trainings on stereo pairs, and which student decides the kind."""

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from training.learning.stereo_train_config import StereoTrainConfig, load_train_config  # noqa: E402
from training.learning.train_config import TrainConfig  # noqa: E402
from zeroflow_ros.errors import ConfigError  # noqa: E402


@pytest.mark.parametrize(
    'text, kind', [('', TrainConfig), ('student: deflow', TrainConfig), ('student: stereo_lite', StereoTrainConfig)]
)
def test_the_student_decides_the_kind(tmp_path, text, kind):
    (tmp_path / 'c.yaml').write_text(text)
    assert type(load_train_config(tmp_path / 'c.yaml')) is kind
    assert load_train_config(None) == TrainConfig()


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'loss': 'epe'}, 'loss should be one of'),
        ({'student': 'deflow'}, 'student should be one of dwarf, stereo_lite'),
        ({'student': 'dwarf'}, 'The loss laplace is not for dwarf'),
        ({'loss': 'dwarf_masked'}, 'The loss dwarf_masked is not for stereo_lite'),
        ({'precision': 'bf16-mixed'}, 'precision should be one of 32-true'),
        ({'batch': 0}, 'should be >= 1'),
        ({'held_out': 1.0}, 'held_out'),
        ({'crop_width': 1000}, 'A crop of 1000 x 160 px does not fit into 640 x 192'),
    ],
)
def test_wrong_values_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        StereoTrainConfig(**changes)


def test_learning_rate_is_halved_at_steps_or_decays():
    config = StereoTrainConfig(lr=8.0, lr_steps=2, lr_halvings=(10.0, 20.0))
    assert [config.learning_rate(step) for step in (0, 1, 9, 10, 19, 20)] == [4, 8, 8, 4, 4, 2]
    config = StereoTrainConfig(lr=8.0, lr_steps=0, steps=100)
    assert config.learning_rate(0) == 8 and config.learning_rate(50) == pytest.approx(4)


def test_epochs_set_the_steps():
    assert StereoTrainConfig(epochs=3, batch=8).for_pairs(20).steps == 8
