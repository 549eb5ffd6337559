# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.camera import moving_pieces, numba_support
from zeroflow_ros.camera.camera_motion import rigid_flow
from zeroflow_ros.camera.moving_pieces import MovingPiecesConfig, find_moving_pieces, motion_residual
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError

CAMERA = StereoCamera(160, 80, 200.0, 200.0, 79.5, 39.5, 0.4)
EGO = np.eye(4)
EGO[:3, :3], EGO[:3, 3] = transforms.rotation_matrix((0.001, 0.01, 0)), (0.02, 0.0, -0.6)
BOX = np.zeros((80, 160), bool)
BOX[20:50, 60:95] = True


def shifted(x, y, z, axis_angle=(0, 0, 0)):
    """Return the motion of an object that moves in the axes of the other camera."""
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = transforms.rotation_matrix(axis_angle), (x, y, z)
    return motion @ EGO


def measured(objects=(), *, noise=0.15, seed=0, background=15.0):
    """Return disparity, flow, other disparity of a wall and of objects: (mask, depth, motion)."""
    rng = np.random.default_rng(seed)
    depth = np.full((80, 160), background)
    for mask, distance, _ in objects:
        depth[mask] = distance
    disparity = CAMERA.disparity(depth)
    flow, other = rigid_flow(CAMERA, disparity, EGO)
    for mask, _, motion in objects:
        moved, moved_other = rigid_flow(CAMERA, disparity, motion)
        flow[mask], other[mask] = moved[mask], moved_other[mask]

    def noisy(values):
        return (values + rng.normal(0, noise, values.shape)).astype(np.float32)

    return noisy(disparity), noisy(flow), noisy(other)


def find(objects=(), **options):
    disparity, flow, other = measured(objects, **options)
    return find_moving_pieces(CAMERA, disparity, flow, np.isfinite(disparity), EGO, other_disparity=other)


def test_a_static_scene_has_no_pieces():
    pieces = find()
    assert pieces.motions == () and (pieces.piece == -1).mean() > 0.98


@pytest.mark.parametrize(
    'label, shift', [('aside', (0.3, 0, 0)), ('away', (0, 0, 0.6)), ('towards', (0.1, 0, -0.5)), ('slow', (0.15, 0, 0))]
)
def test_a_box_that_moves_is_one_piece_with_its_motion(label, shift):
    motion = shifted(*shift)
    pieces = find([(BOX, 6.0, motion)])
    assert len(pieces.motions) == 1
    assert (pieces.piece[BOX] == 0).mean() > 0.9 and (pieces.piece[~BOX] == 0).mean() < 0.02
    centre = np.array([[0.0, -0.1, 6.0]])
    off = transforms.apply(pieces.motions[0], centre) - transforms.apply(motion, centre)
    assert np.linalg.norm(off) < 0.05  # m: 0.15 px of 13.3 px of disparity at 6 m is 0.07 m for a single pixel
    assert 0 < pieces.sigmas[0] < 0.05


def test_a_box_that_turns_keeps_its_rotation():
    large = np.zeros((80, 160), bool)
    large[5:75, 40:120] = True
    pieces = find([(large, 6.0, shifted(0.2, 0, 0.2, (0, 0, 0.04)))])
    assert len(pieces.motions) == 1
    turned = transforms.rotation_vector(transforms.invert(EGO) @ pieces.motions[0])
    assert turned[2] == pytest.approx(0.04, abs=0.01)  # rad


def test_two_boxes_that_touch_in_the_image_are_two_pieces():
    behind = np.zeros((80, 160), bool)
    behind[25:60, 95:130] = True
    pieces = find([(BOX, 5.0, shifted(0.3, 0, 0)), (behind, 9.0, shifted(-0.4, 0, 0.2))])
    assert len(pieces.motions) == 2
    (first,), (second,) = (np.unique(pieces.piece[30:45, a:b]) for a, b in ((70, 90), (100, 125)))
    assert {first, second} == {0, 1}


def test_pixels_without_flow_inside_a_piece_belong_to_it():
    disparity, flow, other = measured([(BOX, 6.0, shifted(0.3, 0, 0))])
    valid = np.ones(BOX.shape, bool)
    valid[30:32, 60:95] = False
    flow[~valid] = 99.0
    pieces = find_moving_pieces(CAMERA, disparity, flow, valid, EGO, other_disparity=other)
    assert (pieces.piece[30:32, 62:93] == 0).mean() > 0.9


def test_what_moves_in_no_rigid_way_has_no_motion():
    disparity, flow, other = measured([(BOX, 6.0, EGO)])
    flow[BOX] += np.random.default_rng(0).uniform(-15, 15, (BOX.sum(), 2)).astype(np.float32)
    pieces = find_moving_pieces(CAMERA, disparity, flow, np.ones(BOX.shape, bool), EGO, other_disparity=other)
    assert pieces.motions == () and (pieces.piece[BOX] == -2).mean() > 0.8


def test_a_motion_within_its_error_is_none():
    far = np.zeros((80, 160), bool)
    far[30:40, 60:72] = True
    assert find([(far, 40.0, shifted(0, 0, 1.0))], background=60.0).motions == ()


@pytest.mark.parametrize('solid_sigmas, count', [(6.0, 1), (1e6, 0)])
def test_a_solid_piece_moves_where_it_surely_does_not_rest_though_its_speed_is_uncertain(solid_sigmas, count):
    disparity, flow, other = measured([(BOX, 6.0, shifted(0.3, 0, 0))])
    config = MovingPiecesConfig(piece_sigmas=1e3, solid_sigmas=solid_sigmas)
    valid = np.ones(BOX.shape, bool)
    pieces = find_moving_pieces(CAMERA, disparity, flow, valid, EGO, other_disparity=other, config=config)
    assert len(pieces.motions) == count
    # Half of its pixels are not seen in the other frame: it is not solid.
    other[:, ::2] = np.nan
    pieces = find_moving_pieces(CAMERA, disparity, flow, valid, EGO, other_disparity=other, config=config)
    assert pieces.motions == ()


def test_a_motion_that_is_too_fast_is_none():
    fast = MovingPiecesConfig(max_motion=0.2)
    disparity, flow, other = measured([(BOX, 6.0, shifted(0.3, 0, 0))])
    pieces = find_moving_pieces(
        CAMERA, disparity, flow, np.ones(BOX.shape, bool), EGO, other_disparity=other, config=fast
    )
    assert pieces.motions == () and (pieces.piece[BOX] == -2).mean() > 0.8


def test_nothing_valid_gives_no_pieces():
    disparity, flow, _ = measured([(BOX, 6.0, shifted(0.3, 0, 0))])
    pieces = find_moving_pieces(CAMERA, disparity, flow, np.zeros(BOX.shape, bool), EGO)
    assert pieces.motions == () and (pieces.piece == -1).all()


def test_the_residual_of_a_rigid_scene_is_its_noise():
    disparity, flow, other = measured(noise=0.3)
    residual, in_sigmas = motion_residual(
        CAMERA, disparity, flow, EGO, other_disparity=other, flow_sigma=0.3, disparity_sigma=0.3
    )
    # Three residuals, each about one standard deviation.
    assert np.sqrt(np.mean(in_sigmas**2)) == pytest.approx(np.sqrt(3), rel=0.1)
    assert 0.3 < np.median(residual) < 1.0


@pytest.mark.parametrize('with_other', [True, False])
def test_the_kernel_gives_the_residual_of_numpy(with_other, monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    disparity, flow, other = measured([(BOX, 6.0, shifted(0.3, 0, 0.1))])
    disparity[3], other[5] = np.nan, np.nan

    def residual():
        return motion_residual(CAMERA, disparity, flow, EGO, other_disparity=other if with_other else None)

    fast = residual()
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    for a, b in zip(fast, residual(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)  # float32 of 100 px, minus each other


def test_the_kernel_finds_the_seams_of_numpy(monkeypatch):
    if numba_support.numba_kernels is None:
        pytest.skip('needs numba')
    rng = np.random.default_rng(0)
    disparity = np.kron(rng.uniform(5, 9, (6, 8)), np.ones((4, 4))).astype(np.float32)
    region = rng.random(disparity.shape) < 0.9
    disparity[~region] = np.nan
    fast_labels, fast_sizes = moving_pieces._connected(region, disparity, 0.08)
    monkeypatch.setattr(numba_support, 'numba_kernels', None)
    labels, sizes = moving_pieces._connected(region, disparity, 0.08)
    np.testing.assert_array_equal(fast_labels, labels)
    np.testing.assert_array_equal(fast_sizes, sizes)
    assert 5 < len(sizes) < 200


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match='min_pixels'):
        MovingPiecesConfig(min_pixels=0)
