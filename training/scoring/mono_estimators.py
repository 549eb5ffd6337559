# SPDX-License-Identifier: Apache-2.0
"""Scene flow from the images of one camera, by a student in torch or a model file."""

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.datasets import split_options
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow
from zeroflow_ros.errors import ConfigError, DataError, ModelError

_SIGMA = 1.0  # px: of disparities and flow; the students do not estimate their errors
_FEWEST_IMAGES = 3
_BASELINE = 0.54  # m, that the students assume, see training.students.mono_geometry
_FIRST_STAMP_NS = 1_000_000_000  # any but 0


@dataclass(frozen=True)
class MonoOptions:
    """Options after the question mark of a checkpoint or a model file of one camera.

    images: of a drive that the student sees for one pair: those before the reference, the reference, the next; the
    state starts with the first. size: WIDTHxHEIGHT of the student's images [px], '' for those of its training. flip:
    average with the result of the flipped images, as for the published figures: twice the time; size and flip are for
    checkpoints. baseline: distance of the eyes of the stereo camera whose disparities the student learned [m], from
    which its metres follow. 0.54: the metres of the student are metres, as trainings of this project make them. 0: that
    of the camera of the data set, so that the disparities of the student are those of the data set, as published.
    Negative: 0 for checkpoints of the authors of multi_mono_sf, else 0.54.
    """

    images: int = 5
    size: str = ''
    flip: bool = False
    baseline: float = -1.0


class MonoStudentFlow:
    """Estimates the scene flow of an image of one camera from the images before and the next one.

    num_cameras: 1, by which it is told from stereo estimators. num_earlier: images before the reference that it takes
    at most. needs_earlier: whether one of these must be there; self_mono_sf makes no use of it.
    Raises: ConfigError for options that are not possible.
    """

    num_cameras = 1

    def __init__(self, name: str, student, options: MonoOptions = MonoOptions(), *,
                 size: tuple[int, int] | None = None, is_published: bool = False):  # fmt: skip
        """student: a network of MONO_STUDENTS. size: width and height of its images, where the options have none [px].

        is_published: whether it is a network of the authors of multi_mono_sf: they resize images without antialiasing,
        corner pixels on corner pixels.
        """
        from training.scoring.stereo_checkpoint import parse_size  # imports torch

        self.name, self.student, self.is_published = name, student.eval(), is_published
        self.needs_earlier = getattr(student, 'num_images', _FEWEST_IMAGES) >= _FEWEST_IMAGES
        self.num_earlier = _num_earlier(name, options) if self.needs_earlier else 1
        self.options = replace(options, baseline=_baseline(options, is_published))
        self.size = parse_size(options.size, student) if options.size else size or student.default_size

    def estimate_images(self, images: list[np.ndarray], camera: StereoCamera) -> StereoFlow:
        """Return the scene flow of the last but one of some images to the last one.

        images: 3 or more of a drive in the order of time, (H, W, 3) RGB or (H, W) grey uint8. camera: of all of them.
        Its baseline is that of the disparities in the result.
        Raises: DataError for fewer images.
        """
        if len(images) < _FEWEST_IMAGES:
            raise DataError(f'{self.name} needs {_FEWEST_IMAGES} images or more, got {len(images)}.')
        return _last_flow(self.start(camera), images)

    def start(self, camera: StereoCamera) -> 'MonoStream':
        """Return a stream of images of a camera, without a state."""
        return MonoStream(self, camera)


class MonoStream:
    """Images of one camera, one after the other; the state is carried from each to the next."""

    def __init__(self, estimator: MonoStudentFlow, camera: StereoCamera):
        import torch

        from training.students.mono_geometry import flipped_intrinsics

        self._student, self._camera, self._options = estimator.student, camera, estimator.options
        self._images = _ImagesOf(estimator.size, camera, estimator.is_published)
        intrinsics = torch.from_numpy(self._images.intrinsics.astype(np.float32))[None]
        self._passes = [_Pass(self._student, intrinsics)]
        if self._options.flip:
            self._passes.append(_Pass(self._student, flipped_intrinsics(intrinsics, estimator.size[0])))

    def push(self, image: np.ndarray):
        """Add an image (H, W, 3) RGB or (H, W) grey, uint8; return what the one before it shows.

        The result is a MonoFlow of the student's size, for `scene_flow`; None for the first two images.
        Raises: DataError for an image of another size than the camera's.
        """
        import torch

        from training.students.flip_averaging import blended, unflipped

        _check_size(image, self._camera)
        tensor = self._images.tensor(image)
        with torch.inference_mode():
            found = self._passes[0].push(tensor)
            if len(self._passes) == 1:
                return found
            other = self._passes[1].push(tensor.flip(-1))
            return None if found is None else blended(found, unflipped(other))

    def scene_flow(self, found) -> StereoFlow:
        """Return what `push` returned as the scene flow of the pixels of the camera.

        Disparities are those of the baseline of the camera. Pixels that leave the image, and those at the largest depth
        that the student knows, are not marked as measured.
        """
        from training.students.mono_geometry import FARTHEST

        camera, width = self._camera, self._camera.width
        disparity = self._images.at_pixels(found.disparity[0])[..., 0] * np.float32(width)
        motion = self._images.at_pixels(found.forward[0])
        depth = _depth(disparity, camera.fx)
        moved = camera.rays * depth[..., None] + motion  # in metres of the student
        with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
            ahead = moved[..., 2] > 0
            z = np.where(ahead, moved[..., 2], np.nan)
            pixels = moved[..., :2] / z[..., None] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
            other_disparity = np.float32(camera.fx * _BASELINE) / z
        v, u = np.indices(depth.shape, np.float32)
        flow = (pixels - np.stack([u, v], axis=-1)).astype(np.float32)
        inside = (pixels >= 0).all(-1) & (pixels[..., 0] <= width - 1) & (pixels[..., 1] <= camera.height - 1)
        share = camera.baseline / (self._options.baseline or camera.baseline)
        sigma = np.full(depth.shape, _SIGMA, np.float32)
        far = np.float32(camera.disparity_at_infinity)
        return StereoFlow(
            (disparity * share + far).astype(np.float32), (other_disparity * share + far).astype(np.float32), flow,
            sigma, sigma, sigma, inside & ahead & (depth < FARTHEST),
        )  # fmt: skip


class _Pass:
    """One run of a student over images: features of the last two, and the state."""

    def __init__(self, student, intrinsics):
        self._student, self._intrinsics = student, intrinsics
        self._features, self._state = deque(maxlen=3), None

    def push(self, image):
        self._features.append(self._student.features(image))
        if len(self._features) < _FEWEST_IMAGES:
            return None
        flow, self._state = self._student.step(*self._features, self._intrinsics, self._state)
        return flow


class _ImagesOf:
    """Images of a camera in the size of a student, and maps of that size in the size of the camera."""

    def __init__(self, size: tuple[int, int], camera: StereoCamera, is_published: bool):
        self._size, self._camera, self._is_published = size, camera, is_published
        width, height = size
        if self._is_published:
            x, y = width / camera.width, height / camera.height
            self.intrinsics = np.array(
                [[camera.fx * x, 0, camera.cx * x], [0, camera.fy * y, camera.cy * y], [0, 0, 1]]
            )
        else:
            scaled = camera.scaled(width, height)
            self.intrinsics = np.array([[scaled.fx, 0, scaled.cx], [0, scaled.fy, scaled.cy], [0, 0, 1]])

    def tensor(self, image: np.ndarray):
        """Return an image (H, W, 3) or (H, W) uint8 as (1, 3, h, w) float32 in [0, 1]."""
        import torch

        from training.students.mono_geometry import resize

        width, height = self._size
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=-1)
        if not self._is_published:
            cv2 = load_opencv()
            shrinks = width * height < image.shape[0] * image.shape[1]
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        return resize(tensor, height, width) if self._is_published else tensor

    def at_pixels(self, values) -> np.ndarray:
        """Return maps (1, C, h, w) as (H, W, C) float32 at the pixels of the camera."""
        from training.students.mono_geometry import resize

        if self._is_published:
            return resize(values, self._camera.height, self._camera.width)[0].permute(1, 2, 0).numpy()
        cv2 = load_opencv()
        size = (self._camera.width, self._camera.height)
        maps = [cv2.resize(part.numpy(), size, interpolation=cv2.INTER_LINEAR) for part in values[0]]
        return np.stack(maps, axis=-1)


def _depth(disparity: np.ndarray, fx: float) -> np.ndarray:
    """Return the depth of disparities [px] as the students mean it, float32 [m]."""
    from training.students.mono_geometry import FARTHEST, NEAREST

    return np.clip(fx * _BASELINE / (disparity + 1e-4), NEAREST, FARTHEST).astype(np.float32)


def checkpoint_estimator(spec: str) -> MonoStudentFlow:
    """Return the estimator of CHECKPOINT or CHECKPOINT?flip=true&images=5: a checkpoint of a student of one camera.

    Raises: ModelError when it cannot be read or is of another student, DataError and ConfigError for its options.
    """
    from training.learning.checkpoint import load_checkpoint
    from training.students import MONO_STUDENTS, SCORED_STUDENTS

    path, options = split_options(spec, MonoOptions)
    checkpoint = load_checkpoint(Path(path))
    students = MONO_STUDENTS | SCORED_STUDENTS
    if checkpoint.student not in students:
        raise ModelError(
            f'{path} is a checkpoint of {checkpoint.student}. Images are scored with checkpoints of '
            f'{", ".join(students)}, and with model files: export it by python3 -m export.to_onnx.'
        )
    student, config = checkpoint.build(), checkpoint.provenance.get('config') or {}
    size = (config['width'], config['height']) if {'width', 'height'} <= config.keys() else None
    return MonoStudentFlow(spec, student, options, size=size, is_published=not config)


class MonoModelFlow:
    """Estimates the scene flow of an image of one camera by a model file, with ONNX Runtime.

    num_cameras, num_earlier, needs_earlier: as `MonoStudentFlow` has them.
    Raises: ModelError when the file cannot be used, ConfigError for options that are not possible.
    """

    num_cameras = 1
    needs_earlier = True

    def __init__(self, spec: str):
        """spec: MODEL.onnx or MODEL.onnx?images=5."""
        from zeroflow_ros.engines.mono_network import open_mono_estimator

        path, options = split_options(spec, MonoOptions)
        self.name, self.num_earlier = spec, _num_earlier(spec, options)
        if options.size or options.flip:
            raise ConfigError(f'size and flip are for checkpoints; {path} is a model file. Export it with --size.')
        self.baseline = _baseline(options, False)
        self.network = open_mono_estimator(path)
        if self.network.output_on != 'previous':
            raise ModelError(
                f'{path} gives the motion of the {self.network.output_on} image back in time, and data sets have the '
                'truth of the motion until the next image. Score it on the vehicle.'
            )

    def estimate_images(self, images: list[np.ndarray], camera: StereoCamera) -> StereoFlow:
        """See `MonoStudentFlow.estimate_images`."""
        if len(images) < _FEWEST_IMAGES:
            raise DataError(f'{self.name} needs {_FEWEST_IMAGES} images or more, got {len(images)}.')
        return _last_flow(self.start(camera), images)

    def start(self, camera: StereoCamera) -> 'MonoModelStream':
        """Return a stream of images of a camera; the model starts anew."""
        self.network.reset()
        return MonoModelStream(self, camera)


class MonoModelStream:
    """Images of one camera for a model file, as `MonoStream`."""

    def __init__(self, estimator: MonoModelFlow, camera: StereoCamera):
        self._network, self._camera = estimator.network, camera
        # The baseline that the model assumes: its disparities are those of that camera.
        self._assumed = replace(camera, baseline=_BASELINE, right_cx=None)
        self._share = camera.baseline / (estimator.baseline or camera.baseline)
        self._last, self._stamp_ns = None, _FIRST_STAMP_NS

    def push(self, image: np.ndarray) -> StereoFlow | None:
        """Add an image; return what the one before it shows, for `scene_flow`; None for the first two images."""
        from zeroflow_ros.camera.mono import MonoFrame, NoFlowError

        _check_size(image, self._camera)
        self._stamp_ns += round(self._network.card.nominal_dt * 1e9)
        last, self._last = self._last, MonoFrame(image, self._assumed, self._stamp_ns)
        if last is None:
            return None
        try:
            return self._network.estimate(last, self._last)
        except NoFlowError:
            return None

    def scene_flow(self, found: StereoFlow) -> StereoFlow:
        """Return what `push` returned with the disparities of the camera."""
        share, far = np.float32(self._share), np.float32(self._camera.disparity_at_infinity)
        return replace(
            found, disparity=found.disparity * share + far, other_disparity=found.other_disparity * share + far,
            disparity_sigma=found.disparity_sigma * share, other_disparity_sigma=found.other_disparity_sigma * share,
            other_T_reference=None, motion_sigma=None, full_disparity=None,
        )  # fmt: skip


def _last_flow(stream, images: list[np.ndarray]) -> StereoFlow:
    for image in images[:-1]:
        stream.push(image)
    found = stream.push(images[-1])
    if found is None:
        raise DataError(f'{len(images)} images are too few for a scene flow. Give more: images=N.')
    return stream.scene_flow(found)


def _num_earlier(name: str, options: MonoOptions) -> int:
    if options.images < _FEWEST_IMAGES:
        raise ConfigError(f'images of {name} should be {_FEWEST_IMAGES} or more, got {options.images}.')
    return options.images - 2


def _baseline(options: MonoOptions, is_published: bool) -> float:
    """Return the baseline of the options, 0 for that of the camera."""
    if not np.isfinite(options.baseline):
        raise ConfigError(f'baseline should be a number of metres, got {options.baseline}.')
    return options.baseline if options.baseline >= 0 else 0.0 if is_published else _BASELINE


def _check_size(image: np.ndarray, camera: StereoCamera) -> None:
    if image.shape[:2] != (camera.height, camera.width):
        raise DataError(
            f'An image is {image.shape[1]} x {image.shape[0]} px, its camera {camera.width} x {camera.height}. Give '
            'images of one camera and one size.'
        )
