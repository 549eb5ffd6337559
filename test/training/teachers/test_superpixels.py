# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import ndimage

from training.teachers.superpixels import SuperpixelConfig, Superpixels
from zeroflow_ros.errors import ConfigError


@pytest.fixture(scope='module')
def superpixels():
    rows, columns = np.mgrid[:50, :70]
    image = np.full((50, 70, 3), 60, np.uint8)
    image[np.hypot(rows - 25, columns - 35) < 14] = (200, 128, 140)
    return Superpixels(image, SuperpixelConfig(side=10))


def test_superpixels_are_connected_and_keep_to_borders_of_colour(superpixels):
    labels = superpixels.labels
    assert superpixels.count == 35 and set(np.unique(labels)) <= set(range(35))
    for label in np.unique(labels):
        assert ndimage.label(labels == label)[1] == 1
    bright = superpixels.image[..., 0] > 100
    mixed = sum(min(bright[labels == k].sum(), (~bright[labels == k]).sum()) for k in np.unique(labels))
    assert mixed < 0.02 * labels.size


def test_sums_and_lists_describe_the_labels(superpixels):
    labels = superpixels.labels
    starts, places = superpixels.pixels()
    for k in (0, 17, 34):
        np.testing.assert_array_equal(places[starts[k] : starts[k + 1]], np.flatnonzero(labels == k))
        np.testing.assert_allclose(superpixels.colours[k], superpixels.image[labels == k].mean(axis=0))
    starts, edges = superpixels.borders()
    across = np.count_nonzero(labels[:, 1:] != labels[:, :-1]) + np.count_nonzero(labels[1:] != labels[:-1])
    assert len(edges) == 2 * across
    mine = np.repeat(np.arange(35), np.diff(starts))
    np.testing.assert_array_equal(labels[edges[:, 1], edges[:, 2]], mine)
    assert (edges[:, 0] != mine).all()


def test_planes_of_disparity_move_borders_that_colour_does_not_show():
    image = np.full((30, 40, 3), 128, np.uint8)
    superpixels = Superpixels(image, SuperpixelConfig(side=10))
    columns = np.arange(40)
    disparity = np.repeat(np.where(columns < 23, 5, 20).astype(np.float32)[None], 30, axis=0)
    planes = np.zeros((12, 3))
    planes[:, 2] = np.where(np.arange(12) % 4 < 2, 5, 20)
    for _ in range(6):
        superpixels.move_borders(disparity, planes)
    near = superpixels.labels % 4 >= 2
    assert np.count_nonzero(near != (disparity == 20)) < 12  # of 1200; the grid had 90


def test_a_grid_that_is_too_fine_is_refused():
    with pytest.raises(ConfigError, match='side of superpixels'):
        SuperpixelConfig(side=2)
