"""Cutting faces out and putting them back: as facexlib does it, and nothing else in the picture changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from headshot_ui.restoration.faces import LEAST_FACE_PX, OUTSIDE, aligned, alignment, paste, unfit
from headshot_ui.restoration.parser import CLASSES, soft_outline
from tests.restoration.fakes import face_at, noise


def helper(picture, faces, side, times=1, parser=None):
    """facexlib's FaceRestoreHelper with everything that its own constructor would set, but no networks."""
    from facexlib.utils.face_restoration_helper import FaceRestoreHelper

    made = object.__new__(FaceRestoreHelper)
    template = [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935]]
    template += [[201.26117, 371.41043], [313.08905, 371.15118]]
    made.upscale_factor, made.face_size, made.device = times, (side, side), torch.device("cpu")
    made.face_template = np.array(template) * (side / 512)
    made.pad_blur, made.save_ext, made.use_parse, made.face_parse = False, "png", parser is not None, parser
    made.clean_all()
    made.read_image(np.ascontiguousarray(picture[:, :, ::-1]))
    made.all_landmarks_5 = [np.array(face.landmarks) for face in faces]
    made.align_warp_face()
    made.get_inverse_affine()
    return made


def in_helper(made, repaired):
    for face in repaired:
        made.add_restored_face(np.ascontiguousarray(face[:, :, ::-1]))
    return made.paste_faces_to_input_image()[:, :, ::-1]


def levels(a, b):
    return np.abs(a.astype(int) - b.astype(int))


FACES = {
    "in the middle": face_at(170, 130, 140),
    "at the left edge": face_at(-30, 100, 130),
    "in the lower right corner": face_at(420, 330, 150),
    "small": face_at(90, 300, 75),
    "large": face_at(130, 40, 215),
}


@pytest.mark.parametrize("side", [192, 512])
@pytest.mark.parametrize("place", FACES)
def test_aligned_as_facexlib_does(place, side):
    picture, face = noise(520, 440, cells=60), FACES[place]
    ours = aligned(picture, alignment(face.landmarks, side), side)
    (theirs,) = helper(picture, [face], side).cropped_faces
    difference = levels(ours, theirs[:, :, ::-1])
    # one level almost everywhere; where the grey beyond the edge begins, a 32nd of a pixel can be more
    assert np.quantile(difference, 0.999) <= 1 and difference.mean() < 0.05 and difference.max() <= 8


@pytest.mark.parametrize("place", FACES)
def test_pasted_as_facexlib_does(place):
    side, picture, face = 192, noise(520, 440, cells=60), FACES[place]
    made, repaired = helper(picture, [face], side), noise(side, side, seed=5)
    expected = in_helper(made, [repaired])
    ours = picture.copy()
    paste(ours, repaired, alignment(face.landmarks, side), 1)
    assert levels(ours, expected).max() <= 2
    assert levels(ours, picture).max() > 50


def test_two_overlapping_faces_pasted_as_facexlib_does():
    side, picture = 192, noise(520, 440, cells=60)
    faces, repaired = [FACES["in the middle"], face_at(260, 190, 120)], [noise(192, 192, 5), noise(192, 192, 6)]
    expected, ours = in_helper(helper(picture, faces, side), repaired), picture.copy()
    for face, pixels in zip(faces, repaired, strict=True):
        paste(ours, pixels, alignment(face.landmarks, side))
    assert levels(ours, expected).max() <= 2


def test_the_outline_is_pasted_as_facexlib_does():
    side, picture, face = 512, noise(520, 440, cells=60), FACES["large"]
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(1, CLASSES, 8, 8)).astype(np.float32)
    scores = torch.nn.functional.interpolate(torch.from_numpy(scores), (512, 512), mode="bilinear")
    made, repaired = helper(picture, [face], side, parser=lambda pixels: (scores, None)), noise(side, side, seed=5)
    expected, ours = in_helper(made, [repaired]), picture.copy()
    paste(ours, repaired, alignment(face.landmarks, side), 1, soft_outline(scores[0].argmax(0).numpy()))
    difference = levels(ours, expected)
    # where the outline is cut off near the square's edge it is a step, and a 32nd of a pixel counts there
    assert np.quantile(difference, 0.999) <= 2 and difference.max() <= 8 and levels(ours, picture).max() > 50


@pytest.mark.parametrize("mask", [None, np.pad(np.ones((64, 64), np.float32), 64)])
@pytest.mark.parametrize("place", FACES)
def test_pixels_outside_the_square_are_bit_equal(place, mask):
    side, picture, face = 192, noise(520, 440, cells=60), FACES[place]
    matrix = alignment(face.landmarks, side)
    ours = picture.copy()
    paste(ours, 255 - aligned(picture, matrix, side), matrix, 1, mask)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    u, v = (matrix @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])).reshape(2, *x.shape)
    outside = (u < -1) | (v < -1) | (u > side) | (v > side)
    assert outside.any() and np.array_equal(ours[outside], picture[outside])
    assert not np.array_equal(ours[~outside], picture[~outside])


def test_an_unchanged_face_leaves_the_picture_nearly_as_it_was():
    picture, face = noise(520, 440), FACES["in the middle"]
    matrix = alignment(face.landmarks, 512)
    ours = picture.copy()
    paste(ours, aligned(picture, matrix, 512), matrix)
    assert levels(ours, picture).max() <= 3


@pytest.mark.parametrize("times", [2, 4])
def test_in_an_enlarged_picture_the_face_lies_where_it_was_drawn(times):
    """facexlib puts it half a pixel to the lower right, which doubles every edge."""
    picture, face = noise(300, 260, cells=50), face_at(90, 60, 110)
    large = np.asarray(Image.fromarray(picture).resize((300 * times, 260 * times), Image.Resampling.BICUBIC)).copy()
    matrix = alignment(face.landmarks, 512)
    same = aligned(picture, matrix, 512)
    ours = large.copy()
    paste(ours, same, matrix, times)
    theirs = in_helper(helper(picture, [face], 512, times), [same])
    plain = levels(large, np.asarray(Image.fromarray(picture).resize(large.shape[1::-1], Image.Resampling.LANCZOS)))
    assert levels(ours, large).mean() < 0.5 * levels(theirs, large).mean() + plain.mean()
    assert np.quantile(levels(ours, large), 0.99) <= 6


def test_a_face_shrunk_much_is_averaged_on_both_ways():
    """Single pixels picked out of fine stripes would be black or white; their mean is grey."""
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    upright = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.78), (0.65, 0.78))
    large = tuple((200 + x * 1000, 200 + y * 1000) for x, y in upright)
    cut = aligned(stripes, alignment(large, 64), 64)
    assert cut.std() < 20 and 110 < cut.mean() < 145
    fine = np.zeros((512, 512, 3), np.uint8)
    fine[:, ::2] = 255
    picture = np.full((120, 120, 3), 127, np.uint8)
    small = tuple((40 + x * 30, 40 + y * 30) for x, y in upright)
    paste(picture, fine, alignment(small, 512))
    assert levels(picture, np.full_like(picture, 127)).max() < 25


def test_beyond_the_edge_is_grey():
    picture = np.zeros((200, 200, 3), np.uint8)
    cut = aligned(picture, alignment(face_at(-40, 60, 90).landmarks, 192), 192)
    assert cut[96, 1].tolist() == list(OUTSIDE) and cut[96, 180].tolist() == [0, 0, 0]


def test_faces_that_are_left_alone():
    size = (300, 200)
    assert unfit(face_at(50, 50, 40), size) == ""
    assert unfit(face_at(50, 50, LEAST_FACE_PX), size) == ""
    assert "too small" in unfit(face_at(50, 50, LEAST_FACE_PX - 1), size)
    assert "outside" in unfit(face_at(-70, 50, 100), size)
    assert unfit(face_at(-30, 50, 100), size) == ""
    point = face_at(50, 50, 40)
    assert "clear" in unfit(type(point)(point.box, ((60.0, 60.0),) * 5, 0.9), size)


def test_a_hundred_faces_in_a_large_picture_take_little_time():
    import time

    picture, repaired = noise(4000, 3000), noise(192, 192, seed=2)
    began = time.process_time()
    for number in range(100):
        face = face_at(30 + 390 * (number % 10), 20 + 290 * (number // 10), 90)
        matrix = alignment(face.landmarks, 192)
        aligned(picture, matrix, 192)
        paste(picture, repaired, matrix)
    assert time.process_time() - began < 5  # whole pictures instead of parts took a minute
