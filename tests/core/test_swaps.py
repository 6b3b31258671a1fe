"""Thirty swaps between real (tiny) models cost no memory: what lives after the first is what lives after the last."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from headshot_ui import families
from headshot_ui import residency as residency_module
from headshot_ui.families.protocol import DenoiseRequest, RefineRequest
from headshot_ui.memory import OVERHEAD_BYTES
from headshot_ui.residency import ModelKey, Residency
from headshot_ui.restoration.demo import INFO, repaired
from headshot_ui.restoration.demo_net import DemoRestorerNet
from headshot_ui.restoration.device import NetRestorer
from headshot_ui.settings import Settings
from headshot_ui.workshop import base_key
from tests.core.fakes import write_weights
from tests.tiny_models import make_tiny_refiner, make_tiny_sdxl

SWAPS = 30
KINDS = ("base", "refiner", "restorer")
RSS_MAY_GROW = 8 * 2**20  # the allocator of the C library rounds and keeps a little

Swap = Callable[[], None]


@pytest.fixture(autouse=True)
def nothing_older() -> None:
    """What was there before a test is not counted."""
    gc.collect()
    gc.freeze()


def live_tensor_bytes() -> int:
    """Bytes of every tensor made in this test that anything still refers to, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.fixture
def folders(settings: Settings) -> tuple[Path, Path]:
    return make_tiny_sdxl(settings.models_dir / "tiny"), make_tiny_refiner(settings.models_dir / "refiner")


@pytest.fixture
def swap(settings: Settings, folders: tuple[Path, Path]) -> tuple[Residency, Swap]:
    """One round: the base draws, the refiner finishes while the base stays, the restorer repairs."""
    residency = Residency(settings)
    info = families.find_base("tiny-sdxl", settings)
    refiner = families.find_refiner(None, info, settings)
    refiner_key = ModelKey("refiner", refiner.id, refiner.title, (refiner.folder,))
    # As large as the one that ships; the file is not read here, so another file stands for its size.
    restorer_key = ModelKey("restorer", "demo", "Demo", (folders[1] / "unet",))

    def once() -> None:
        with residency.use(base_key(info), partial(families.load_base, info, settings)) as base:
            embeds = base.encode_prompts(["portrait of tok person"])
            common: dict[str, Any] = {"embeds": embeds, "negative_embeds": base.encode_prompts([""]), "seeds": [1]}
            common |= {"steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64}
            *_, drawn = base.denoise(DenoiseRequest(**common, stop_at=0.5))
            load = partial(families.load_refiner, refiner, settings)
            with residency.use(refiner_key, load) as loaded:
                *_, refined = loaded.refine(RefineRequest(**common, latents=drawn.latents, start_at=0.5))
            base.decode_latents(refined.latents)
        with residency.use(restorer_key, lambda: NetRestorer(INFO, DemoRestorerNet((8, 8)), "cpu", repaired)) as net:
            net.restore(torch.zeros(1, 3, INFO.size_px, INFO.size_px), 0.5)

    return residency, once


def rss() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)


def test_memory_stays_when_all_of_them_stay(swap: tuple[Residency, Swap]) -> None:
    residency, once = swap
    once()
    live, resident = live_tensor_bytes(), rss()
    for _ in range(SWAPS // 3):
        once()
    assert live_tensor_bytes() == live
    assert rss() - resident < RSS_MAY_GROW
    assert len(residency.resident) == 3
    residency.evict()
    assert live_tensor_bytes() < live


class Moved:
    """A small network that a residency moves and drops."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net: torch.nn.Module | None = net

    def keep(self, parts: frozenset[str]) -> None:
        assert self.net is not None
        self.net.to("cpu")

    def release(self) -> None:
        self.net = None


def test_memory_stays_when_each_makes_room_for_the_next(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    residency = Residency(settings)
    monkeypatch.setattr(residency_module, "total_ram_bytes", lambda: 1)  # nothing may stay unused
    monkeypatch.setattr(residency_module, "free_ram_bytes", lambda: OVERHEAD_BYTES + 2**30)
    keys = [ModelKey(kind, kind, kind, (settings.models_dir / f"{kind}.safetensors",)) for kind in KINDS]
    for key in keys:
        write_weights(key.files[0], {"w": ("F32", 1024 * 1024)})
    loads: list[str] = []

    def load(key: ModelKey) -> Moved:
        loads.append(key.id)
        return Moved(torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.GroupNorm(8, 1024)))

    def use(key: ModelKey) -> None:
        with residency.use(key, partial(load, key)) as moved, torch.inference_mode():
            assert moved.net is not None
            moved.net(torch.ones(4, 1024))

    use(keys[0])
    live, resident = live_tensor_bytes(), rss()
    for number in range(1, SWAPS + 1):
        use(keys[number % len(keys)])
    assert len(loads) == SWAPS + 1, "each was really dropped and loaded again"
    assert live_tensor_bytes() == live and residency.resident == (keys[0],)
    assert rss() - resident < RSS_MAY_GROW


def test_the_count_of_live_tensors_notices_one() -> None:
    before = live_tensor_bytes()
    kept = torch.zeros(1000)
    assert live_tensor_bytes() == before + 4 * len(kept)
