"""A training step of Stable Diffusion XL: the published recipe's loop beside this program's.

Both train the same layers of the same UNet of random weights, from latents and embeddings that were computed before.
The reference is the loop of diffusers' DreamBooth-LoRA example for SDXL with its defaults: peft's layers with float32
matrices under autocast, torch's AdamW, gradients clipped, the loss read after each step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from headshot_ui.bench.compiled import CompilingClock
from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, in_both_orders, measure
from headshot_ui.bench.work import Work
from headshot_ui.specs import CHECKPOINTING, FULL, NONE, PARTIAL

if TYPE_CHECKING:
    import torch

    from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl
    from headshot_ui.training.cache import Item

RANK = 16
PHOTOS = 12
#: Seconds that are to be reached on an H200, by (pixels, gradient checkpointing); None has no goal.
GOALS = {(1024, NONE): 0.060, (1024, PARTIAL): None, (1024, FULL): 0.095, (512, NONE): 0.035}
GOAL_GPU = "H200"
CHECKPOINTED_PEAK = 6 * 2**30


@dataclass(frozen=True)
class Case:
    """One way of training. The published loop knows checkpointing on or off: beside partial it is on."""

    size_px: int
    checkpointing: str  # one of specs.CHECKPOINTING

    @property
    def title(self) -> str:
        kind = {NONE: "no checkpointing", PARTIAL: "partial checkpointing", FULL: "checkpointing"}[self.checkpointing]
        return f"SDXL training step, {self.size_px} px, {kind}"

    @property
    def seconds(self) -> float | None:
        return GOALS.get((self.size_px, self.checkpointing))

    @property
    def goal(self) -> str:
        seconds = self.seconds
        memory = "no more memory" if self.checkpointing == NONE else "at most 6.0 GiB"
        return "" if seconds is None else f"at most {seconds:.3f} s on an {GOAL_GPU}, {memory}"


def measure_training(setting: BenchSetting) -> Iterator[Row]:
    """A row for each size and way of keeping activations."""
    cases = [Case(*case) for case in (GOALS if setting.full else ((128, level) for level in CHECKPOINTING))]
    loaded = random_base(setting)
    flops = {size: step_flops(loaded, size) for size in {case.size_px for case in cases}}
    for case in cases:
        setting.say(case.title)
        clock = CompilingClock.of(setting)
        times = in_both_orders(
            partial(timed, reference_steps, loaded, case, setting, CompilingClock(False)),
            partial(timed, our_steps, loaded, case, setting, clock),
        )
        yield row_of(case, *times, flops[case.size_px], setting, clock)


def timed(
    way: Callable[..., Callable[[], object]],
    loaded: LoadedSdxl,
    case: Case,
    setting: BenchSetting,
    clock: CompilingClock,
) -> Timed:
    """One block of steps, with a fresh LoRA that is gone afterwards."""
    from headshot_ui.memory import give_back

    gc.collect()
    give_back()
    step = way(loaded, case)
    with clock.blocks(loaded, learning=True):
        found = measure(step, setting.settings.device, (setting.repeats + 1) // 2, warmups=4)
    loaded.checkpoint_gradients(NONE)
    loaded.use_loras(())
    return found


def row_of(
    case: Case, reference: Timed, ours: Timed, flops: float, setting: BenchSetting, clock: CompilingClock
) -> Row:
    """Both ways against the bound of arithmetic."""
    from headshot_ui.bench.machine import matmul_flops

    device = setting.settings.device
    bound = flops / matmul_flops(device) if device == "cuda" else None
    return Row(
        case.title + clock.words, reference.seconds, ours.seconds, bound, reference.peak_bytes, ours.peak_bytes,
        case.goal, _met(case, reference, ours, device),
        f"{RANK=}, batch 1, attention and feed-forward; bound: {flops / 1e12:.1f} TFLOP as this card multiplies",
        clock.found,
    )  # fmt: skip


def _met(case: Case, reference: Timed, ours: Timed, device: str) -> bool | None:
    if device != "cuda" or case.seconds is None:
        return None
    import torch

    if GOAL_GPU not in torch.cuda.get_device_name():
        return None
    room = reference.peak_bytes or 0 if case.checkpointing == NONE else CHECKPOINTED_PEAK
    return ours.seconds <= case.seconds and (ours.peak_bytes or 0) <= room


# --- what both train ----------------------------------------------------------------------------------
def random_base(setting: BenchSetting) -> LoadedSdxl:
    """A base with a UNet of the published shape (or a tiny one) and nothing else, in bfloat16 on a card."""
    import torch

    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.families.sdxl_parts.files import published
    from headshot_ui.families.sdxl_parts.load import SdxlModules
    from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl
    from headshot_ui.families.shared_parts.files import read_json_file
    from headshot_ui.prove.random_models import SIZES, random_part

    device = setting.settings.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    unet = random_part("base", "unet", setting.size, device, seed=0).to(dtype).eval().requires_grad_(False)
    vae = SimpleNamespace(config=read_json_file(published("base") / "vae" / "config.json"))  # only asked for its shape
    schedule = read_json_file(published("base") / "scheduler" / "scheduler_config.json")
    modules = SdxlModules(unet, vae, (), (None, None), schedule, True)
    info = BaseInfo("bench", "sdxl", "Random weights", Path(), "", "", SIZES[setting.size].size_px)
    return LoadedSdxl(info, modules, device)


def photos_of(loaded: LoadedSdxl, size_px: int) -> list[Item]:
    """Square photos as training keeps them, of random numbers, on the CPU."""
    import torch

    from headshot_ui.training.cache import Item

    generator = torch.Generator().manual_seed(size_px)
    config = loaded.modules.unet.config
    cells = size_px // loaded.cell_px
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return [
        Item(
            torch.randn(4, cells, cells, generator=generator),
            {
                "prompt_embeds": torch.randn(77, config.cross_attention_dim, generator=generator),
                "pooled_prompt_embeds": torch.randn(pooled, generator=generator),
            },
            (size_px, size_px),
            (size_px, size_px),
        )
        for _ in range(PHOTOS)
    ]


def step_flops(loaded: LoadedSdxl, size_px: int) -> float:
    """Floating-point operations of a step's products: forwards, and backwards to the layers' inputs."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded.add_trainable_lora(RANK, RANK, 0)
    item = photos_of(loaded, size_px)[0]
    inputs = _inputs(loaded, item)
    with FlopCounterMode(display=False) as counter:
        loaded.loss(inputs).backward()  # type: ignore[no-untyped-call]
    loaded.use_loras(())
    return float(counter.get_total_flops())


def _inputs(loaded: LoadedSdxl, item: Item) -> dict[str, torch.Tensor]:
    import torch

    from headshot_ui.training.cache import make_batch
    from headshot_ui.training.computing import on_device

    batch = make_batch([item], [False], item.embeds)
    drawn = loaded.loss_inputs(batch, torch.Generator().manual_seed(0), None)
    return on_device(drawn, loaded.modules.unet.device)


# --- the two ways -------------------------------------------------------------------------------------
def our_steps(loaded: LoadedSdxl, case: Case) -> Callable[[], object]:
    """This program's own training step."""
    import torch

    from headshot_ui.specs import TrainSpec
    from headshot_ui.training.loop import Trainer
    from headshot_ui.training.plan import complete, plan_of

    spec = TrainSpec(
        person="bench", base="bench", steps=1000, rank=RANK, gradient_checkpointing=case.checkpointing,
        caption_dropout=0.0,
    )  # fmt: skip
    photos = photos_of(loaded, case.size_px)
    empty = {name: torch.zeros_like(tensor) for name, tensor in photos[0].embeds.items()}
    return Trainer.start(loaded, plan_of(complete(spec, loaded.info)), photos, {}, empty).run_step


def reference_steps(loaded: LoadedSdxl, case: Case) -> Callable[[], object]:
    """The loop of diffusers' train_dreambooth_lora_sdxl.py (latents cached, mixed precision) with its defaults."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    from headshot_ui.families.lora_parts.in_model import TRAINED
    from headshot_ui.families.sdxl_parts.lora import TARGETS

    unet, device = loaded.modules.unet, loaded.modules.unet.device
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(TARGETS)), TRAINED
    )
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if case.checkpointing != NONE:
        unet.enable_gradient_checkpointing()
    schedule = DDPMScheduler.from_config(loaded.modules.scheduler_config)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4)
    photos = photos_of(loaded, case.size_px)
    latents = [photo.latents[None].to(device, unet.dtype) for photo in photos]
    embeds = [{name: tensor[None].to(device, unet.dtype) for name, tensor in photo.embeds.items()} for photo in photos]
    done = [0]

    def step() -> float:
        number = done[0] % len(latents)
        done[0] += 1
        noise = torch.randn_like(latents[number])
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (1,), device=device).long()
        noisy = schedule.add_noise(latents[number], noise, timesteps)
        ids = torch.tensor([[case.size_px, case.size_px, 0, 0, case.size_px, case.size_px]]).to(device, unet.dtype)
        conditions = {"text_embeds": embeds[number]["pooled_prompt_embeds"], "time_ids": ids}
        with torch.autocast(device.type, torch.bfloat16, enabled=unet.dtype != torch.float32):
            predicted = unet(
                noisy, timesteps, embeds[number]["prompt_embeds"], added_cond_kwargs=conditions, return_dict=False
            )[0]
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach().item()

    return step


WORK = Work("train", "Training step", needs_gpu=True, measure=measure_training)
