# SPDX-License-Identifier: Apache-2.0
"""Model files for cameras, which some programs of this folder do not take."""

from pathlib import Path

from zeroflow_ros.engines import mono_card, stereo_card
from zeroflow_ros.errors import ConfigError

_CARDS = {'a stereo camera': stereo_card.METADATA_KEY, 'one camera': mono_card.METADATA_KEY}


def refuse_camera_model(path: Path, reason: str) -> None:
    """Raise ConfigError with the reason when a file is a model for cameras; one that is missing is none."""
    content = path.read_bytes() if path.is_file() else b''
    for camera, key in _CARDS.items():
        if key.encode() in content:
            raise ConfigError(f'{path} is a model for {camera}. {reason}')
