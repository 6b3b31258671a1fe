"""The training loss equals the published formula, written here once more, plainly, from noise to number."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui.families.protocol import LoadedBase, TrainBatch
from headshot_ui.settings import Settings
from headshot_ui.specs import CHECKPOINTING

SIZES = [(640, 512), (64, 64), (300, 200), (64, 80)]
CROPS = [(0, 0), (4, 8), (0, 3), (16, 0)]


@pytest.fixture(scope="module", params=["tiny-sdxl", "epsilon-sdxl"])
def loaded(request: pytest.FixtureRequest, settings: Settings) -> LoadedBase:
    """With a LoRA that does something, as in the middle of training."""
    base = families.load_base(families.find_base(request.param, settings), settings)
    generator = torch.Generator().manual_seed(3)
    for parameter in base.add_trainable_lora(rank=2, alpha=3.0, seed=0):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return base


def batch_of(loaded: LoadedBase, seed: int, count: int = 4) -> TrainBatch:
    generator = torch.Generator().manual_seed(1000 + seed)
    embeds = {
        "prompt_embeds": torch.randn(count, 77, 40, generator=generator),
        "pooled_prompt_embeds": torch.randn(count, 24, generator=generator),
    }
    return TrainBatch(torch.randn(count, 4, 8, 8, generator=generator), embeds, SIZES[:count], CROPS[:count])


def alphas_cumprod(zero_terminal_snr: bool) -> list[float]:
    """Scaled linear betas from 0.00085 to 0.012; with zero terminal SNR shifted and scaled (arXiv 2305.08891, 3.1)."""
    first, final = math.sqrt(0.00085), math.sqrt(0.012)
    product, products = 1.0, []
    for t in range(1000):
        product *= 1 - (first + (final - first) * t / 999) ** 2
        products.append(product)
    if not zero_terminal_snr:
        return products
    roots = [math.sqrt(value) for value in products]
    scale = roots[0] / (roots[0] - roots[-1])
    return [((root - roots[-1]) * scale) ** 2 for root in roots]


def loss_of(loaded: LoadedBase, batch: TrainBatch, seed: int, *rest: object) -> torch.Tensor:
    return loaded.loss(loaded.loss_inputs(batch, torch.Generator().manual_seed(seed), *rest))


def plain_loss(
    loaded: LoadedBase, batch: TrainBatch, seed: int, gamma: float | None, prior_count: int, prior_weight: float
) -> float:
    velocity = loaded.modules.scheduler_config["prediction_type"] == "v_prediction"
    products = alphas_cumprod(zero_terminal_snr=velocity)
    generator = torch.Generator().manual_seed(seed)
    count = len(batch.latents)
    noise = torch.randn(batch.latents.shape, generator=generator)
    times = torch.randint(0, 1000, (count,), generator=generator).tolist()
    squares = []
    for i, t in enumerate(times):
        signal, spread = math.sqrt(products[t]), math.sqrt(1 - products[t])
        latent, eps = batch.latents[i], noise[i]
        ids = torch.tensor([[*batch.original_sizes[i], *batch.crops[i], 64, 64]], dtype=torch.float32)
        with torch.no_grad():
            predicted = loaded.modules.unet(
                (signal * latent + spread * eps)[None],
                torch.tensor([t]),
                encoder_hidden_states=batch.embeds["prompt_embeds"][i : i + 1],
                added_cond_kwargs={"text_embeds": batch.embeds["pooled_prompt_embeds"][i : i + 1], "time_ids": ids},
            ).sample[0]
        target = signal * eps - spread * latent if velocity else eps
        weight = 1.0
        if gamma is not None and i < count - prior_count:
            snr = products[t] / (1 - products[t])
            weight = (min(snr, gamma) / snr if snr > 0 else 1.0) + (1 if velocity else 0)
        squares.append(weight * float(((predicted - target).double() ** 2).mean()))
    own = count - prior_count
    loss = sum(squares[:own]) / own
    return loss + prior_weight * sum(squares[own:]) / prior_count if prior_count else loss


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("gamma", "prior_count"), [(None, 0), (5.0, 0), (None, 2), (5.0, 2), (1.0, 1)])
def test_loss_equals_the_plain_formula(loaded: LoadedBase, seed: int, gamma: float | None, prior_count: int) -> None:
    batch = batch_of(loaded, seed)
    loss = loss_of(loaded, batch, seed, gamma, prior_count, 0.7)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert float(loss.detach()) == pytest.approx(plain_loss(loaded, batch, seed, gamma, prior_count, 0.7), abs=1e-5)


def test_the_last_timestep_of_zero_terminal_snr_is_finite(settings: Settings) -> None:
    from headshot_ui.families.sdxl_parts.loss import noise_schedule, snr_weights

    base = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    schedule = noise_schedule(base.modules.scheduler_config)
    assert float(schedule.alphas_cumprod[-1]) == 0
    weights = snr_weights(schedule, torch.tensor([0, 500, 999]), gamma=5.0)
    assert torch.isfinite(weights).all()
    assert float(weights[2]) == 2  # min(snr, gamma) / snr tends to 1, and v-prediction adds 1


def test_gradients_reach_every_lora_matrix_and_nothing_else(tiny: LoadedBase) -> None:
    parameters = tiny.add_trainable_lora(rank=2, alpha=2.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    loss_of(tiny, batch_of(tiny, 0), 0, None).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert sum(p.grad is not None for p in tiny.modules.unet.parameters()) == len(parameters)


def test_a_half_precision_base_trains_a_float32_lora(models_dir: Path) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cpu", dtype="bfloat16")
    base = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    full = Settings.from_environment(models_dir=models_dir, device="cpu", dtype="float32")
    exact = families.load_base(families.find_base("tiny-sdxl", full), full)
    assert (base.modules.unet.dtype, base.modules.vae.dtype) == (torch.bfloat16, torch.float32)
    parameters = base.add_trainable_lora(rank=2, alpha=2.0, seed=0)
    exact.add_trainable_lora(rank=2, alpha=2.0, seed=0)
    loss = loss_of(base, batch_of(base, 0), 0, 5.0)
    expected = loss_of(exact, batch_of(exact, 0), 0, 5.0)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
    loss.backward()
    assert {parameter.grad.dtype for parameter in parameters} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_changes_no_bit_of_loss_and_gradients_and_each_level_keeps_less(
    models_dir: Path, dtype: str
) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cpu", dtype=dtype)
    base = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    parameters = base.add_trainable_lora(rank=2, alpha=3.0, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    found, kept = [], []
    for level in (*CHECKPOINTING, "none"):
        base.checkpoint_gradients(level)
        loss, count = kept_bytes(base)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in parameters)])
        kept.append(count)
        for parameter in parameters:
            parameter.grad = None
    assert all(gradient.abs().sum() > 0 for gradient in found[0])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    none, partial, full, again = kept
    assert none == again, "nothing is left of a level"
    between = [layers.net[2].in_features * 4 * side * side for layers, side in feed_forwards(base)]
    assert none - partial == 3 * sum(between) * base.modules.unet.dtype.itemsize, "value, gate and their product"
    assert full < 0.7 * partial


def feed_forwards(base: LoadedBase) -> list[tuple[torch.nn.Module, int]]:
    """Those of the tiny UNet, each with the side of its square of tokens where latents are 8 cells wide."""
    sides = {"down_blocks.1": 4, "down_blocks.2": 2, "mid_block": 2, "up_blocks.0": 2, "up_blocks.1": 4}
    return [
        (module, sides[".".join(name.split(".")[: 1 if name.startswith("mid") else 2])])
        for name, module in base.modules.unet.named_modules()
        if name.endswith(".ff")
    ]


def kept_bytes(base: LoadedBase) -> tuple[torch.Tensor, int]:
    """A loss, and the bytes of everything kept for its way back that is no weight."""
    seen = {parameter.untyped_storage().data_ptr() for parameter in base.modules.unet.parameters()}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(base, batch_of(base, 0), 0, None)
    return loss, sum(kept)
