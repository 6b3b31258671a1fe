"""Enlarging: windows whose seams cannot be seen, the right network for the factor, plain enlarging without one."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from headshot_ui.errors import Cancelled, ModelError
from headshot_ui.restoration import upscale
from headshot_ui.restoration.upscale import Lanczos, RealEsrgan, load_upscaler, missing, weights, windows_of
from tests.restoration.fakes import make_settings, noise


def small_net(scale: int) -> torch.nn.Module:
    """An RRDBNet like Real-ESRGAN's with one block of few channels and random weights."""
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(scale)
    unshuffled = {2: {"in_nc": 12, "scale": 4, "shuffle_factor": 2}, 4: {"scale": 4}}[scale]
    net = ESRGAN(num_filters=8, num_blocks=1, **unshuffled).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(1.6)
        net.model[-1].bias.add_(0.5)
    return net


def put(settings, scale: int, own: int | None = None):
    path = settings.models_dir / "realesrgan" / f"RealESRGAN_x{scale}plus.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params_ema": small_net(own or scale).state_dict()}, path)
    return path


def quiet(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(
    ("height", "width", "window"), [(1, 1, 512), (300, 417, 512), (900, 450, 512), (333, 700, 256)]
)
def test_the_kept_parts_fill_the_picture_once(height, width, window):
    count = np.zeros((height, width), int)
    for seen, kept in windows_of(height, width, window):
        count[kept] += 1
        for s, k in zip(seen, kept, strict=True):
            assert s.start <= k.start and k.stop <= s.stop and s.stop - s.start <= window and s.start % 4 == 0
    assert (count == 1).all()


@pytest.mark.parametrize("scale", [2, 4])
def test_in_windows_as_in_one_piece(scale):
    picture = noise(140, 71, cells=40)
    whole = RealEsrgan(small_net(scale), "cpu", scale, scale)
    parts = RealEsrgan(small_net(scale), "cpu", scale, scale)
    parts._window = 136
    assert whole.windows(71, 140) == 1 and parts.windows(71, 140) == 8
    one, many = whole.enlarge(picture, quiet), parts.enlarge(picture, quiet)
    assert one.shape == (71 * scale, 140 * scale, 3) and one.std() > 5
    assert np.abs(one.astype(int) - many.astype(int)).max() <= 1


def test_values_are_as_the_network_knows_them():
    picture = noise(20, 16)
    with torch.inference_mode():
        x = torch.from_numpy(picture.astype(np.float32).transpose(2, 0, 1)[None] / 255)
        direct = (small_net(4)(x).clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.array_equal(RealEsrgan(small_net(4), "cpu", 4, 4).enlarge(picture, quiet), direct)


def test_the_file_of_the_factor_is_read(tmp_path):
    settings = make_settings(tmp_path)
    put(settings, 2)
    put(settings, 4)
    for factor in (2, 4):
        upscaler = load_upscaler(factor, settings)
        assert (upscaler.method, upscaler.factor, upscaler.learned, upscaler.note) == ("Real-ESRGAN", factor, True, "")
        assert upscaler.enlarge(noise(9, 7), quiet).shape == (7 * factor, 9 * factor, 3)
        upscaler.keep(frozenset({"network"}))
        upscaler.release()


def test_twice_can_be_made_by_the_network_for_four_times(tmp_path):
    settings = make_settings(tmp_path)
    put(settings, 4)
    assert missing(2, settings) == ""
    two, four = load_upscaler(2, settings), load_upscaler(4, settings)
    picture = noise(12, 10)
    large = four.enlarge(picture, quiet).astype(float)
    mean = (large[::2, ::2] + large[1::2, ::2] + large[::2, 1::2] + large[1::2, 1::2]) / 4
    assert np.abs(two.enlarge(picture, quiet) - mean).max() <= 2


def test_four_times_cannot_be_made_by_the_network_for_twice(tmp_path, caplog):
    settings = make_settings(tmp_path)
    put(settings, 2)
    assert weights(4, settings) is None
    with caplog.at_level(logging.INFO):
        upscaler = load_upscaler(4, settings)
    assert isinstance(upscaler, Lanczos) and "RealESRGAN_x4plus.pth" in upscaler.note and "https://" in upscaler.note
    assert upscaler.note in caplog.text
    picture = noise(12, 10)
    assert upscaler.enlarge(picture, quiet).shape == (40, 48, 3) and not upscaler.learned


def test_a_file_for_another_factor_or_of_another_network_is_named(tmp_path):
    settings = make_settings(tmp_path)
    path = put(settings, 4, own=2)
    with pytest.raises(ModelError, match="enlarges 2 times, not 4"):
        load_upscaler(4, settings)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="does not hold Real-ESRGAN"):
        load_upscaler(4, settings)
    path.write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"x4plus\.pth.*damaged"):
        load_upscaler(4, settings)


def test_a_cancel_between_windows_gets_through():
    upscaler = RealEsrgan(small_net(4), "cpu", 4, 4)
    upscaler._window = 100
    done = []

    def tick(number: int, total: int) -> None:
        done.append((number, total))
        if number == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        upscaler.enlarge(noise(12, 4), tick)
    assert done == [(1, 3), (2, 3)]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory")], ids=type
)
def test_smaller_windows_where_memory_runs_out(error, monkeypatch):
    sizes = []

    class Greedy(torch.nn.Module):
        def forward(self, x):
            sizes.append(max(x.shape[-2:]))
            if max(x.shape[-2:]) > 260:
                raise error
            return torch.nn.functional.interpolate(x, scale_factor=2.0)

    upscaler = RealEsrgan(Greedy(), "cpu", 2, 2)
    picture = noise(400, 300)
    assert np.array_equal(upscaler.enlarge(picture, quiet), picture.repeat(2, 0).repeat(2, 1))
    assert sizes[0] == 400 and max(sizes[1:]) == 256
    monkeypatch.setattr(upscale, "LEAST_WINDOW", 200)
    for other in (error, RuntimeError("mat1 and mat2 shapes")):
        tried = []
        with pytest.raises(type(other), match=str(other)):
            RealEsrgan(Refusing(other, tried), "cpu", 2, 2).enlarge(picture, quiet)
        assert len(tried) == (2 if other is error else 1), "there is a least window, and nothing else is tried again"


class Refusing(torch.nn.Module):
    def __init__(self, error, tried):
        super().__init__()
        self.error, self.tried = error, tried

    def forward(self, x):
        self.tried.append(x.shape)
        raise self.error
