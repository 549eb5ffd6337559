# SPDX-License-Identifier: Apache-2.0
"""Export of students for stereo cameras as ONNX graphs."""

import logging
import warnings
from pathlib import Path

from export.model_file import write_model
from export.onnx_graph import OPSET, fold_batch_norms
from zeroflow_ros.engines.stereo_card import METADATA_KEY, StereoCard
from zeroflow_ros.errors import ModelError


def export_stereo_onnx(
    checkpoint,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    sigma_px: tuple[float, float, float] | None = None,
    name: str = '',
) -> StereoCard:
    """Write one model file atomically and return its card.

    checkpoint: training.learning.checkpoint.Checkpoint of a camera student. size: width and height of the network's
    images [px]; None: those of its training. sigma_px: standard deviations of disparity, disparity in the other frame
    and flow per axis [px of these images], for students that do not estimate them; None: those of the checkpoint.
    Raises: ConfigError for a size that the student cannot take; ModelError when a student does not estimate its errors,
    and they are not given.
    """
    import onnx
    import torch

    student = checkpoint.build()
    width, height = checkpoint.image_size(student, size)
    sigma_px = sigma_px or checkpoint.provenance.get('sigma_px')
    if student.log_sigma:
        sigma_px = (0.0, 0.0, 0.0)
    elif not sigma_px:
        raise ModelError(
            f'A {student.name} does not estimate its errors. Give their standard deviations, as training.evaluate '
            'measures them, with --sigma-px DISPARITY OTHER_DISPARITY FLOW.'
        )
    uses_ego_motion = student.uses_ego_motion
    fold_batch_norms(student)
    network = stereo_network(student)
    arguments = {'images': torch.zeros(4, height, width, 3, dtype=torch.uint8)}
    if uses_ego_motion:
        arguments['ego_motion'] = torch.eye(3, 4)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        logging.getLogger('torch.onnx').setLevel(logging.ERROR)
        program = torch.onnx.export(
            network, tuple(arguments.values()), input_names=list(arguments), output_names=['scene_flow'], dynamo=True,
            opset_version=OPSET, external_data=False, verbose=False,
        )  # fmt: skip
    proto = program.model_proto
    inputs, outputs = (
        {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
        for values in (proto.graph.input, proto.graph.output)
    )
    card = StereoCard(
        name=name or path.stem, student=checkpoint.student, precision='float32', width=width, height=height,
        resize=student.resize, uses_ego_motion=uses_ego_motion, estimates_sigma=student.log_sigma,
        sigma_px=tuple(map(float, sigma_px)), inputs=inputs, outputs=outputs,
        training={key: value for key, value in checkpoint.provenance.items() if key not in ('licence', 'sigma_px')},
        licence=checkpoint.provenance['licence'],
        versions={'torch': str(torch.__version__), 'onnx': onnx.__version__, 'opset': OPSET},
    )  # fmt: skip
    return write_model(proto, card, path, key=METADATA_KEY)


def stereo_network(student):
    """Return what a model file computes as a torch module: images (4, H, W, 3) uint8 to scene flow (1, 4 or 7, H, W).

    It takes the ego motion (1, 3, 4) as a second argument, if the student uses it.
    """
    import torch

    class StereoNetwork(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = student

        def forward(self, images, ego_motion=None):
            images = images.to(torch.float32).permute(0, 3, 1, 2) * (1 / 255)  # TensorRT transposes no uint8
            found = self.student(images[:1], images[1:2], images[2:3], images[3:], ego_motion)
            return torch.cat([part for part in found[:4] if part is not None], dim=1)

    return StereoNetwork().eval()
