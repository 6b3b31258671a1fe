"""CodeFormer: the weight reaches its network, values are as it was trained with, bad files are refused.

A narrow network made of the same classes stands for the 94 million parameters, which take 15 seconds a face here.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from headshot_ui.errors import ModelError
from headshot_ui.restoration import licence
from headshot_ui.restoration.codeformer import INFO, RESTORER, SIDE, read_net, repaired
from headshot_ui.restoration.device import NetRestorer
from headshot_ui.restoration.runner import repair_face
from tests.restoration.fakes import make_settings, noise


def narrow_net() -> torch.nn.Module:
    """CodeFormer with a slim encoder and decoder; the way through it is untouched."""
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer
    from spandrel_extra_arches.architectures.CodeFormer.__arch import codeformer as arch

    torch.manual_seed(0)
    net = CodeFormer(dim_embd=32, n_head=2, n_layers=1, codebook_size=16, connect_list=["32"])
    net.encoder = arch.Encoder(3, 32, 256, [1] * 6, 2, 512, [16])
    net.generator = arch.Generator(32, [1] * 6, 2, 512, [16], 256)
    net.fuse_convs_dict["32"] = arch.Fuse_sft_block(32, 32)
    return net.eval()


class Watched(torch.nn.Module):
    """Notes how it is called and gives its input back, moved by the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, dict[str, object]]] = []

    def forward(self, x, **words):
        self.calls.append((x, words))
        return x * 0.5 + 0.25, None


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return narrow_net()


@pytest.fixture(scope="module")
def face() -> torch.Tensor:
    return torch.from_numpy(noise(SIDE, SIDE, cells=40).transpose(2, 0, 1)[None].astype(np.float32)) / 127.5 - 1


def restorer_of(net) -> NetRestorer:
    return NetRestorer(INFO, net, "cpu", repaired)


def test_the_weight_and_the_colours_reach_the_network_by_their_true_names():
    net = Watched()
    restorer_of(net).restore(torch.zeros(2, 3, SIDE, SIDE), 0.7)
    ((x, words),) = net.calls
    assert words == {"weight": 0.7, "adain": True} and x.shape == (2, 3, SIDE, SIDE)


def test_the_weight_changes_the_picture_as_in_the_module_itself(net, face):
    restorer = restorer_of(net)
    with torch.inference_mode():
        direct = net(face, weight=1.0, adain=True)[0].clamp(-1, 1)
    keeps, repairs = restorer.restore(face, 1.0), restorer.restore(face, 0.0)
    assert torch.equal(keeps, direct) and keeps.dtype == torch.float32
    assert (keeps - repairs).abs().mean() > 0.01
    assert keeps.min() >= -1 and keeps.max() <= 1


def test_pixels_go_in_as_minus_one_to_one_and_come_back_as_levels():
    net = Watched()
    levels = np.zeros((SIDE, SIDE, 3), np.uint8)
    levels[0, 0], levels[0, 1] = (255, 0, 127), (255, 255, 255)
    back = repair_face(restorer_of(net), levels, 0.5)
    x = net.calls[0][0]
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([1.0, -1.0, 127 / 127.5 - 1]))  # red, green, blue
    # -1 … 1 became -0.25 … 0.75, that is 96 … 223
    assert back[0, 0].tolist() == [223, 96, 159] and back[5, 5].tolist() == [96, 96, 96]


def test_half_precision_is_never_used():
    restorer = restorer_of(torch.nn.Conv2d(3, 3, 1).half())
    assert {p.dtype for p in restorer._held._present().parameters()} == {torch.float32}


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="512"):
        restorer_of(Watched()).restore(torch.zeros(1, 3, 256, 256), 0.5)


def full_state(save) -> None:
    """Every tensor of the full network by name and shape; all numbers of a tensor are one, so that files are small."""
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in CodeFormer().state_dict().items()}
    save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()})


@pytest.fixture
def place(tmp_path) -> Path:
    settings = make_settings(tmp_path)
    path = settings.models_dir / "codeformer" / "codeformer.pth"
    path.parent.mkdir(parents=True)
    licence.accept(settings, "codeformer")
    return path


def test_the_released_file_s_layout_is_read(place):
    full_state(lambda state: torch.save({"params_ema": state}, place))
    net = read_net(place)
    assert sum(p.numel() for p in net.parameters()) == 94_112_707
    assert net.connect_list == ["32", "64", "128", "256"]


def test_twice_in_one_process(place):
    """Adding an architecture to spandrel's own registry raises the second time."""
    full_state(lambda state: torch.save(state, place))
    read_net(place)
    read_net(place)


class Exploit:
    def __reduce__(self):
        return (print, ("run from a file",))


def test_nothing_but_tensors_is_taken_from_a_pth(place, capsys):
    place.write_bytes(pickle.dumps({"params_ema": Exploit()}))
    torch.save({"params_ema": Exploit()}, place)
    with pytest.raises(ModelError, match="damaged"):
        read_net(place)
    assert "run from a file" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a network", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(place, content):
    place.write_bytes(content)
    with pytest.raises(ModelError, match=r"codeformer\.pth.*damaged"):
        RESTORER.load(make_settings(place.parents[2]))


def test_a_foreign_network_is_named(place):
    torch.save({"conv.weight": torch.zeros(3, 3)}, place)
    with pytest.raises(ModelError, match="does not hold CodeFormer"):
        read_net(place)


def test_a_file_without_a_layer_is_named(place):
    def save(state):
        state.pop("generator.blocks.5.conv1.weight", None)
        state.pop("quantize.embedding.weight")
        torch.save(state, place)

    full_state(save)
    with pytest.raises(ModelError, match="does not hold CodeFormer"):
        read_net(place)


@pytest.mark.slow
def test_the_full_network_with_random_weights_repairs_a_face(place, face):
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    torch.manual_seed(0)
    torch.save(CodeFormer().state_dict(), place)
    restorer = RESTORER.load(make_settings(place.parents[2]))
    out = restorer.restore(face, 0.5)
    assert out.shape == face.shape and out.isfinite().all() and out.std() > 0.01
