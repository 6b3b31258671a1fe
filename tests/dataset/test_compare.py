import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from headshot_ui.dataset.compare import (
    choose_held_out,
    default_held_out,
    fingerprint,
    odd_ones_out,
    same_picture,
)
from tests.dataset.drawn_faces import draw_face, jpeg, make_photo


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def people(own: int, strangers: int, noise: float = 0.4, seed: int = 0) -> np.ndarray:
    """Unit vectors: photos of one person, then each of another one."""
    rng = np.random.default_rng(seed)
    who = unit(rng.standard_normal(128))
    return unit(np.concatenate([
        who + noise * unit(rng.standard_normal((own, 128))), rng.standard_normal((strangers, 128))
    ]))  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.resize((170, 227), Image.Resampling.LANCZOS),
        lambda p: Image.open(io.BytesIO(jpeg(p, quality=40))),
        lambda p: ImageEnhance.Brightness(p).enhance(0.9),
        lambda p: ImageEnhance.Contrast(p).enhance(0.85),
    ],
)
def test_copies_are_recognised(change):
    photo = make_photo(1)
    assert same_picture(fingerprint(photo), fingerprint(change(photo)))


def test_other_photos_are_not_copies():
    assert not same_picture(fingerprint(make_photo(1)), fingerprint(make_photo(2)))
    # the same wall, the same light, the head elsewhere
    walls = [Image.new("RGB", (480, 640), (180, 185, 190)) for _ in range(2)]
    for wall, left in zip(walls, (150, 185), strict=True):
        draw_face(wall, left, 210, 220)
    assert not same_picture(*map(fingerprint, walls))


@pytest.mark.parametrize("noise", [0.2, 0.6, 1.0])
def test_somebody_else_is_noticed_whatever_the_recogniser(noise):
    verdicts = odd_ones_out(people(8, 2, noise))
    assert verdicts[8:] == ["stranger"] * 2 and "stranger" not in verdicts[:8]


def test_own_photos_and_few_photos_are_left_alone():
    assert odd_ones_out(people(10, 0)) == [""] * 10
    assert odd_ones_out(people(1, 2)) == [""] * 3


def test_how_many_are_held_out():
    assert [default_held_out(n) for n in (3, 4, 5, 9, 10, 40)] == [0, 0, 1, 1, 2, 2]


def test_held_out_photos_are_good_typical_and_always_the_same():
    vectors = list(people(8, 4))
    quality = [0.5] * 12
    quality[3], quality[11] = 0.9, 0.99  # 11 is the best one, but unlike all others
    chosen = choose_held_out(vectors, quality, 2)
    assert chosen == choose_held_out(vectors, quality, 2)
    assert 3 in chosen and max(chosen) < 8 and len(chosen) == 2
    assert choose_held_out(vectors, quality, 0) == []


def test_the_second_held_out_photo_is_unlike_the_first():
    a, b = np.eye(2, 16, dtype=np.float32)
    somewhat = unit(0.9 * a + 0.43 * b)
    vectors = [a, a, a, a, somewhat, somewhat, b, b, b]
    assert choose_held_out(vectors, [0.5, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 2) == [1, 4]
