from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from headshot_ui.downloads import access, catalogue, fetch
from headshot_ui.downloads.runner import DownloadResult, run_download
from headshot_ui.errors import Cancelled
from headshot_ui.settings import Settings
from headshot_ui.specs import DownloadSpec
from tests.downloads.servers import COMMIT, World, running, sha256

MB = 2**20
WEIGHTS = random.Random(1).randbytes(3 * MB + 17)
NETWORK = random.Random(2).randbytes(2 * MB + 5)
CONFIG = b'{"_class_name": "UNet2DConditionModel"}\n'
INDEX = b'{"_class_name": "StableDiffusionXLPipeline"}\n'
REPO, RELEASE = "someone/model", "someone/tool"


def hub_path(name: str) -> str:
    return f"/{REPO}/resolve/{COMMIT}/{name}"


def release_path(name: str) -> str:
    return f"/{RELEASE}/releases/download/v1/{name}"


def file_of(remote: str, place: str, content: bytes, pinned: bool = True, exact: bool = True) -> dict[str, Any]:
    return {"remote": remote, "place": place, "size": len(content) if exact else 1000, "size_is_exact": exact,
            "sha256": sha256(content) if pinned else None}  # fmt: skip


def entry_data(entry_id: str, kind: str, files: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    source = (
        {"release": RELEASE, "tag": "v1"} if kind != "base" and kind != "refiner" else {"hub": REPO, "revision": COMMIT}
    )
    return {"id": entry_id, "kind": kind, "title": entry_id.title(), "licence": "MIT", "licence_page": "https://x.org/l",
            "note": "A model.", "source": source, "files": files, **more}  # fmt: skip


BASE = entry_data(
    "base", "base",
    [file_of("unet/w.safetensors", "base/unet/w.safetensors", WEIGHTS),
     file_of("unet/config.json", "base/unet/config.json", CONFIG),
     file_of("model_index.json", "base/model_index.json", INDEX)],
    written={"base/base.json": {"id": "base"}},
)  # fmt: skip
UNPINNED = entry_data(
    "unpinned", "refiner",
    [file_of("unet/w.safetensors", "unpinned/unet/w.safetensors", WEIGHTS, False, False),
     file_of("unet/config.json", "unpinned/unet/config.json", CONFIG, False, False)],
    written={"unpinned/refiner.json": {"id": "unpinned"}},
)  # fmt: skip
NET = entry_data("net", "parser", [file_of("net.pth", "net/net.pth", NETWORK)])
LOOSE = entry_data("loose", "parser", [file_of("net.pth", "loose/net.pth", NETWORK, pinned=False)])
TWIN = entry_data(  # shares its weights with "base"
    "twin", "base",
    [file_of("unet/w.safetensors", "twin/unet/w.safetensors", WEIGHTS),
     file_of("model_index.json", "twin/model_index.json", INDEX)],
    written={"twin/base.json": {"id": "twin"}},
)  # fmt: skip
LICENSED = entry_data(
    "licensed", "base", [file_of("model_index.json", "licensed/model_index.json", INDEX)], non_commercial=True,
    terms="For non-commercial use only; its licence is at https://x.org/l.", written={"licensed/base.json": {}},
)  # fmt: skip
CODEFORMER = entry_data(
    "codeformer", "restorer", [file_of("net.pth", "codeformer/codeformer.pth", NETWORK)], non_commercial=True
)
ENTRIES = (BASE, UNPINNED, NET, LOOSE, CODEFORMER, TWIN, LICENSED)


@dataclass
class Said:
    """A reporter that remembers; ``cancel_at`` (stage words, step) raises Cancelled from there on."""

    cancel_at: tuple[str, int] | None = None
    lines: list[tuple[str, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    on_line: Callable[[str, int], None] = lambda stage, step: None

    def __call__(
        self, stage: str, step: int, total: int, preview: Any = None, metrics: Any = None, note: str | None = None
    ) -> None:
        self.lines.append((stage, step, total))
        if note:
            self.notes.append(note)
        self.on_line(stage, step)
        if self.cancel_at and stage.startswith(self.cancel_at[0]) and step >= self.cancel_at[1]:
            raise Cancelled


@dataclass
class Place:
    """Settings, servers, and the way to download."""

    settings: Settings
    world: World
    cache: Path

    def path(self, place: str) -> Path:
        return self.settings.models_dir / place

    def get(self, *entries: str, said: Said | None = None, check_only: bool = False) -> DownloadResult:
        return run_download(DownloadSpec(entries, check_only), self.settings, said or Said())

    def whole(self, place: str, content: bytes) -> bool:
        return self.path(place).is_file() and self.path(place).read_bytes() == content

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.settings.models_dir.rglob("*.part*"))


def hub_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """As HF_ENDPOINT would, had it been set before huggingface_hub was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def small_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    for number, data in enumerate(ENTRIES):
        (folder / f"{number}.json").write_text(json.dumps(data), encoding="utf-8")
    entries = catalogue.load_catalogue(folder)
    monkeypatch.setattr(catalogue, "load_catalogue", lambda folder=None: entries)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Both servers; huggingface_hub believes that one of them is the hub. No real waiting between tries."""
    with running() as world:
        world.files |= {
            hub_path("unet/w.safetensors"): WEIGHTS, hub_path("unet/config.json"): CONFIG,
            hub_path("model_index.json"): INDEX, release_path("net.pth"): NETWORK,
        }  # fmt: skip
        hub_at(monkeypatch, world.address)
        monkeypatch.setattr(access, "HUBS", frozenset({world.address}))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hub" / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "hub" / "stored_tokens"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield world


@pytest.fixture
def place(tmp_path: Path, small_catalogue: None, online: World) -> Place:
    settings = Settings.from_environment(
        models_dir=tmp_path / "models", outputs_dir=tmp_path / "outputs", device="cpu",
        environment={"HEADSHOT_UI_RELEASE_MIRROR": f"{online.address}/"},
    )  # fmt: skip
    return Place(settings, online, tmp_path / "hub-cache")
