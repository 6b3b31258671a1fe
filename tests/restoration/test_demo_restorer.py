"""The demo restorer's file and values, with random weights; what it learned is tested with the demo models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headshot_ui.errors import ModelError
from headshot_ui.restoration.demo import INFO, RESTORER
from headshot_ui.restoration.demo_net import SIDE, DemoRestorerNet
from tests.restoration.fakes import make_settings


@pytest.fixture
def place(tmp_path) -> Path:
    torch.manual_seed(1)
    path = RESTORER.weights(make_settings(tmp_path))
    path.parent.mkdir(parents=True)
    save_file({name: value.half() for name, value in DemoRestorerNet().state_dict().items()}, path)
    return path


def test_it_repairs_faces_of_its_size_by_the_weight(place, tmp_path):
    settings = make_settings(tmp_path)
    assert RESTORER.missing(settings) == "" and INFO.size_px == SIDE
    restorer = RESTORER.load(settings)
    faces = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    repairs, keeps = restorer.restore(faces, 0.0), restorer.restore(faces, 1.0)
    assert repairs.shape == faces.shape and repairs.abs().max() <= 1
    assert (repairs - keeps).abs().mean() > 1e-4
    from headshot_ui.restoration.demo_net import read_net

    with torch.inference_mode():
        assert torch.equal(read_net(place)(faces, 1.0), keeps)


def test_moving_and_dropping_it(place, tmp_path):
    restorer = RESTORER.load(make_settings(tmp_path))
    restorer.keep(frozenset({"denoiser"}))
    restorer.keep(frozenset())
    restorer.restore(torch.zeros(1, 3, SIDE, SIDE), 0.5)
    restorer.release()
    with pytest.raises(RuntimeError, match="released"):
        restorer.restore(torch.zeros(1, 3, SIDE, SIDE), 0.5)


def test_a_damaged_file_is_named(place, tmp_path):
    place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        RESTORER.load(make_settings(tmp_path))
