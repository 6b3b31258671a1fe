"""Fast drawing with FLUX.1: without a threshold exact, with one what diffusers' first-block cache draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui import families
from headshot_ui.families.fits import DenoiserWork
from headshot_ui.families.flux_parts import denoise, first_block
from headshot_ui.families.flux_parts.choosing import Chosen
from headshot_ui.families.flux_parts.first_block import FewerPasses
from headshot_ui.families.flux_parts.fitting import Fit
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from headshot_ui.settings import Settings
from tests.families.flux.conftest import pipeline_of

PROMPTS = ["portrait of tok person", "photo of tok person, smile"]
STEPS = 8


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FewerPasses]]:
    """Those that are made in the test."""
    found: list[FewerPasses] = []
    of = FewerPasses.of

    def noted(*given: Any) -> FewerPasses:
        found.append(of(*given))
        return found[-1]

    monkeypatch.setattr(FewerPasses, "of", noted)
    yield found


def request_of(base: LoadedBase, count: int = 1, **more: Any) -> DenoiseRequest:
    embeds = base.encode_prompts(PROMPTS[:count])
    return DenoiseRequest(embeds, embeds, range(3, 3 + count), STEPS, 3.5, 64, 64, **more)


def drawn(base: LoadedBase, request: DenoiseRequest) -> torch.Tensor:
    *_, last = base.denoise(request)
    return last.latents


def test_a_threshold_of_nothing_is_exact(tiny: LoadedBase, made: list[FewerPasses], monkeypatch: Any) -> None:
    """Bit for bit: cut in two, a pass is the same pass."""
    exact = drawn(tiny, request_of(tiny))
    assert not made
    monkeypatch.setattr(first_block.FewerPasses, "_is_small", lambda *_: False)
    assert torch.equal(drawn(tiny, request_of(tiny, reuse_below=1.0)), exact)
    assert made[0].reused == 0
    monkeypatch.undo()
    step = made[0].step
    assert replace(made[0], threshold=0.0, known={}).step is step
    again = FewerPasses.of(step, 0.0, None)
    again.known[0] = first_block._Known(torch.ones(1), torch.ones(1))
    assert not again._is_small(again.known[0], torch.ones(1))
    assert not again._is_small(again.known[0], torch.full((1,), torch.nan))


@pytest.mark.parametrize("threshold", [0.25, 0.35])
def test_what_diffusers_first_block_cache_draws(
    threshold: float, tiny: LoadedBase, models_dir: Path, made: list[FewerPasses]
) -> None:
    from diffusers import FirstBlockCacheConfig

    exact = drawn(tiny, request_of(tiny))
    ours = drawn(tiny, request_of(tiny, reuse_below=threshold))
    assert 0 < made[0].reused < STEPS - 1
    pipeline = pipeline_of(models_dir / "dev")
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    packed = pipeline(
        prompt=PROMPTS[0], height=64, width=64, num_inference_steps=STEPS, guidance_scale=3.5,
        generator=torch.Generator().manual_seed(3), max_sequence_length=48, output_type="latent",
    ).images  # fmt: skip
    theirs = pipeline._unpack_latents(packed, 64, 64, 8)
    assert (ours - theirs).abs().max() < 1e-5 < (ours - exact).abs().max()


def test_the_same_seed_gives_the_same_picture_in_any_batch(tiny: LoadedBase, made: list[FewerPasses]) -> None:
    together = drawn(tiny, request_of(tiny, 2, reuse_below=0.3))
    first = drawn(tiny, request_of(tiny, 1, reuse_below=0.3))
    assert torch.equal(together[:1], first) and made[0].reused > made[1].reused > 0


def test_each_piece_is_recorded_by_itself(tiny: LoadedBase) -> None:
    """A card can repeat them: the decision, which looks at a number, is in none of them."""
    recorded: list[Any] = []
    calls: list[int] = []

    def recorder(step: Any, module: torch.nn.Module) -> Any:
        recorded.append((step, module))

        def replayed(*inputs: torch.Tensor) -> Any:
            calls.append(len(inputs))
            return tuple(output.clone() for output in step(*(tensor.clone() for tensor in inputs)))

        return replayed

    plain = drawn(tiny, request_of(tiny, reuse_below=0.3))
    assert torch.equal(drawn(tiny, request_of(tiny, reuse_below=0.3, recorder=recorder)), plain)
    assert len(recorded) == 3 and len({step for step, _ in recorded}) == 3 and len(calls) == 2 * STEPS
    again: list[Any] = [type(step)(step.step) for step, _ in recorded]
    assert again == [step for step, _ in recorded], "a second picture repeats what was recorded for the first"


@pytest.mark.parametrize("streamed", [0, 2])
def test_without_modulation_layers_and_with_blocks_that_travel(
    streamed: int, settings: Settings, tiny: LoadedBase, made: list[FewerPasses]
) -> None:
    """Rows stand for the layers in every piece. Blocks that travel come only in whole passes: those are exact."""
    fit = Fit(False, True, streamed, 3, 0, 0, False)
    base = LoadedFlux.read(families.find_base("tiny-flux", settings), settings, lambda *_: Chosen(fit))
    base.fit(DenoiserWork(None, 64, 64, 1, STEPS))
    wanted = drawn(tiny, request_of(tiny, reuse_below=0.0 if streamed else 0.3))
    found = drawn(base, request_of(base, reuse_below=0.3))
    assert torch.equal(found, wanted) and len(made) == (0 if streamed else 2)
    base.release()


def test_exact_drawing_knows_nothing_of_it(tiny: LoadedBase, made: list[FewerPasses]) -> None:
    drawn(tiny, request_of(tiny))
    assert not made and DenoiseRequest.reuse_below == 0.0 and denoise.FewerPasses is FewerPasses
