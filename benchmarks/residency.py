"""Thirty swaps between base, refiner and restorer through the program's own residency, measured.

    python benchmarks/residency.py --size full --device cuda --cap 8
    python benchmarks/residency.py --size tiny --device cpu

Modules are those of SDXL's base and refiner and of CodeFormer in their true shapes (``full``) or shrunk (``tiny``),
with random weights made in place: no file is needed. One round draws one step with the base, refines one step while
the base stays in memory, decodes, and repairs a face. Prints one JSON object; ``ok`` is true when memory after every
round equals that after the first and ``--cap`` was never exceeded. The exit code says the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from headshot_ui.families.protocol import BaseInfo, DenoiseRequest, RefineRequest, RefinerInfo
from headshot_ui.families.sdxl_parts.files import published
from headshot_ui.families.sdxl_parts.load import SdxlModules
from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl
from headshot_ui.families.sdxl_parts.refiner import LoadedSdxlRefiner
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.prove.random_models import BASE_PARTS, SIZES, build_part, config_of
from headshot_ui.residency import ModelKey, Residency
from headshot_ui.restoration import codeformer, demo
from headshot_ui.restoration.device import NetRestorer
from headshot_ui.restoration.protocol import RestorerInfo
from headshot_ui.settings import Settings

STEPS, SWITCH = 2, 0.5  # one step by the base, one by the refiner
RSS_MAY_GROW = 64 * 2**20
RESTORERS = {"full": codeformer, "tiny": demo}


# --- modules with random weights ----------------------------------------------------------------------
def filled(make: Callable[[], torch.nn.Module], dtype: torch.dtype, device: str) -> torch.nn.Module:
    """The module of ``make`` in ``dtype`` with random weights, left in main memory. Never there twice."""
    with torch.device("meta"):
        module = make().to(dtype)
    module = module.to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and device == "cuda":
            tensor.data.normal_(0, 0.02)
        elif tensor.is_floating_point():
            tensor.data.fill_(0.01)  # billions of random numbers would take minutes on a CPU
        else:
            tensor.data.zero_()
    return module.to("cpu").requires_grad_(False).eval()


def restorer_net(info: RestorerInfo) -> torch.nn.Module:
    """CodeFormer, which cannot be made small, or the demo's own network."""
    if info.demo:
        from headshot_ui.restoration.demo_net import DemoRestorerNet

        return DemoRestorerNet()
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    module: torch.nn.Module = CodeFormer()
    return module


def schedule(model: str) -> dict[str, Any]:
    return read_json_file(published(model) / "scheduler" / "scheduler_config.json")


class Models:
    """Keys and loaders of the three models. Their files have headers only, so that the budget knows their sizes."""

    def __init__(self, size: str, settings: Settings, folder: Path) -> None:
        self._size, self._settings, self._folder = size, settings, folder
        self._dtype = getattr(torch, settings.dtype)
        with torch.device("meta"):
            self.parts = {
                "base": {part: build_part("base", part, size) for part in BASE_PARTS},
                "refiner": {"unet": build_part("refiner", "unet", size)},
                "restorer": {"net": restorer_net(RESTORERS[size].INFO)},
            }
        for name, parts in self.parts.items():
            for part, module in parts.items():
                write_header(folder / name / part / "x.safetensors", sum(p.numel() for p in module.parameters()))

    def key(self, name: str) -> ModelKey:
        return ModelKey(name, name, name.title(), (self._folder / name,))

    def base(self) -> LoadedSdxl:
        info = BaseInfo("base", "sdxl", "Base", self._folder / "base", "", "", SIZES[self._size].size_px)
        unet, vae, *encoders = (self._filled("base", part) for part in BASE_PARTS)
        modules = SdxlModules(unet, vae, tuple(encoders), (None, None), schedule("base"), True)
        return LoadedSdxl(info, modules, self._settings.device)

    def refiner(self) -> LoadedSdxlRefiner:
        info = RefinerInfo("refiner", "sdxl", "Refiner", self._folder / "refiner", "", "")
        net = self._filled("refiner", "unet")
        return LoadedSdxlRefiner(info, net, schedule("refiner"), self._settings.device)

    def restorer(self) -> NetRestorer:
        kind = RESTORERS[self._size]
        net = filled(lambda: restorer_net(kind.INFO), torch.float32, self._settings.device)
        return NetRestorer(kind.INFO, net, self._settings.device, kind.repaired)

    def _filled(self, model: str, part: str) -> torch.nn.Module:
        return filled(lambda: build_part(model, part, self._size), self._dtype, self._settings.device)


def write_header(path: Path, numbers: int) -> None:
    """A safetensors file of one tensor whose data is a hole: it takes no room."""
    entry = {"w": {"dtype": "F16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}
    header = json.dumps(entry).encode()
    path.parent.mkdir(parents=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)


# --- one round ------------------------------------------------------------------------------------------
def one_round(residency: Residency, models: Models, size: str) -> None:
    """Base → refiner inside it → decoding by the base → restorer."""
    generator = torch.Generator().manual_seed(0)
    both = config_of("base", "unet", size)["cross_attention_dim"]
    pooled = config_of("base", "text_encoder_2", size)["projection_dim"]
    widths = {"prompt_embeds": (1, 77, both), "pooled_prompt_embeds": (1, pooled)}
    embeds = {name: torch.randn(*shape, generator=generator) for name, shape in widths.items()}
    common: dict[str, Any] = {"embeds": embeds, "negative_embeds": embeds, "seeds": [0], "steps": STEPS}
    common |= {"guidance_scale": 5.0, "height": SIZES[size].size_px, "width": SIZES[size].size_px}
    with residency.use(models.key("base"), models.base) as base:
        base.keep(frozenset({"denoiser"}))
        *_, drawn = base.denoise(DenoiseRequest(**common, stop_at=SWITCH))
        with residency.use(models.key("refiner"), models.refiner) as refiner:
            *_, refined = refiner.refine(RefineRequest(**common, latents=drawn.latents.cpu(), start_at=SWITCH))
        base.keep(frozenset({"vae"}))
        base.decode_latents(torch.nan_to_num(refined.latents.float()).cpu())
        base.keep(frozenset())
    with residency.use(models.key("restorer"), models.restorer) as restorer:
        restorer.keep(frozenset({"network"}))
        side = restorer.info.size_px
        restorer.restore(torch.zeros(1, 3, side, side), 0.5)
        restorer.keep(frozenset())


# --- what is measured -------------------------------------------------------------------------------------
def memory_now(device: str) -> dict[str, int]:
    """Bytes that have to be the same after every round."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
    tensors = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type != "meta"
    }
    return {"live_tensors": sum(storages.values())}


@contextmanager
def timed(device: str, seconds: list[float]) -> Iterator[None]:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    yield
    if device == "cuda":
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - began)


def swap_seconds(models: Models, device: str) -> dict[str, Any]:
    """One way of a refiner's UNet onto the card and off it: pageable memory, and pinned memory that stays behind."""
    if device != "cuda":
        return {}
    refiner = models.refiner()
    size = sum(p.numel() * p.element_size() for p in refiner.unet.parameters())
    there: list[float] = []
    back: list[float] = []
    for _ in range(3):
        with timed(device, there):
            refiner.keep(frozenset({"denoiser"}))
        with timed(device, back):
            refiner.keep(frozenset())
    pinning: list[float] = []
    with timed(device, pinning):
        masters = {name: p.data.pin_memory() for name, p in refiner.unet.named_parameters()}
    pinned_there: list[float] = []
    pinned_back: list[float] = []
    for _ in range(3):
        with timed(device, pinned_there):
            for name, p in refiner.unet.named_parameters():
                p.data = masters[name].to(device, non_blocking=True)
        with timed(device, pinned_back):  # frozen weights have not changed: nothing is copied
            for name, p in refiner.unet.named_parameters():
                p.data = masters[name]
    refiner.release()
    return {
        "bytes": size, "pageable_there": min(there), "pageable_back": min(back), "pinning": pinning[0],
        "pinned_there": min(pinned_there), "pinned_back": min(pinned_back),
    }  # fmt: skip


def measure(size: str, settings: Settings, swaps: int) -> dict[str, Any]:
    device = settings.device
    began = time.perf_counter()
    context = used_on_card(device)
    with tempfile.TemporaryDirectory() as folder:
        models = Models(size, settings, Path(folder))
        residency = Residency(settings)
        one_round(residency, models, size)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        history, rounds, most_used = [memory_now(device)], [], 0
        rss = psutil.Process().memory_info().rss
        for _ in range(-(-swaps // 3)):
            with timed(device, rounds):
                one_round(residency, models, size)
            most_used = max(most_used, used_on_card(device))
            history.append(memory_now(device))
        growth = psutil.Process().memory_info().rss - rss
        peaks = {"reserved": torch.cuda.max_memory_reserved(), "allocated": torch.cuda.max_memory_allocated()} \
            if device == "cuda" else {}  # fmt: skip
        stayed = [key.id for key in residency.resident]
        residency.evict()
        after = memory_now(device)
        swapping = swap_seconds(models, device)
    limit = settings.vram_limit_bytes
    same = all(now == history[0] for now in history)
    within = not peaks or limit is None or peaks["reserved"] + CONTEXT_BYTES <= limit
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device, "dtype": settings.dtype,
        "swaps": 3 * len(rounds), "after_first": history[0], "after_last": history[-1], "same_after_every_round": same,
        "rss_growth_bytes": growth, "stayed_in_memory": stayed, "after_evicting_all": after,
        "cap_bytes": limit, "peak_bytes": peaks, "within_cap": within,
        "context_bytes": context, "most_used_on_card_bytes": most_used,  # both include other programs on the card
        "seconds_per_round": sorted(rounds)[len(rounds) // 2], "swap_seconds": swapping,
        "seconds": time.perf_counter() - began,
        "ok": same and within and (device == "cuda" or growth < RSS_MAY_GROW),
    }  # fmt: skip


def used_on_card(device: str) -> int:
    """Bytes in use on the whole card beside what torch has set aside and does not use."""
    if device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cap", type=float, metavar="GB", help="most graphics memory to use, context included")
    parser.add_argument("--swaps", type=int, default=30)
    args = parser.parse_args(argv)
    limit = None if args.cap is None else int(args.cap * 2**30)
    settings = Settings.from_environment(device=args.device, vram_limit=limit, environment={})
    warnings.simplefilter("ignore")
    with quiet(), torch.no_grad():  # not inference_mode: its tensors are copied back from the card every time
        found = measure(args.size, settings, args.swaps)
    print(json.dumps({"benchmark": "residency", "size": args.size, **found}))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
