"""A base model, a judge and a reporter that need no weights and write down what was asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from headshot_ui.errors import Cancelled
from headshot_ui.families.fits import DenoiserWork
from headshot_ui.families.protocol import (
    Abilities,
    BaseDefaults,
    BaseInfo,
    DenoiseRequest,
    DenoiseStep,
    OtherVae,
    RefineRequest,
    RefinerFacts,
    RefinerInfo,
    TextKey,
)
from headshot_ui.likeness import Likeness
from headshot_ui.settings import Settings
from headshot_ui.store import Store

DEFAULTS = BaseDefaults(sampling_steps=6, guidance_scale=3.5)
INFO = BaseInfo("fake", "sdxl", "Fake base", Path("fake"), "Apache-2.0", "", 64, defaults=DEFAULTS)


@dataclass
class FakeBase:
    """Latents are the seed and the prompt's length; a picture is one flat colour made from them."""

    info: BaseInfo = INFO
    vocabulary: frozenset[str] | None = None  # None knows every word
    events: list[Any] = field(default_factory=list)
    expected: list[Any] = field(default_factory=list)  # how many events were before, and which parts
    asked: list[Any] = field(default_factory=list)  # to fit this work, with so many LoRAs on
    loras: tuple[tuple[Path, float], ...] = ()
    fail_in_batch: int | None = None
    other_vae: OtherVae | None = None
    text_key: TextKey | None = None
    tells_clean: bool = True  # what is behind the noise, where it stops half-way

    def unknown_words(self, text: str) -> tuple[str, ...]:
        words = text.lower().replace(",", " ").split()
        return () if self.vocabulary is None else tuple(word for word in words if word not in self.vocabulary)

    def encode_prompts(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        self.events.append(("encode", tuple(prompts)))
        return {"prompt_embeds": torch.tensor([[float(sum(map(ord, prompt)))] for prompt in prompts])}

    def keep(self, parts: frozenset[str]) -> None:
        self.events.append(("keep", *sorted(parts)))

    def fit(self, work: DenoiserWork, precision: str | None = None, under: int | None = None) -> None:
        self.asked.append((work, len(self.loras)))

    def expect(self, parts: frozenset[str], room: int) -> bool:
        self.expected.append((len(self.events), *sorted(parts)))
        return False

    def use_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        self.loras = tuple(loras)
        self.events.append(("loras", *(path.name for path, _ in loras)))

    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        self.events.append(("denoise", tuple(request.seeds), request.width, request.height))
        batch = sum(event[0] == "denoise" for event in self.events)
        strength = sum(weight for _, weight in self.loras)
        final = torch.stack(
            [
                torch.tensor([seed % 251, embed % 251, 40 * strength, request.guidance_scale])
                for seed, embed in zip(request.seeds, request.embeds["prompt_embeds"][:, 0].tolist(), strict=True)
            ]
        )[:, :, None, None].expand(-1, 4, request.height // 8, request.width // 8)
        total = FakeFamily.split_steps(self.info, request.steps, request.stop_at)[0]
        for step in range(1, total + 1):
            if batch == self.fail_in_batch and step == 2:
                raise RuntimeError("out of memory")
            half_way = self.tells_clean and step == total < request.steps
            yield DenoiseStep(step, total, final * step / request.steps, final if half_way else None)

    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        return self._pictures(latents)

    def decode_latents(self, latents: torch.Tensor) -> list[Image.Image]:
        self.events.append(("decode", len(latents)))
        return self._pictures(latents)

    def _pictures(self, latents: torch.Tensor) -> list[Image.Image]:
        size = (latents.shape[3] * 8, latents.shape[2] * 8)
        return [Image.new("RGB", size, tuple(int(v) for v in row[:3, 0, 0])) for row in latents]


REFINED_GREEN = 222
REFINER = RefinerInfo("fake-refiner", "sdxl", "Fake refiner", Path("fake-refiner"), "Apache-2.0", "", ("fake",))


@dataclass
class FakeRefiner:
    """Colours pictures green; takes 40 of 255 red from the seeds of ``spoilt``."""

    events: list[Any]
    info: RefinerInfo = REFINER
    spoilt: Sequence[int] = ()
    requests: list[RefineRequest] = field(default_factory=list)
    problem: Exception | None = None  # of opening it

    @contextmanager
    def open(self) -> Iterator[FakeRefiner]:
        self.events.append("open refiner")
        if self.problem is not None:
            raise self.problem
        yield self
        self.events.append("close refiner")

    def keep(self, parts: frozenset[str]) -> None:
        self.events.append(("refiner keeps", *sorted(parts)))

    def refine(self, request: RefineRequest) -> Iterator[DenoiseStep]:
        self.events.append("refine")
        self.requests.append(request)
        if request.start_at is not None:
            before, total = FakeFamily.split_steps(INFO, request.steps, request.start_at)
            latents = request.latents * request.steps / before
        else:
            assert request.strength is not None
            total, latents = int(request.steps * request.strength), request.latents.clone()
        latents[:, 1] = REFINED_GREEN
        for row, seed in enumerate(request.seeds):
            latents[row, 0] -= 40 if seed in self.spoilt else 0
        for step in range(1, total + 1):
            yield DenoiseStep(step, total, latents if step == total else request.latents)


@dataclass
class FakeFamily:
    """Takes the place of the real family; its refiner's weights are one small file."""

    weights: Path
    refiner: RefinerInfo | None = REFINER
    zeros: bool = True
    same_schedule: bool = True
    id: str = "sdxl"

    def bases(self, _: Settings) -> tuple[BaseInfo, ...]:
        return ()

    def misfits(self, *_: object) -> tuple[()]:
        return ()

    def abilities(self, _: BaseInfo) -> Abilities:
        return Abilities()

    def refiners(self, _: Settings) -> tuple[RefinerInfo, ...]:
        return () if self.refiner is None else (self.refiner,)

    def refiner_facts(self, _: RefinerInfo, __: BaseInfo) -> RefinerFacts:
        return RefinerFacts((self.weights,), self.zeros, self.same_schedule)

    @staticmethod
    def split_steps(_: BaseInfo, steps: int, switch: float) -> tuple[int, int]:
        before = round(steps * switch)
        return before, steps - before


@dataclass
class Reports:
    """Collects what was reported and cancels at the ``cancel_at``-th report of a stage."""

    cancel_stage: str = ""
    cancel_at: int = 0
    seen: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(
        self,
        stage: str,
        step: int,
        total: int,
        preview: Path | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        self.seen.append((stage, step, total))
        if note is not None:
            self.notes.append(note)
        if preview is not None:
            assert preview.is_file()
            self.previews.append(preview)
        if stage == self.cancel_stage and sum(s == stage for s, _, _ in self.seen) >= self.cancel_at:
            raise Cancelled


class RedJudge:
    """Likes red, which in a FakeBase's picture is the seed; refuses pictures with a seed from ``crowd``."""

    def __init__(self, crowd: Sequence[int] = ()) -> None:
        self.crowd = tuple(crowd)

    def score(self, image: Image.Image) -> Likeness:
        red = image.getpixel((0, 0))[0]
        return Likeness(red / 255, 100 * red / 255, red > 9, "several faces were found" if red in self.crowd else "")


def make_store(root: Path) -> Store:
    return Store(Settings.from_environment(root=root, device="cpu", environment={}))
