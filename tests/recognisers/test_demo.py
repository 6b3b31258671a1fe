"""The demo recogniser's geometry and files; what it can tell apart is held by the tests of the demo itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from headshot_ui.dataset.types import Face
from headshot_ui.errors import ModelError
from headshot_ui.recognisers.demo import (
    SIDE,
    TEMPLATE,
    DemoRecogniser,
    DemoRecogniserNet,
    _near_size,
    alignment,
    cut_out,
    read_net,
)


def _moved(scale: float, angle: float, shift: tuple[float, float]) -> torch.Tensor:
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * torch.tensor(TEMPLATE) @ turn.T + torch.tensor(shift)


def _spots(marks: torch.Tensor, size: int, radius: float = 3.0) -> torch.Tensor:
    """A black picture with a soft bright spot at every landmark."""
    line = torch.arange(size) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    spots = [torch.exp(-((x - mx) ** 2 + (y - my) ** 2) / (2 * radius**2)) for mx, my in marks.tolist()]
    return torch.stack(spots).amax(0).expand(3, -1, -1)


def _face(marks: torch.Tensor) -> Face:
    return Face((0, 0, 1, 1), tuple((x, y) for x, y in marks.tolist()), 1.0)


def test_alignment_undoes_scale_turn_and_shift_exactly() -> None:
    marks = _moved(1.7, 0.3, (12.0, -4.0))
    transform = alignment(marks[None])[0]
    template = torch.cat([torch.tensor(TEMPLATE), torch.ones(5, 1)], 1)
    assert torch.allclose(template @ transform.T, marks, atol=1e-4)


def test_eyes_are_27_per_cent_of_the_side_apart_so_that_hair_is_seen() -> None:
    assert (TEMPLATE[1][0] - TEMPLATE[0][0]) / SIDE == pytest.approx(0.27, abs=0.01)


def test_cut_out_brings_every_landmark_to_its_place() -> None:
    marks = _moved(1.2, -0.25, (60.0, 40.0))
    cut = cut_out(_spots(marks, 256)[None], alignment(marks[None]))[0, 0]
    for x, y in TEMPLATE:
        near = cut[int(y) - 4 : int(y) + 4, int(x) - 4 : int(x) + 4]
        assert near.max() > 0.9
    assert cut[:20].max() < 0.05


def test_a_margin_shows_the_same_middle_in_a_wider_view() -> None:
    marks = _moved(1.0, 0.1, (70.0, 60.0))
    picture = torch.rand(1, 3, 16, 16)
    picture = torch.nn.functional.interpolate(picture, (256, 256), mode="bicubic")
    narrow, wide = cut_out(picture, alignment(marks[None])), cut_out(picture, alignment(marks[None], 168, 0.25), 168)
    assert torch.allclose(narrow, wide[..., 28:140, 28:140], atol=1e-4)


def test_embedding_is_a_unit_vector_that_hardly_depends_on_the_size_of_the_photo() -> None:
    torch.manual_seed(0)
    recogniser = DemoRecogniser(DemoRecogniserNet(), torch.device("cpu"))
    marks = _moved(1.0, 0.05, (70.0, 70.0))
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12), (256, 256), mode="bicubic")[0].clamp(0, 1)
    photo = Image.fromarray((coarse.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    small = recogniser.embed(photo, _face(marks))
    large = recogniser.embed(photo.resize((1024, 1024), Image.Resampling.BICUBIC), _face(marks * 4))
    assert small.shape == (128,) and small.dtype == np.float32
    assert np.linalg.norm(small) == pytest.approx(1, abs=1e-5)
    assert float(small @ large) > 0.999


def test_grain_of_a_large_photo_is_averaged_and_not_sampled() -> None:
    marks = _moved(6.0, 0.0, (100.0, 100.0))
    grain = np.random.default_rng(0).integers(0, 2, (900, 900, 1), dtype=np.uint8).repeat(3, 2) * 255
    small, moved = _near_size(Image.fromarray(grain), tuple((x, y) for x, y in marks.tolist()))
    cut = cut_out(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float(), alignment(torch.tensor([moved])))
    assert cut[0].std() < 40  # picking single pixels would keep more than 60 of 127


def test_weights_survive_the_file_in_half_precision(tmp_path) -> None:
    net = DemoRecogniserNet().eval()
    path = tmp_path / "recogniser.safetensors"
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}, path
    )
    cuts = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.allclose(read_net(path)(cuts), net(cuts), atol=5e-3)


def test_missing_and_damaged_weights_are_told_with_their_path(tmp_path) -> None:
    path = tmp_path / "recogniser.safetensors"
    with pytest.raises(ModelError, match=r"missing.*recogniser\.safetensors"):
        read_net(path)
    path.write_bytes(b"not weights")
    with pytest.raises(ModelError, match="damaged"):
        read_net(path)
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="damaged"):
        read_net(path)
