# SPDX-License-Identifier: Apache-2.0
"""Images of one camera from a folder or a video file: images:FOLDER, images:VIDEO, images:VIDEO?every=3.

There is no calibration beside them: the focal length is given.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets import split_options
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, DataError

SCHEME = 'images:'
BASELINE = 0.54  # m, that depth of one camera is expressed with
_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp'}
_FEWEST = 3  # images


@dataclass(frozen=True)
class ImageSequenceOptions:
    """Options. every: every n-th image only, of videos of more than about 10 Hz. first: number of the first image."""

    every: int = 1
    first: int = 0


class ImageSequence:
    """The images of a folder in the order of their numbers, or those of a video.

    camera: of all images, with a nominal baseline. interval: seconds between two images; None: not known.
    Raises: DataError when there are fewer than three images or one cannot be read; ConfigError for the options, and
    for a focal length that is not given or not possible.
    """

    def __init__(self, path: str | Path, focal: str, options: ImageSequenceOptions = ImageSequenceOptions()):
        """focal: FX, or FX,FY,CX,CY [px of the images], or the horizontal field of view, as in 60deg."""
        self.path, self.name, self._options = Path(path), Path(path).name, options
        if options.every < 1 or options.first < 0:
            raise ConfigError(
                f'every of images is 1 or more and first 0 or more, got {options.every}, {options.first}.'
            )
        if not self.path.exists():
            raise DataError(f'{self.path} is neither a folder with images nor a video file.')
        self._is_video, self.interval = self.path.is_file(), None
        found = 0
        for _, image in self:
            height, width = image.shape[:2]
            found += 1
            if found == _FEWEST:
                break
        if found < _FEWEST:
            what = 'frames that can be decoded' if self._is_video else f'images ({", ".join(sorted(_SUFFIXES))})'
            raise DataError(
                f'{self.path} has {found} {what} with every={options.every} and first={options.first}, {_FEWEST} or '
                'more are needed.'
            )
        self.camera = parse_focal(focal, width, height, str(self.path))

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and image, (H, W, 3) uint8 RGB; grey images have three equal channels.

        Raises: DataError for an image that cannot be decoded, or of another size than the first.
        """
        size = None
        for name, image in self._frames() if self._is_video else self._files():
            size = size or image.shape[:2]
            if image.shape[:2] != size:
                raise DataError(
                    f'{self.path}: {name} is {image.shape[1]} x {image.shape[0]} px, the first image {size[1]} x '
                    f'{size[0]}. One camera has one size: give each its own folder.'
                )
            yield name, image

    def _files(self) -> Iterator[tuple[str, np.ndarray]]:
        cv2 = load_opencv()
        paths = [path for path in self.path.iterdir() if path.suffix.lower() in _SUFFIXES]
        paths.sort(key=lambda path: [(part.isdigit(), int(part) if part.isdigit() else part) for part in _parts(path)])
        for path in paths[self._options.first :: self._options.every]:
            try:
                content = np.frombuffer(path.read_bytes(), np.uint8)
                image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
            except OSError as error:
                raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
            if image is None:
                raise DataError(f'{path} is no image, or is damaged. Remove it, or write it again.')
            yield path.stem, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _frames(self) -> Iterator[tuple[str, np.ndarray]]:
        cv2 = load_opencv()
        video = cv2.VideoCapture(str(self.path))
        try:
            if not video.isOpened():
                raise DataError(
                    f'{self.path} is no video that OpenCV can read. Give another file, or a folder of images: '
                    'ffmpeg -i VIDEO FOLDER/%06d.png'
                )
            rate = video.get(cv2.CAP_PROP_FPS)
            if math.isfinite(rate) and rate > 0:
                self.interval = self._options.every / rate
            number = 0
            while True:
                found, image = video.read()
                if not found:
                    return
                if number >= self._options.first and (number - self._options.first) % self._options.every == 0:
                    yield f'{number:06d}', cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                number += 1
        finally:
            video.release()


def parse_focal(text: str, width: int, height: int, name: str) -> StereoCamera:
    """Return the camera of images of a size [px] from text, see `ImageSequence`. name: of the images, for messages.

    Raises: ConfigError when the text is empty or makes no camera.
    """
    how = (
        'Give --focal FX [px], the first number of K or P in CameraInfo, or FX,FY,CX,CY, or the horizontal field of '
        'view, as in --focal 60deg.'
    )
    if not text:
        raise ConfigError(f'{name} does not say its focal length, without which there are no metres. {how}')
    centre = (width - 1) / 2, (height - 1) / 2
    try:
        if text.endswith('deg'):
            angle = float(text.removesuffix('deg'))
            if not 1 <= angle <= 170:
                raise ValueError
            fx = fy = width / 2 / math.tan(math.radians(angle) / 2)
            cx, cy = centre
        else:
            numbers = [float(part) for part in text.split(',')]
            fx, fy, cx, cy = (*numbers * 2, *centre) if len(numbers) == 1 else numbers
        if not all(map(math.isfinite, (cx, cy))):
            raise ValueError
        return StereoCamera(width, height, fx, fy, cx, cy, BASELINE)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f'{text!r} is no focal length of images of {width} x {height} px. {how}') from error


def open_images(text: str, focal: str) -> ImageSequence:
    """Open FOLDER or VIDEO, with the options of `ImageSequenceOptions` behind a question mark."""
    path, options = split_options(text, ImageSequenceOptions)
    return ImageSequence(path, focal, options)


def _parts(path: Path) -> list[str]:
    """Return the name of a file as runs of digits and of other characters: 2 comes before 10."""
    return re.findall(r'\d+|\D+', path.name)
