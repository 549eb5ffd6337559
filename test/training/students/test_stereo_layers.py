# SPDX-License-Identifier: Apache-2.0
"""Layers for stereo images: every row is computed by hand, or by the plain formula."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students import stereo_layers  # noqa: E402


def image(*rows, num_channels=1):
    return torch.tensor(rows, dtype=torch.float32).expand(1, num_channels, -1, -1)


def test_correlation_along_a_row():
    found = stereo_layers.correlation_1d(image([1, 2, 3]), image([4, 5, 6]), before=1, after=1)
    assert found[0, :, 0].tolist() == [[0, 8, 15], [4, 10, 18], [5, 12, 0]]


def test_correlation_along_a_row_on_one_side_only():
    found = stereo_layers.correlation_1d(image([1, 2, 3]), image([4, 5, 6]), before=1, after=0)
    assert found[0, :, 0].tolist() == [[0, 8, 15], [4, 10, 18]]


def test_correlation_is_the_mean_over_channels():
    left, right = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1), torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1)
    assert stereo_layers.correlation_1d(left, right, 0, 0).item() == (3 + 10) / 2


def test_correlation_of_a_square():
    found = stereo_layers.correlation_2d(image([1, 2], [3, 4]), image([5, 6], [7, 8]), radius=1)[0]
    assert found.shape == (9, 2, 2)
    assert found[0].tolist() == [[0, 0], [0, 20]]  # dy -1, dx -1
    assert found[1].tolist() == [[0, 0], [15, 24]]  # dy -1, dx 0: dx is inner
    assert found[4].tolist() == [[5, 12], [21, 32]]
    assert found[5].tolist() == [[6, 0], [24, 0]]  # dy 0, dx 1
    assert found[7].tolist() == [[7, 16], [0, 0]]  # dy 1, dx 0


@pytest.mark.parametrize('width', [7, 48, 80, 106])
def test_correlation_of_a_square_is_that_of_shifted_images(width):
    """Rows of 80 pixels are compared in two blocks; 106 is twice a prime."""
    rng = np.random.default_rng(0)
    source, target = (rng.normal(size=(2, 5, 4, width)).astype(np.float32) for _ in range(2))
    padded = np.pad(target, ((0, 0), (0, 0), (2, 2), (2, 2)))
    plain = [(source * padded[:, :, y : y + 4, x : x + width]).mean(1) for y in range(5) for x in range(5)]
    found = stereo_layers.correlation_2d(torch.from_numpy(source), torch.from_numpy(target), 2)
    np.testing.assert_allclose(found, np.stack(plain, 1), atol=1e-6)  # float32 sums of five products


def test_correlation_along_channels():
    source, target = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1), torch.tensor([10.0, 20.0]).reshape(1, 2, 1, 1)
    found = stereo_layers.correlation_3d(source, target, radius=0, depth_radius=1)
    assert found.flatten().tolist() == [(0 + 20) / 2, (10 + 40) / 2, (20 + 0) / 2]
    assert stereo_layers.correlation_3d(source, target, 0, 0).flatten().tolist() == [25]


ROWS = ([0, 10, 20, 30], [0, 10, 20, 30])


@pytest.mark.parametrize(
    'offset, first_row',
    [
        (0.0, [0, 10, 20, 0]),  # the last column is 0
        (-0.5, [0, 5, 15, 25]),
        (-1.0, [0, 0, 10, 20]),
        (0.5, [5, 15, 25, 0]),
        (-9.0, [0, 0, 0, 0]),
    ],
)
def test_warp_along_rows_is_zero_outside_and_in_the_last_row(offset, first_row):
    found = stereo_layers.warp_along_rows(image(*ROWS), torch.full((1, 1, 2, 4), offset))[0, 0]
    np.testing.assert_allclose(found[0], first_row, atol=1e-5)  # px coordinates in float32
    assert found[1].tolist() == [0, 0, 0, 0]


def test_warp_along_rows_is_the_sampler_with_weights_of_clipped_corners():
    rng = np.random.default_rng(1)
    picture, offset = rng.normal(size=(3, 8)), rng.uniform(-4, 4, (3, 8))
    y, x = np.mgrid[:3, :8] + np.stack([np.zeros_like(offset), offset])
    x0, x1 = np.clip(np.floor(x), 0, 7), np.clip(np.floor(x) + 1, 0, 7)
    y0, y1 = np.clip(y, 0, 2), np.clip(y + 1, 0, 2)
    corners = [(y0, x0, (y1 - y) * (x1 - x)), (y1, x0, (y - y0) * (x1 - x)),
               (y0, x1, (y1 - y) * (x - x0)), (y1, x1, (y - y0) * (x - x0))]  # fmt: skip
    plain = sum(picture[row.astype(int), column.astype(int)] * weight for row, column, weight in corners)
    arrays = (torch.from_numpy(values).float()[None, None] for values in (picture, offset))
    np.testing.assert_allclose(stereo_layers.warp_along_rows(*arrays)[0, 0], plain, atol=1e-5)


@pytest.mark.parametrize(
    'flow, expected',
    [
        ((0, 0), [[0, 10, 20], [30, 40, 50]]),
        ((1, 0), [[10, 20, 20], [40, 50, 50]]),  # the border is repeated
        ((0, 1), [[30, 40, 50], [30, 40, 50]]),
        ((-0.5, 0), [[0, 5, 15], [30, 35, 45]]),
    ],
)
def test_warp_by_flow(flow, expected):
    flow = torch.tensor(flow, dtype=torch.float32).reshape(1, 2, 1, 1).expand(1, 2, 2, 3)
    found = stereo_layers.warp_by_flow(image([0, 10, 20], [30, 40, 50]), flow)[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_legacy_resize_has_no_half_pixel_and_repeats_the_last():
    found = stereo_layers.legacy_upsample(image([0, 4], [8, 12]), 4)[0, 0]
    assert found[0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert found[:, 0].tolist() == [0, 2, 4, 6, 8, 8, 8, 8]


@pytest.mark.parametrize('size, expected', [(4, [[9, 6], [6, 4]]), (3, [[4, 4], [4, 4]])])
def test_padding_of_stride_2_is_that_of_tensorflow(size, expected):
    ones = torch.ones(1, 1, size, size)
    padded = stereo_layers.same_padding(ones)
    assert torch.nn.functional.conv2d(padded, torch.ones(1, 1, 3, 3), stride=2)[0, 0].tolist() == expected
