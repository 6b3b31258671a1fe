"""Samples made while training: by recorded steps where there can be some, and what the LoRA's file draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui import families
from headshot_ui.capture import Graphs
from headshot_ui.dataset.types import Dataset
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from headshot_ui.settings import Settings
from headshot_ui.training import drawing
from headshot_ui.training.cache import encode_texts
from tests.training.conftest import Listener
from tests.training.test_capture import steps, trainer_for, two_shapes

__all__ = ["two_shapes"]  # a fixture

PROMPT = "portrait of tok person"


class Replayed:
    """In the place of a CUDA graph: counts, and does what was recorded."""

    def __init__(self, step: Any, inputs: Any, pool: Any = None, warm_ups: int = 1) -> None:
        self.step, self.count = step, 0

    def replay(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.count += 1
        return tuple(output.clone() for output in self.step(*inputs))


def test_a_sample_is_drawn_by_recorded_steps_which_are_gone_before_the_vae(
    loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = encode_texts(loaded, ["", PROMPT], Listener())
    loaded.add_trainable_lora(2, 2.0, 0)
    made: list[Graphs] = []
    replays: list[Replayed] = []

    def captured(*given: Any, **named: Any) -> Replayed:
        replays.append(Replayed(*given, **named))
        return replays[-1]

    @contextmanager
    def recording(device: str) -> Iterator[Graphs]:
        assert device == "cpu"
        made.append(Graphs("cuda", captured))  # as on a card
        try:
            yield made[-1]
        finally:
            assert len(made[-1]) == 1
            made[-1].drop()

    def decode(latents: torch.Tensor) -> Any:
        assert made and len(made[-1]) == 0, "the recording still holds memory"
        return real(latents)

    real = loaded.decode_latents
    plain, recorded = tmp_path / "plain.png", tmp_path / "recorded.png"
    try:
        drawing.draw_sample(loaded, plain, PROMPT, texts, 3, Listener(), "cpu")
        monkeypatch.setattr(drawing, "graphs", recording)
        monkeypatch.setattr(loaded, "decode_latents", decode)
        drawing.draw_sample(loaded, recorded, PROMPT, texts, 3, Listener(), "cpu")
    finally:
        loaded.use_loras(())
    assert recorded.read_bytes() == plain.read_bytes()
    assert [one.count for one in replays] == [loaded.info.defaults.sampling_steps - 1]


@pytest.mark.gpu
def test_on_a_card_a_recorded_sample_is_what_the_steps_themselves_draw_while_the_lora_learns(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cuda", dtype="bfloat16")
    base = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    texts = encode_texts(base, ["", PROMPT], Listener())
    parameters = base.add_trainable_lora(4, 4.0, 0)
    drawn: list[torch.Tensor] = []
    real = base.decode_latents
    monkeypatch.setattr(base, "decode_latents", lambda latents: drawn.append(latents.cpu()) or real(latents))
    defaults, side = base.info.defaults, base.info.size_px
    request = DenoiseRequest(
        {name: tensor[None] for name, tensor in texts[PROMPT].items()},
        {name: tensor[None] for name, tensor in texts[""].items()},
        (3,), defaults.sampling_steps, defaults.guidance_scale, side, side,
    )  # fmt: skip
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in parameters:  # in place, as the optimizer changes them
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        drawing.draw_sample(base, tmp_path / "x.png", PROMPT, texts, 3, Listener(), "cuda", stay=True)
        assert torch.equal(list(base.denoise(request))[-1].latents.cpu(), drawn[-1])
    base.use_loras(())
    assert not torch.equal(*drawn)


@pytest.mark.gpu
def test_on_a_card_recorded_training_goes_on_as_if_no_sample_had_been_drawn(
    models_dir: Path, tmp_path: Path, two_shapes: Dataset
) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cuda", dtype="bfloat16")
    base = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    texts = encode_texts(base, ["", PROMPT], Listener())
    losses = []
    for sampled in (False, True):
        trainer = trainer_for(base, two_shapes, batch_size=1)
        found = steps(trainer, 8)[0]
        if sampled:
            drawing.draw_sample(base, tmp_path / "x.png", PROMPT, texts, 3, Listener(), "cuda", stay=True)
        losses.append([*found, *steps(trainer, 8)[0]])
        trainer.let_go()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # sums on a card come in another order each time
