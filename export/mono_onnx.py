# SPDX-License-Identifier: Apache-2.0
"""Export of students for one camera as ONNX graphs whose state goes in and out."""

import logging
import warnings
from pathlib import Path

from export.model_file import write_model
from export.onnx_graph import OPSET
from zeroflow_ros.engines.mono_card import METADATA_KEY, MonoCard
from zeroflow_ros.errors import ModelError

NUM_IMAGES = 3  # that a student sees at once; the middle one gets the flow
STRIDES = (32, 16, 8, 4)  # of the features that are kept of the last two images
_FAR = 0.98  # of the farthest depth that a student gives
_NOMINAL_DT = 0.1  # s, of the cameras of the trainings
_SCALE = (
    'depth is fx * 0.54 m / disparity, where a student of stereo pairs with this baseline saw the disparity: metres '
    'hold for a camera with a field of view as in the training'
)


def export_mono_onnx(
    checkpoint,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    sigma: tuple[float, float] | None = None,
    name: str = '',
) -> MonoCard:
    """Write one model file atomically and return its card.

    checkpoint: training.learning.checkpoint.Checkpoint of a student of one camera. size: width and height of the
    network's images [px]; None: those of its training. sigma: standard deviations of depth, relative, and of motion [m
    per m of depth]; None: those of the checkpoint.
    Raises: ConfigError for a size that the student cannot take; ModelError when nothing says how large the errors are.
    """
    import onnx
    import torch

    student = checkpoint.build()
    width, height = checkpoint.image_size(student, size)
    sigma = sigma or checkpoint.provenance.get('sigma_relative')
    if not sigma:
        raise ModelError(
            f'A {student.name} does not estimate its errors. Give their standard deviations, as training.evaluate '
            'measures them, with --sigma-relative DEPTH MOTION.'
        )
    network = mono_network(student)
    state = network.first_state(height, width)
    arguments = {
        'image': torch.zeros(1, height, width, 3, dtype=torch.uint8),
        'intrinsics': torch.tensor([[[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]]]),
        **state,
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        logging.getLogger('torch.onnx').setLevel(logging.ERROR)
        program = torch.onnx.export(
            network, tuple(arguments.values()), input_names=list(arguments),
            output_names=['scene_flow', *(f'next_{name}' for name in state)], dynamo=True, opset_version=OPSET,
            external_data=False, verbose=False,
        )  # fmt: skip
    proto = program.model_proto
    inputs, outputs = (
        {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
        for values in (proto.graph.input, proto.graph.output)
    )
    about = checkpoint.provenance  # of a training here, it has its configuration; others resize as multi-mono-sf does
    card = MonoCard(
        name=name or path.stem, student=checkpoint.student, precision='float32', width=width, height=height,
        resize='scale' if about.get('config') else 'corners', refers_to='previous', num_images=NUM_IMAGES,
        far=_FAR * network.farthest,
        scale=str(about.get('scale', _SCALE)), splat=network.splat, nominal_dt=float(about.get('dt', _NOMINAL_DT)),
        estimates_sigma=False, sigma=tuple(map(float, sigma)),
        state={name: inputs[name] for name in state}, inputs={name: inputs[name] for name in ('image', 'intrinsics')},
        outputs={'scene_flow': outputs['scene_flow']},
        training={key: value for key, value in about.items() if key not in ('licence', 'sigma_relative', 'scale')},
        licence=about['licence'],
        versions={'torch': str(torch.__version__), 'onnx': onnx.__version__, 'opset': OPSET},
    )  # fmt: skip
    return write_model(proto, card, path, key=METADATA_KEY)


def mono_network(student):
    """Return what a model file computes as a torch module.

    Called with the newest image (1, H, W, 3) uint8, its intrinsics (1, 3, 3) [px] and the tensors of the state, in the
    order of `first_state`; returns depth and motion of the image before, (1, 4, H, W) [m], and the next state. The
    state begins with the number of images, then the features of the last two images: each image is encoded once.
    """
    import torch

    from training.students.mono_geometry import FARTHEST, depth_of
    from training.students.mono_lite import MonoLiteState
    from training.students.mono_state import MonoState
    from training.students.multi_mono_sf import MultiMonoSf

    class MonoNetwork(torch.nn.Module):
        farthest = FARTHEST

        def __init__(self):
            super().__init__()
            self.student = student
            is_published = isinstance(student, MultiMonoSf) and not student.corrected
            self.has_splat = isinstance(student, MultiMonoSf)
            self.splat = 'none' if not self.has_splat else 'published' if is_published else 'corrected'

        def first_state(self, height: int, width: int) -> dict:
            """Return the zeros that a sequence of images (1, height, width, 3) begins with, by name."""
            with torch.no_grad():
                maps = student.features(torch.zeros(1, 3, height, width))[: len(STRIDES)]
                camera = torch.eye(3)[None] * width
                full = self._features(maps, height, width)
                _, state = student.step(full, full, full, camera)
            names = ['num_images', *(f'{age}_{stride}' for age in ('older', 'newer') for stride in STRIDES)]
            tensors = [torch.zeros(1), *maps, *maps, *self._flat(state)]
            names += self._names(state)
            return {name: torch.zeros_like(tensor) for name, tensor in zip(names, tensors, strict=True)}

        def forward(self, image, intrinsics, num_images, *state):
            pixels = image.to(torch.float32).permute(0, 3, 1, 2) * (1 / 255)  # TensorRT transposes no uint8
            height, width = pixels.shape[2:]
            newest = self.student.features(pixels)[: len(STRIDES)]
            older, newer, rest = (
                state[: len(STRIDES)],
                state[len(STRIDES) : 2 * len(STRIDES)],
                state[2 * len(STRIDES) :],
            )
            # Before the third image, the network computes for nothing, as for a camera that stands.
            newer = [torch.where(num_images > 0, part, new) for part, new in zip(newer, newest, strict=True)]
            older = [torch.where(num_images > 1, part, new) for part, new in zip(older, newer, strict=True)]
            continues = (num_images >= NUM_IMAGES).reshape(1, 1, 1, 1)
            features = [self._features(maps, height, width) for maps in (older, newer, newest)]
            if self.has_splat:
                flow, after = self.student.step(*features, intrinsics, self._state(rest), continues=continues)
            else:
                before = MonoLiteState(*(torch.where(continues, part, 0.0) for part in rest))  # zeros begin anew
                flow, after = self.student.step(*features, intrinsics, before)
            scene = torch.cat([depth_of(flow.disparity[0], intrinsics), flow.forward[0]], dim=1)
            count = torch.clamp(num_images + 1, max=NUM_IMAGES)
            return scene, count, *newer, *newest, *self._flat(after)

        def _features(self, maps, height, width):
            """Return maps as the student takes them: multi_mono_sf also looks at the shape of those at 1/2."""
            if not self.has_splat:
                return tuple(maps)
            return (*maps, torch.zeros(1, 1, height // 2, width // 2))

        def _names(self, state) -> list[str]:
            if not self.has_splat:
                return list(state._fields)
            kinds = ['cell'] if self.splat == 'published' else ['cell', 'backward_cell']
            kinds = ['forward', 'backward', *kinds]
            return [f'{kind}_{stride}' for kind in kinds for stride in STRIDES[1:]] + ['flow', 'disparity']

        def _flat(self, state) -> list:
            """Return what the next step needs of a state: nothing of 1/32, and a shared cell once."""
            if not self.has_splat:
                return list(state)
            cells = zip(*state.cells, strict=True)
            kept = [next(cells)] if self.splat == 'published' else list(cells)
            return [*state.forward_hidden[1:], *state.backward_hidden[1:], *(one for kind in kept for one in kind),
                    state.flow, state.disparity]  # fmt: skip

        def _state(self, tensors):
            num = len(STRIDES) - 1
            forward, backward, *cells = (tensors[k : k + num] for k in range(0, len(tensors) - 2, num))
            cells = cells * 2 if self.splat == 'published' else cells
            unused = tensors[0][:, :, :1, :1]  # 1/32 has no memory
            return MonoState((unused, *forward), (unused, *backward), tuple(zip(*cells, strict=True)), *tensors[-2:])

    return MonoNetwork().eval()
