"""One step after the other: does the LoRA learn, and what is it fed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch

from headshot_ui.dataset.types import Dataset
from headshot_ui.families.protocol import LoadedBase, TrainBatch
from headshot_ui.specs import TrainSpec
from headshot_ui.training.cache import cache_photos, encode_texts, make_batch
from headshot_ui.training.loop import Trainer
from headshot_ui.training.plan import Plan, complete, plan_of, training_photos
from tests.training.conftest import Listener

SPEC = TrainSpec(person="anna", base="tiny-sdxl", steps=25, rank=8, batch_size=4, learning_rate=1e-2)


def trainer_for(loaded: LoadedBase, dataset: Dataset, **changes: object) -> Trainer:
    plan: Plan = plan_of(complete(dataclasses.replace(SPEC, **changes), loaded.info))
    texts = encode_texts(loaded, ["", *(photo.caption for photo in training_photos(dataset))], Listener())
    return Trainer.start(loaded, plan, cache_photos(loaded, dataset, texts, Listener()), {}, texts[""])


def loss_on_all(trainer: Trainer) -> float:
    """Mean loss over fixed noise and timesteps, so that only learning can change it."""
    batch = make_batch(trainer.photos, [False] * len(trainer.photos), trainer.empty)
    inputs = [trainer.loaded.loss_inputs(batch, torch.Generator().manual_seed(n), None) for n in range(8)]
    with torch.no_grad():
        losses = [trainer.loaded.loss(drawn) for drawn in inputs]
    return float(torch.stack(losses).mean())


def test_learning_lowers_the_loss(loaded: LoadedBase, dataset: Dataset) -> None:
    trainer = trainer_for(loaded, dataset)
    before = loss_on_all(trainer)
    for _ in range(25):
        trainer.run_step()
    assert loss_on_all(trainer) < 0.96 * before


def fed(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[TrainBatch]:
    batches = []
    real = trainer.loaded.loss_inputs

    def listen(batch: TrainBatch, *rest: object) -> Mapping[str, torch.Tensor]:
        batches.append(batch)
        return real(batch, *rest)

    monkeypatch.setattr(trainer.loaded, "loss_inputs", listen)
    for _ in range(steps):
        trainer.run_step()
    return batches[:steps]  # those of the next step are drawn already


def test_each_picture_comes_with_its_own_caption_and_sizes(
    loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(loaded, dataset, caption_dropout=0.0)
    for batch in fed(trainer, monkeypatch, 3):
        for row, latents in enumerate(batch.latents):
            (item,) = [item for item in trainer.photos if torch.equal(item.latents, latents)]
            assert torch.equal(batch.embeds["prompt_embeds"][row], item.embeds["prompt_embeds"])
            assert (batch.original_sizes[row], batch.crops[row]) == ((192, 192), (0, 0))


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.5, 8, 32), (1.0, 40, 40)])
def test_captions_are_dropped_as_often_as_asked(
    dropout: float, low: int, high: int, loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(loaded, dataset, caption_dropout=dropout)
    batches = fed(trainer, monkeypatch, 10)
    empty = sum(not row.any() for batch in batches for row in batch.embeds["pooled_prompt_embeds"])
    assert low <= empty <= high


def test_accumulated_small_batches_weigh_like_one_step(
    loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(loaded, dataset, batch_size=1, gradient_accumulation=3)
    losses = []
    real = loaded.loss

    def listen(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        losses.append(real(inputs))
        return losses[-1]

    monkeypatch.setattr(loaded, "loss", listen)
    kept: list[list[torch.Tensor]] = []
    monkeypatch.setattr(
        trainer.optimizer, "step", lambda: kept.append([parameter.grad.clone() for parameter in trainer.parameters])
    )
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(1.0))
    mean = trainer.run_step()
    assert (len(losses), len(kept)) == (3, 1)
    assert mean == pytest.approx(sum(float(loss.detach()) for loss in losses) / 3)
    state = trainer.loaded.trainable_lora_state()
    again = trainer_for(loaded, dataset, batch_size=1)
    loaded.set_trainable_lora_state(state)
    grads = [torch.zeros_like(parameter) for parameter in again.parameters]
    for _ in range(3):
        again.optimizer.zero_grad()
        again.computing.gradients(again._inputs())
        grads = [total + parameter.grad / 3 for total, parameter in zip(grads, again.parameters, strict=True)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept[0], grads, strict=True))
