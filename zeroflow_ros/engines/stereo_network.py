# SPDX-License-Identifier: Apache-2.0
"""Scene flow of stereo pairs by a model file, with ONNX Runtime on the CPU."""

import math
from pathlib import Path

import numpy as np

from zeroflow_ros.camera.static_scene import UNKNOWN_MOTION, pixel_motion
from zeroflow_ros.camera.stereo import StereoFlow, StereoFrame
from zeroflow_ros.engines.model_card import verify_checksum
from zeroflow_ros.engines.onnxruntime_engine import open_session
from zeroflow_ros.engines.stereo_card import METADATA_KEY, REMEDY, StereoCard
from zeroflow_ros.errors import ModelError

_TYPES = {'images': 'tensor(uint8)', 'ego_motion': 'tensor(float)', 'scene_flow': 'tensor(float)'}
_LAPLACE = math.sqrt(2)  # standard deviation of a Laplace distribution, the one that is learned, of scale 1
_MIN_DISPARITY = 0.5  # px of the camera; farther points are at an unknown depth


class NetworkStereoFlow:
    """A StereoEstimator that runs a model file, a student for stereo cameras.

    It gives each pixel a value. Those that leave the other image, and those as good as infinitely far away, are not
    marked as measured.
    """

    def __init__(self, path: Path, *, num_threads: int = 2):
        """Open the model file.

        Raises: ModelError when it is not an ONNX file, has no valid stereo card, or does not match its card.
        """
        self._session, metadata, self.runs_on = open_session(path, num_threads)
        if METADATA_KEY not in metadata:
            raise ModelError(f'{path} is an ONNX file without the card of a model for stereo cameras. {REMEDY}')
        self.card = StereoCard.from_json(metadata[METADATA_KEY])
        verify_checksum(path, self.card)
        self.name = self.card.name
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = {t.name: list(t.shape) for t in inputs}, {t.name: list(t.shape) for t in outputs}
        if found != self.card.tensors():
            raise ModelError(f'{path} has the tensors {found}, its card says {self.card.tensors()}. {REMEDY}')
        if wrong := [f'{t.name} of {t.type}' for t in (*inputs, *outputs) if t.type != _TYPES[t.name]]:
            raise ModelError(f'{path} has {", ".join(wrong)}, expected {_TYPES}. {REMEDY}')

    def estimate(self, reference: StereoFrame, other: StereoFrame,
                 other_T_reference: np.ndarray | None = None) -> StereoFlow:  # fmt: skip
        """Return the scene flow of the pixels of `reference` to the time of `other`; see StereoEstimator.

        Raises: ModelError for images that the model cannot take, and values that are not finite.
        """
        network, camera = self.card.images, reference.camera
        given = {'images': np.concatenate([network.images(reference), network.images(other)])}
        if self.card.uses_ego_motion:
            known = other_T_reference is not None
            motion = pixel_motion(network.camera(camera), other_T_reference) if known else UNKNOWN_MOTION
            given['ego_motion'] = motion[None]
        [values] = self._session.run(['scene_flow'], given)
        values = network.to_camera(np.ascontiguousarray(values[0].transpose(1, 2, 0)), camera)  # (H, W, 4 or 7)
        if not np.isfinite(values).all():
            raise ModelError(f'The model {self.name} gave values that are not finite. Train or export it again.')
        x, y = network.pixel_size(camera)
        far = np.float32(camera.disparity_at_infinity)
        parallax, flow = values[..., :2] * np.float32(x), values[..., 2:4] * np.float32([x, y])
        sigmas = np.float32([x, x, max(x, y)]) * self._sigmas(values)
        u, v = np.arange(camera.width) + flow[..., 0], np.arange(camera.height)[:, None] + flow[..., 1]
        inside = (u >= 0) & (u <= camera.width - 1) & (v >= 0) & (v <= camera.height - 1)
        return StereoFlow(
            parallax[..., 0] + far, parallax[..., 1] + far, flow, *(sigmas[..., k] for k in range(3)),
            inside & (parallax > _MIN_DISPARITY).all(axis=2), other_T_reference,
        )  # fmt: skip

    def _sigmas(self, values: np.ndarray) -> np.ndarray:
        """Return the three standard deviations of each pixel, (H, W, 3) [px of the network's images]."""
        if self.card.estimates_sigma:
            return np.exp(values[..., 4:]) * np.float32(_LAPLACE)
        return np.broadcast_to(np.float32(self.card.sigma_px), (*values.shape[:2], 3))
