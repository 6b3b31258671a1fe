"""Blocks that train faster compute what diffusers and peft compute, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui.families.lora_parts import linear
from headshot_ui.families.lora_parts.in_model import TRAINED
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.families.sdxl_parts import trained_blocks
from headshot_ui.settings import Settings
from headshot_ui.specs import CHECKPOINTING
from tests.families.test_sdxl_loss import batch_of, loss_of


@pytest.fixture(scope="module")
def loaded(models_dir: Path) -> LoadedBase:
    settings = Settings.from_environment(models_dir=models_dir, device="cpu", dtype="float32")
    return families.load_base(families.find_base("tiny-sdxl", settings), settings)


@pytest.fixture
def tiny(loaded: LoadedBase) -> Iterator[LoadedBase]:
    yield loaded
    loaded.checkpoint_gradients("none")
    loaded.use_loras(())


def trained(base: LoadedBase, alpha: float = 3.0) -> list[torch.nn.Parameter]:
    """A LoRA of rank 2 that already does something."""
    parameters = base.add_trainable_lora(rank=2, alpha=alpha, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return parameters


def loss_and_gradients(base: LoadedBase, parameters: list[torch.nn.Parameter]) -> tuple[float, list[torch.Tensor]]:
    loss = loss_of(base, batch_of(base, 0, count=2), 0, None)
    loss.backward()
    grads = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return float(loss.detach()), grads


@pytest.mark.parametrize("alpha", [2.0, 3.0])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_same_loss_and_gradients_as_peft_and_diffusers(tiny: LoadedBase, alpha: float, checkpointing: str) -> None:
    parameters = trained(tiny, alpha)
    tiny.checkpoint_gradients(checkpointing)
    loss, grads = loss_and_gradients(tiny, parameters)
    trained_blocks.slow_down(tiny.modules.unet)
    plain_loss, plain_grads = loss_and_gradients(tiny, parameters)
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    for mine, theirs in zip(grads, plain_grads, strict=True):
        assert theirs.norm() > 0 and (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_half_precision_is_no_further_from_float32_than_autocast(models_dir: Path, tiny: LoadedBase) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cpu", dtype="bfloat16")
    half = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    _, exact = loss_and_gradients(tiny, trained(tiny))
    parameters = trained(half)
    _, ours = loss_and_gradients(half, parameters)
    trained_blocks.slow_down(half.modules.unet)
    with torch.autocast("cpu", torch.bfloat16):
        _, theirs = loss_and_gradients(half, parameters)
    wanted, first, second = (torch.cat([tensor.flatten() for tensor in grads]) for grads in (exact, ours, theirs))
    assert first.dtype == torch.float32
    assert (first - wanted).norm() <= 1.5 * (second - wanted).norm()


def test_a_change_of_the_matrices_counts_in_the_next_loss_and_picture(models_dir: Path) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cpu", dtype="bfloat16")
    base = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    parameters = trained(base)
    before, _ = loss_and_gradients(base, parameters)
    state = base.trainable_lora_state()
    for parameter in parameters:
        parameter.data.mul_(-2)
    changed, _ = loss_and_gradients(base, parameters)
    base.set_trainable_lora_state(state)
    again, _ = loss_and_gradients(base, parameters)
    assert before == again and abs(before - changed) > 1e-4


def test_layers_of_different_ranks_are_not_put_together(tiny: LoadedBase) -> None:
    trained(tiny)
    layers = [module for module in tiny.modules.unet.modules() if TRAINED in getattr(module, "lora_A", ())][:2]
    layers[0].scaling[TRAINED] = 7.0
    with pytest.raises(ValueError, match="one rank"):
        linear.Group(layers, TRAINED)


def test_taken_off_nothing_is_left(tiny: LoadedBase) -> None:
    unet = tiny.modules.unet

    def traces() -> list[tuple[str, type, tuple[str, ...]]]:
        return [
            (name, type(getattr(module, "processor", None)), tuple(sorted(vars(module))))
            for name, module in unet.named_modules()
        ]

    tiny.use_loras(())
    before = traces()
    trained(tiny)
    assert traces() != before
    tiny.use_loras(())
    assert [entry[:2] for entry in traces()] == [entry[:2] for entry in before]
    assert not any("forward" in names or "_own_processor" in names for _, _, names in traces())
