# SPDX-License-Identifier: Apache-2.0
"""The interface of stereo datasets: pairs of stereo frames, with ego motion and ground truth where known.

Axes are those of the left optical frame: x right, y down, z forward. The reference frame is the one whose pixels get
flow; the other frame is later or earlier.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoFrame


@dataclass(frozen=True)
class StereoTruth:
    """Ground truth of the reference frame of a stereo pair. Never given to a teacher.

    disparity: (H, W) float32 [px]. other_disparity: (H, W) float32 [px], disparity of the same point of the scene in
    the other frame. flow: (H, W, 2) float32 [px], (u, v) from the reference to the other left image, ego motion
    included. All are NaN where not known.
    is_disparity_noc, is_other_disparity_noc, is_flow_noc: (H, W) bool, which known values are not occluded: the match
    is inside the image and visible there. is_foreground: (H, W) bool, the objects that scores count separately.
    is_moving: (H, W) bool, what moves by itself; None: not known.

    Raises: ValueError for wrong shapes or types, half-known flow, or unoccluded values that are not known.
    """

    disparity: np.ndarray
    other_disparity: np.ndarray
    flow: np.ndarray
    is_disparity_noc: np.ndarray
    is_other_disparity_noc: np.ndarray
    is_flow_noc: np.ndarray
    is_foreground: np.ndarray
    is_moving: np.ndarray | None = None

    def __post_init__(self):
        size = self.disparity.shape
        masks = ('is_disparity_noc', 'is_other_disparity_noc', 'is_flow_noc', 'is_foreground', 'is_moving')
        types = {'disparity': np.float32, 'other_disparity': np.float32, 'flow': np.float32} | dict.fromkeys(
            masks, bool
        )
        for name, type_ in types.items():
            value, shape = getattr(self, name), (*size, 2) if name == 'flow' else size
            if value is None and name == 'is_moving':
                continue
            if len(size) != 2 or value.shape != shape or value.dtype != type_:
                raise ValueError(f'{name} must be {shape} {np.dtype(type_)}, got {value.shape} {value.dtype}')
        if (np.isfinite(self.flow[..., 0]) != np.isfinite(self.flow[..., 1])).any():
            raise ValueError('flow must have both components or none at each pixel')
        for name in ('disparity', 'other_disparity', 'flow'):
            if (getattr(self, f'is_{name}_noc') & ~getattr(self, f'has_{name}')).any():
                raise ValueError(f'is_{name}_noc marks pixels whose {name} is not known')

    @cached_property
    def has_disparity(self) -> np.ndarray:
        """Which pixels have a known disparity, occluded ones included, (H, W) bool."""
        return np.isfinite(self.disparity)

    @cached_property
    def has_other_disparity(self) -> np.ndarray:
        """Which pixels have a known disparity in the other frame, occluded ones included, (H, W) bool."""
        return np.isfinite(self.other_disparity)

    @cached_property
    def has_flow(self) -> np.ndarray:
        """Which pixels have known flow, occluded ones included, (H, W) bool."""
        return np.isfinite(self.flow[..., 0])


@dataclass(frozen=True)
class StereoBox:
    """A tracked box around an object, as the reference frame and the other frame see it.

    category: as annotated. size: (3,) length, width, height [m], along x, y, z of the box; z of the box is up.
    reference_T_box, other_T_box: (4, 4), pose in the left optical frame at the time of each frame.
    """

    category: str
    size: np.ndarray
    reference_T_box: np.ndarray
    other_T_box: np.ndarray

    def velocity(self, points: np.ndarray, other_T_reference: np.ndarray, dt: float) -> np.ndarray:
        """Return the velocity (N, 3) [m/s], ego motion removed, of points (N, 3) [m] fixed to the box.

        points: in the reference frame. dt: seconds from the reference to the other frame, negative if that is earlier.
        """
        moved_T_reference = (
            transforms.invert(other_T_reference) @ self.other_T_box @ transforms.invert(self.reference_T_box)
        )
        points = np.asarray(points, np.float64)
        return (transforms.apply(moved_T_reference, points) - points) / dt


@dataclass(frozen=True)
class StereoDatasetPair:
    """One item of a stereo dataset.

    key: names the pair within the dataset and in files: letters, digits, '.', '_', '-' and '/'.
    reference, other: the frames, of the same camera. other_T_reference: (4, 4) float64, maps points of the reference
    left optical frame into the other one, for what does not move; None: not known.
    dt: seconds from the reference to the other frame; negative where the other is earlier.
    truth: ground truth of the reference frame, or None. boxes: the objects that both frames have, where all objects in
    the image are annotated; None: not annotated.
    depth: (H, W) float32 [m], true depth of the reference frame from a LiDAR, NaN where it has no point; None: not
    known. earlier: function that returns the left images of the same drive right before the reference, at most as many
    as it is asked for, oldest first, for estimators that take more than two; None: there are none.

    Raises: ValueError for frames of two sizes, a transform that is not (4, 4), dt of 0, or truth of another size.
    """

    key: str
    reference: StereoFrame
    other: StereoFrame
    other_T_reference: np.ndarray | None
    dt: float
    truth: StereoTruth | None = None
    boxes: tuple[StereoBox, ...] | None = None
    depth: np.ndarray | None = None
    earlier: Callable[[int], list[np.ndarray]] | None = None

    def __post_init__(self):
        size, other_size = self.reference.left.shape[:2], self.other.left.shape[:2]
        if size != other_size:
            raise ValueError(f'{self.key}: both frames need the same size, got {size} and {other_size}')
        if self.other_T_reference is not None and self.other_T_reference.shape != (4, 4):
            raise ValueError(f'{self.key}: other_T_reference must be (4, 4), got {self.other_T_reference.shape}')
        if not np.isfinite(self.dt) or self.dt == 0:
            raise ValueError(f'{self.key}: dt must be finite and not 0, got {self.dt}')
        if self.truth is not None and self.truth.disparity.shape != size:
            raise ValueError(f'{self.key}: images of {size} have ground truth of {self.truth.disparity.shape}')
        if self.depth is not None and self.depth.shape != size:
            raise ValueError(f'{self.key}: images of {size} have true depths of {self.depth.shape}')


class StereoPairDataset(Protocol):
    """Stereo pairs by number. Reading the same pair twice gives the same pair.

    sensor: 'stereo', by which `open_dataset` tells stereo datasets from those of sweeps.
    """

    name: str
    sensor: str

    def __len__(self) -> int:
        """Return the number of pairs."""

    def key(self, index: int) -> str:
        """Return the key of a pair without reading it."""

    def __getitem__(self, index: int) -> StereoDatasetPair:
        """Return a pair. Raises: DataError with the reason when it cannot be read."""
