"""The recogniser and its gallery of strangers are found on disk, and damage is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.likeness import GALLERY_KEY, load_gallery, load_recogniser
from headshot_ui.settings import Settings


def settings(root: Path) -> Settings:
    return Settings.from_environment(root=root, device="cpu", environment={})


def base(demo: bool) -> BaseInfo:
    return BaseInfo("tiny", "sdxl", "Tiny", Path("tiny"), "Apache-2.0", "", 64, demo=demo)


class Named:
    id, note = "demo", ""


def gallery_path(root: Path) -> Path:
    path = root / "models" / "demo" / "recogniser" / "gallery.safetensors"
    path.parent.mkdir(parents=True)
    return path


def test_the_demo_recogniser_serves_demo_bases(tmp_path: Path):
    from safetensors.torch import save_file

    from headshot_ui.recognisers.demo import DemoRecogniserNet

    weights = gallery_path(tmp_path).with_name("recogniser.safetensors")
    save_file(DemoRecogniserNet().state_dict(), weights)
    assert load_recogniser(settings(tmp_path), base(demo=True)).id == "demo"
    with pytest.raises(ModelError, match="arcface"):
        load_recogniser(settings(tmp_path), base(demo=False))


def test_without_weights_the_place_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="recogniser.safetensors"):
        load_recogniser(settings(tmp_path), base(demo=True))


def test_the_gallery_lies_beside_the_weights_and_is_unit_norm(tmp_path: Path):
    from safetensors.numpy import save_file

    assert load_gallery(settings(tmp_path), Named()) is None
    vectors = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    save_file({GALLERY_KEY: vectors}, gallery_path(tmp_path))
    loaded = load_gallery(settings(tmp_path), Named())
    assert loaded.dtype == np.float32
    assert np.linalg.norm(loaded, axis=1) == pytest.approx(1)
    assert (loaded * vectors).sum(1) == pytest.approx(np.linalg.norm(vectors, axis=1))


@pytest.mark.parametrize("content", [b"nothing", None])
def test_a_damaged_gallery_is_named(tmp_path: Path, content: bytes | None):
    from safetensors.numpy import save_file

    path = gallery_path(tmp_path)
    if content is None:
        save_file({"others": np.zeros((2, 3), np.float32)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="gallery.safetensors"):
        load_gallery(settings(tmp_path), Named())
