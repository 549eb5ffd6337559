# SPDX-License-Identifier: Apache-2.0
import numpy as np

from training.teachers.piece_completion import close_piece, grow_piece

ROWS, COLUMNS = np.mgrid[:40, :60]
CAR = (ROWS >= 10) & (ROWS < 30) & (COLUMNS >= 10) & (COLUMNS < 50)
WINDOW = (ROWS >= 13) & (ROWS < 20) & (COLUMNS >= 28) & (COLUMNS < 46)
STATIC = ~CAR


def front(values=20.0):
    """Return the disparity of a car in two faces before a wall, (40, 60)."""
    return np.where(CAR, values - 0.2 * np.abs(COLUMNS - 25), 4.0).astype(np.float32)


def test_windows_inside_a_piece_and_holes_in_it_get_its_surface():
    for is_hole in (False, True):
        disparity, piece = front(), np.where(CAR, 0, -1).astype(np.int32)
        disparity[WINDOW] = 9.0
        if is_hole:
            piece[WINDOW] = -1
        close_piece(piece, 0, disparity, STATIC)
        assert (piece[WINDOW] == 0).all() and np.count_nonzero(piece == 0) == CAR.sum()
        np.testing.assert_allclose(disparity[WINDOW], front()[WINDOW], atol=0.5)  # px
        np.testing.assert_array_equal(disparity[~CAR], 4.0)


def test_windows_below_a_roof_that_is_not_seen_belong_to_the_piece_unless_seen_to_be_static():
    window = (ROWS >= 10) & (ROWS < 20) & (COLUMNS >= 10) & (COLUMNS < 20)
    for is_seen in (False, True):
        disparity, piece = front(), np.where(CAR & ~window, 0, -1).astype(np.int32)
        disparity[window] = 4.0
        close_piece(piece, 0, disparity, STATIC | (window & is_seen))
        share = (piece[window] == 0).mean()
        assert share == 0 if is_seen else share > 0.4  # of the window is in the hull
        filled = window & (piece == 0)
        np.testing.assert_allclose(disparity[filled], front()[filled], atol=0.5)  # px


def test_what_stands_in_front_of_a_piece_is_not_part_of_it():
    disparity, piece = front(), np.where(CAR, 0, -1).astype(np.int32)
    post = CAR & (COLUMNS >= 28) & (COLUMNS < 32)
    disparity[post], piece[post] = 35.0, -1
    before = disparity.copy()
    close_piece(piece, 0, disparity, STATIC)
    assert (piece[post] == -1).all()
    np.testing.assert_array_equal(disparity, before)


def test_a_piece_grows_to_what_moves_with_it_and_no_farther():
    disparity, piece = front(), np.where(CAR & (ROWS < 25), 0, -1).astype(np.int32)
    ego_error = np.where(CAR, 4.0, 0.3)
    ego_error[:, :14] = np.nan  # not measured
    grow_piece(piece, 0, disparity, ego_error, lambda rows, columns: np.where(CAR[rows, columns], 0.3, 4.0))
    grown = (piece == 0) & (ROWS >= 25)
    np.testing.assert_array_equal(grown, CAR & (ROWS >= 25) & (COLUMNS >= 14))


def test_a_piece_without_pixels_changes_nothing():
    piece, disparity = np.full((40, 60), -1, np.int32), front()
    grow_piece(piece, 0, disparity, np.ones_like(disparity), lambda rows, columns: rows * 0.0)
    close_piece(piece, 0, disparity, STATIC)
    assert (piece == -1).all() and (disparity == front()).all()
