from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from headshot_ui.dataset.types import Face
from headshot_ui.errors import ModelError
from headshot_ui.recognisers import all_recognisers, find_recogniser
from headshot_ui.recognisers.arcface import RECOGNISER, SIDE, TEMPLATE, ArcFace, aligned, alignment, build_net
from headshot_ui.settings import Settings


def settings(root: Path) -> Settings:
    return Settings.from_environment(root=root, device="cpu", environment={})


def moved(points, scale=1.0, degrees=0.0, shift=(0.0, 0.0)):
    turn = scale * np.exp(1j * np.radians(degrees))
    places = [turn * complex(x, y) + complex(*shift) for x, y in points]
    return tuple((p.real, p.imag) for p in places)


def face_with(landmarks) -> Face:
    return Face((0, 0, 1, 1), tuple(landmarks), 1.0)


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_net()


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"), [(1, 0, (0, 0)), (3.7, 0, (80, 40)), (2, 25, (300, 50)), (0.6, -40, (9, 90))]
)
def test_landmarks_land_on_the_published_template(scale, degrees, shift):
    landmarks = moved(TEMPLATE, scale, degrees, shift)
    matrix = alignment(landmarks)
    placed = np.array(landmarks) @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(placed - np.array(TEMPLATE)).max() < 1e-6


def test_alignment_is_the_least_squares_similarity():
    # A face that is no copy of the template: Umeyama's closed form (facexlib's template, by way of OpenCV-free NumPy).
    rng = np.random.default_rng(0)
    landmarks = np.array(moved(TEMPLATE, 2, 10, (50, 20))) + rng.normal(0, 4, (5, 2))
    a = alignment([tuple(p) for p in landmarks])
    rows = [[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in landmarks]
    solution, *_ = np.linalg.lstsq(np.array(rows).reshape(10, 4), np.array(TEMPLATE).reshape(10), rcond=None)
    assert np.allclose(a, [[solution[0], -solution[1], solution[2]], [solution[1], solution[0], solution[3]]])


def test_the_template_is_that_of_facexlib():
    from facexlib.detection.align_trans import REFERENCE_FACIAL_POINTS

    # facexlib lists it for pictures 96 wide; ArcFace's 112 are 8 more on each side
    assert np.allclose(np.array(REFERENCE_FACIAL_POINTS) + (8, 0), TEMPLATE, atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 1.0, 9.0])
def test_eyes_of_a_picture_are_where_the_template_has_them(scale):
    landmarks = moved(TEMPLATE, scale, 15, (120 * scale, 60 * scale))
    picture = Image.new("RGB", (round(300 * scale), round(300 * scale)), "white")
    for x, y in landmarks[:2]:
        reach = 4 * scale
        ImageDraw.Draw(picture).ellipse((x - reach, y - reach, x + reach, y + reach), fill="black")
    out = aligned(picture, face_with(landmarks))
    dark = 255 - np.asarray(out.convert("L"), float)
    assert out.size == (SIDE, SIDE)
    for half, (x, y) in zip((slice(0, 56), slice(56, 112)), TEMPLATE[:2], strict=True):
        weights = dark[:, half]
        rows, columns = np.mgrid[0:112, half]
        assert (weights * columns).sum() / weights.sum() + 0.5 == pytest.approx(x, abs=1)
        assert (weights * rows).sum() / weights.sum() + 0.5 == pytest.approx(y, abs=1)


def test_vectors_are_of_unit_norm_and_depend_on_the_face(net):
    recogniser = ArcFace(net, "cpu")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (150, 150, 3), dtype=np.uint8)) for _ in range(2)]
    face = face_with(moved(TEMPLATE, 1.2, 5, (5, 5)))
    a, b = (recogniser.embed(picture, face) for picture in pictures)
    assert a.shape == (512,) and a.dtype == np.float32
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(a, recogniser.embed(pictures[0], face)) and abs(float(a @ b)) < 0.9999


def test_the_network_gets_rgb_between_minus_one_and_one():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.ones(1, 512)

    ArcFace(Spy(), "cpu").embed(Image.new("RGB", (112, 112), (255, 0, 127)), face_with(TEMPLATE))
    (x,) = seen
    assert x.shape == (1, 3, 112, 112)
    assert np.allclose(x[0, :, 56, 56], (1, -1, -0.004), atol=0.001)


def test_weights_are_loaded_from_safetensors(tmp_path, net):
    path = tmp_path / "models" / "arcface" / "recognition_arcface_ir_se50.safetensors"
    path.parent.mkdir(parents=True)
    assert not RECOGNISER.available(settings(tmp_path))
    save_file(net.state_dict(), path)
    assert RECOGNISER.available(settings(tmp_path))
    loaded = RECOGNISER.load(settings(tmp_path))
    x = torch.randn(1, 3, 112, 112)
    with torch.inference_mode():
        assert torch.equal(loaded._net(x), net(x)) and net(x).shape == (1, 512)


def test_missing_damaged_and_foreign_weights_are_named(tmp_path):
    path = tmp_path / "models" / "arcface" / "recognition_arcface_ir_se50.safetensors"
    with pytest.raises(ModelError, match="recognition_arcface_ir_se50.safetensors"):
        RECOGNISER.load(settings(tmp_path))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="damaged"):
        RECOGNISER.load(settings(tmp_path))
    save_file({"other": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="does not hold ArcFace"):
        RECOGNISER.load(settings(tmp_path))


def test_discovery_finds_every_file_and_the_right_one_for_a_base(tmp_path):
    from headshot_ui.families.protocol import BaseInfo

    assert {"arcface", "demo"} <= {loader.id for loader in all_recognisers()}
    photos = BaseInfo("x", "sdxl", "X", Path("x"), "", "", 1024)
    with pytest.raises(ModelError, match="arcface"):
        find_recogniser(settings(tmp_path), photos)
    path = tmp_path / "models" / "arcface" / "recognition_arcface_ir_se50.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_recogniser(settings(tmp_path), photos) is RECOGNISER
