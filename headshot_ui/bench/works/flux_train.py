"""A training step of FLUX.1: the published recipe's loop beside this program's.

Both train the same layers of the same transformer of random weights, from latents and embeddings that were computed
before. The reference is the loop of diffusers' DreamBooth-LoRA example for FLUX with its defaults: peft's layers with
float32 matrices under autocast, torch's AdamW, gradients clipped, the loss read after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from headshot_ui import pinned
from headshot_ui.bench.compiled import CompilingClock
from headshot_ui.bench.flux import GOAL_GPU, GUIDANCE, MODEL, STEP_TFLOP, RandomFlux, bound, reached
from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, in_both_orders, measure
from headshot_ui.bench.work import Work
from headshot_ui.specs import FULL, NONE, PARTIAL

if TYPE_CHECKING:
    import torch

    from headshot_ui.families.protocol import LoadedBase
    from headshot_ui.training.cache import Item

RANK, PHOTOS = 16, 12
WARMUPS = 4


@dataclass(frozen=True)
class Case:
    """One way of training."""

    size_px: int
    checkpointing: str  # one of specs.CHECKPOINTING; the published loop knows all of it or none
    goal_s: float | None = None  # to be reached on an H200

    @property
    def title(self) -> str:
        return f"FLUX.1 training step, {self.size_px} px, {_WORDS[self.checkpointing]}"

    @property
    def goal(self) -> str:
        return "" if self.goal_s is None else f"at most {self.goal_s:.2f} s on an {GOAL_GPU}"


_WORDS = {NONE: "no checkpointing", PARTIAL: "partial checkpointing", FULL: "checkpointing"}
CASES = (Case(512, NONE, 0.10), Case(1024, FULL, 0.50))
TINY_CASES = (Case(128, NONE), Case(128, FULL))


def measure_training(setting: BenchSetting) -> Iterator[Row]:
    """A row for each case."""
    from headshot_ui.families.flux_parts.blocks import without_cudnn_attention

    models = RandomFlux.make(setting, lock=False)
    for case in CASES if setting.full else TINY_CASES:
        setting.say(case.title)
        with without_cudnn_attention():  # as we train; the published loop, which does not ask, would not survive it
            clock = CompilingClock.of(setting)
            times = in_both_orders(partial(theirs, models, case), partial(ours, models, case, clock))
        yield row_of(case, *times, setting, clock)


def row_of(case: Case, reference: Timed, mine: Timed, setting: BenchSetting, clock: CompilingClock) -> Row:
    """Both ways against the bound of arithmetic."""
    tflop, goal = STEP_TFLOP.get(case.size_px, 0.0), case.goal_s
    bounded = f"; bound: {tflop:.1f} TFLOP as this card multiplies" if tflop else ""
    return Row(
        case.title + clock.words, reference.seconds, mine.seconds, bound(tflop, setting) if tflop else None,
        reference.peak_bytes, mine.peak_bytes, case.goal,
        None if goal is None else reached(setting, lambda: mine.seconds <= goal),
        f"{RANK=}, batch 1, attention and feed-forward" + bounded, clock.found,
    )  # fmt: skip


# --- what both train ----------------------------------------------------------------------------------
def photos_of(models: RandomFlux, size_px: int) -> list[Item]:
    """Square photos as training keeps them, of random numbers, on the CPU."""
    import torch

    from headshot_ui.families.flux_parts.configs import read_facts
    from headshot_ui.families.flux_parts.files import TRANSFORMER, VAE, cell_px
    from headshot_ui.prove.random_flux import config_of
    from headshot_ui.training.cache import Item

    generator = torch.Generator().manual_seed(size_px)
    transformer, vae = config_of(TRANSFORMER, models.setting.size), config_of(VAE, models.setting.size)
    cells = size_px // cell_px(vae)
    words, width = read_facts(models.info).text_tokens, transformer["joint_attention_dim"]
    return [
        Item(
            torch.randn(vae["latent_channels"], cells, cells, generator=generator),
            {
                "prompt_embeds": torch.randn(words, width, generator=generator),
                "pooled_prompt_embeds": torch.randn(transformer["pooled_projection_dim"], generator=generator),
            },
            (size_px, size_px),
            (size_px, size_px),
        )
        for _ in range(PHOTOS)
    ]


def _measured(step: Callable[[], object], setting: BenchSetting) -> Timed:
    return measure(step, setting.settings.device, (setting.repeats + 1) // 2, warmups=WARMUPS)


# --- the two ways -------------------------------------------------------------------------------------
def ours(models: RandomFlux, case: Case, clock: CompilingClock) -> Timed:
    """This program's own training step, from the model as it reads it."""
    with models.ours() as loaded:
        step = our_steps(loaded, models, case)
        with clock.blocks(loaded, learning=True):
            return _measured(step, models.setting)


def our_steps(loaded: LoadedBase, models: RandomFlux, case: Case) -> Callable[[], object]:
    import torch

    from headshot_ui.specs import TrainSpec
    from headshot_ui.training.fitting import work_of
    from headshot_ui.training.loop import Trainer
    from headshot_ui.training.plan import complete, plan_of
    from headshot_ui.training.rehearsal import look_ahead

    spec = TrainSpec(
        person="bench", base=loaded.info.id, steps=1000, rank=RANK, caption_dropout=0.0,
        gradient_checkpointing=case.checkpointing, size_px=case.size_px,
    )  # fmt: skip
    photos = photos_of(models, case.size_px)
    empty = {name: torch.zeros_like(tensor) for name, tensor in photos[0].embeds.items()}
    plan = plan_of(complete(spec, loaded.info))
    fitting = loaded.fit(work_of(plan))
    if fitting is not None:
        models.setting.say(f"  {fitting.sentence}")
    loaded.keep(frozenset({"denoiser"}))
    trainer = Trainer.start(loaded, plan, photos, {}, empty)
    look_ahead(trainer)  # for more steps than are measured
    pinned.settle()  # no step is recorded while memory is being locked
    return trainer.run_step


def theirs(models: RandomFlux, case: Case) -> Timed:
    """The loop of diffusers' train_dreambooth_lora_flux.py, on the transformer as diffusers reads it."""
    with models.transformer() as transformer:
        return _measured(reference_steps(transformer, models, case), models.setting)


def reference_steps(transformer: Any, models: RandomFlux, case: Case) -> Callable[[], float]:
    """Written out, with latents cached and mixed precision; its layers are ours, which are more than its default."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
    from peft import LoraConfig

    from headshot_ui.families.flux_parts.lora import TARGETS

    device, dtype = transformer.device, transformer.dtype
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if case.checkpointing != NONE:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    schedule = FlowMatchEulerDiscreteScheduler.from_pretrained(models.info.folder, subfolder="scheduler")
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8)
    photos = photos_of(models, case.size_px)
    latents = [photo.latents[None].to(device, dtype) for photo in photos]
    embeds = [{name: tensor[None].to(device, dtype) for name, tensor in photo.embeds.items()} for photo in photos]
    done = [0]

    def sigmas_of(timesteps: torch.Tensor) -> torch.Tensor:
        known = schedule.timesteps.to(device)
        indices = [(known == t).nonzero().item() for t in timesteps]
        found: torch.Tensor = schedule.sigmas.to(device, dtype)[indices].view(-1, 1, 1, 1)
        return found

    def step() -> float:
        number = done[0] % len(latents)
        done[0] += 1
        clean, words = latents[number], embeds[number]["prompt_embeds"]
        batch, channels, height, width = clean.shape
        places = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, dtype)
        noise = torch.randn_like(clean)
        density = compute_density_for_timestep_sampling("none", batch, logit_mean=0.0, logit_std=1.0, mode_scale=1.29)
        indices = (density * schedule.config.num_train_timesteps).long()
        timesteps = schedule.timesteps[indices].to(device)
        sigmas = sigmas_of(timesteps)
        noisy = (1.0 - sigmas) * clean + sigmas * noise
        packed = FluxPipeline._pack_latents(noisy, batch, channels, height, width)
        guidance = torch.tensor([GUIDANCE], device=device).expand(batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            predicted = transformer(
                hidden_states=packed, timestep=timesteps / 1000, guidance=guidance,
                pooled_projections=embeds[number]["pooled_prompt_embeds"], encoder_hidden_states=words,
                txt_ids=torch.zeros(words.shape[1], 3).to(device, dtype), img_ids=places, return_dict=False,
            )[0]  # fmt: skip
            predicted = FluxPipeline._unpack_latents(predicted, height * 8, width * 8, 8)
            weighting = compute_loss_weighting_for_sd3("none", sigmas)
            errors = weighting.float() * (predicted.float() - (noise - clean).float()) ** 2
            loss = errors.reshape(batch, -1).mean(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach().item())

    return step


WORK = Work("train", "Training step", needs_gpu=True, measure=measure_training, model=MODEL)
