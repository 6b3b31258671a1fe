"""The outline of a face: facexlib's network without its downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headshot_ui.errors import ModelError
from headshot_ui.restoration.parser import (
    NOT_FACE,
    FaceParser,
    build_net,
    load_parser,
    missing,
    soft_outline,
    weights,
)
from tests.restoration.fakes import make_settings, noise


class Halves(torch.nn.Module):
    """The left half is skin (1), the right half background (0); notes what it saw."""

    def forward(self, x):
        self.seen = x
        scores = torch.zeros(1, 19, 512, 512)
        scores[:, 1, :, :256] = 1
        scores[:, 0, :, 256:] = 1
        return scores, x


def test_a_missing_file_is_one_sentence(tmp_path):
    settings = make_settings(tmp_path)
    sentence = missing(settings)
    assert str(weights(settings)) in sentence and "https://github.com/xinntao/facexlib" in sentence
    with pytest.raises(ModelError) as raised:
        load_parser(settings)
    assert str(raised.value) == sentence


def test_the_mask_is_the_face_at_the_size_of_the_restorer():
    net = Halves()
    face = np.full((192, 192, 3), 255, np.uint8)
    face[:, 96:] = 0
    mask = FaceParser(net, "cpu").mask(face)
    assert mask.shape == (192, 192) and mask.dtype == np.float32
    assert mask[96, 40] > 0.99 and mask[96, 150] < 0.01 and 0.4 < mask[96, 96] < 0.6
    assert mask[1].max() == 0 and mask[:, 1].max() == 0  # nothing at the very edge
    assert net.seen.shape == (1, 3, 512, 512) and net.seen.min() == -1 and net.seen.max() == 1


def test_hat_necklace_neck_and_clothes_are_left():
    names = (
        "background skin nose glasses eye eye brow brow ear ear mouth lip lip hair hat earring necklace neck clothes"
    )
    left = {"background", "hat", "necklace", "neck", "clothes"}
    assert {name for number, name in enumerate(names.split()) if number in NOT_FACE} == left
    halves = np.repeat([[13, 14]], 512, axis=0).repeat(256, axis=1)
    mask = soft_outline(halves)
    assert mask[256, 100] > 0.999 and mask[256, 400] < 0.001


@pytest.fixture
def place(tmp_path) -> Path:
    path = weights(make_settings(tmp_path))
    path.parent.mkdir(parents=True)
    return path


def test_the_network_is_read_from_a_file(place, tmp_path):
    torch.manual_seed(0)
    state = build_net().state_dict()
    state["out_mask_conv.conv2d.bias"] += 7
    torch.save(state, place)
    read = load_parser(make_settings(tmp_path))._held._present().state_dict()
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_a_foreign_or_damaged_file_is_named(place, tmp_path):
    torch.save({"a": torch.zeros(1)}, place)
    with pytest.raises(ModelError, match=r"parsenet\.pth does not hold"):
        load_parser(make_settings(tmp_path))
    place.write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"parsenet\.pth is damaged"):
        load_parser(make_settings(tmp_path))


@pytest.mark.slow
def test_the_real_network_with_random_weights_makes_a_mask():
    parser = FaceParser(build_net(), "cpu")
    parser.keep(frozenset({"network"}))
    mask = parser.mask(noise(192, 192))
    assert mask.shape == (192, 192) and mask.min() >= 0 and mask.max() <= 1
    parser.release()
