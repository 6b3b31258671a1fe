"""Train the demo FLUX: transformer, CLIP and T5 together, on latents, by flow matching (arXiv 2210.02747).

    python -m tools.demo_models.train_flux --data /dev/shm/drawn --out models/demo --seconds 900

Most of the time it learns from pictures, at guidance 1. In the last part it is its own teacher, as dev was made: for
other guidance scales it learns to draw at once what the teacher draws from two passes, with the caption and without
(guidance distillation, arXiv 2210.03142). Errors in a face count more than beside it, most round eyes and mouth: what
is best for each cell stays the same, and a small network spends its size where people look. It resumes from
``--checkpoint`` when that file is there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.demo_models import dataset, flux_nets, flux_pipeline, flux_words, words
from tools.demo_models.checkpoint import resume, save_checkpoint
from tools.demo_models.common import (
    Average,
    Clock,
    adamw,
    arguments,
    autocast,
    compile_or_not,
    cosine,
    count_parameters,
    prepare_device,
    say,
    set_rate,
)
from tools.demo_models.train_flux_vae import LATENTS
from tools.demo_models.train_vae import importance

DROPOUT = 0.1
#: Share of the time after which the model begins to teach itself, and the guidance scales it learns then.
TAUGHT_FROM, GUIDANCE = 0.72, (1.0, 4.5)


@dataclass(frozen=True)
class Data:
    """Latents (N, 16, 32, 32) fp16, CLIP tokens (N, K, 77) int16, weights (N, 256, 1), on the training device."""

    latents: Tensor
    tokens: Tensor
    weights: Tensor


def load_data(folder: Path, device: torch.device) -> Data:
    """What dataset.py and train_flux_vae.py have written."""
    from safetensors.torch import load_file

    latents, truth = load_file(folder / LATENTS)["latents"], load_file(folder / "truth.safetensors")
    weights = cell_weights(truth["boxes"].to(device), truth["landmarks"].to(device))
    return Data(latents.to(device), truth["tokens"].to(device), weights)


def cell_weights(boxes: Tensor, landmarks: Tensor) -> Tensor:
    """(N, tokens, 1): how much the error of each token counts, 1 on average; ``train_vae.importance`` of its pixels."""
    across = flux_nets.CELLS // 2
    parts = [
        torch.nn.functional.adaptive_avg_pool2d(importance(box, marks, dataset.SIZE), across).flatten(1)
        for box, marks in zip(boxes.split(1024), landmarks.split(1024), strict=True)
    ]
    weights = torch.cat(parts)[..., None]
    return weights / weights.mean()


class Base(nn.Module):
    """The trainable parts of the pipeline."""

    def __init__(self, smoke: bool, device: torch.device) -> None:
        super().__init__()
        known = dataset.vocabulary_words()
        clip_words, t5_words = words.tokenizers(known)[0], flux_words.tokenizer(known)
        self.clip, self.t5 = flux_nets.make_text_encoders(clip_words, t5_words)
        self.transformer = flux_nets.make_transformer(smoke)
        self.as_t5 = flux_words.FromClip(known, device)
        self.empty = [clip_words.bos_token_id, *[clip_words.eos_token_id] * (words.CONTEXT - 1)]

    def read_weights(self, folder: Path) -> None:
        """Those of a folder that ``flux_pipeline.save`` has written."""
        from safetensors.torch import load_file

        for part, file in (
            (self.transformer, "transformer/diffusion_pytorch_model.safetensors"),
            (self.clip, "text_encoder/model.safetensors"),
            (self.t5, "text_encoder_2/model.safetensors"),
        ):
            missing, unknown = part.load_state_dict(load_file(folder / file), strict=False)
            if unknown or set(missing) - {"encoder.embed_tokens.weight"}:  # which is T5's other embedding
                raise ValueError(f"{folder / file} is of another shape: {missing} are missing, {unknown} too many.")

    def read(self, tokens: Tensor, spaced: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP tokens (B, 77) to what FluxPipeline makes of the text: (B, 64, 96) of T5 and (B, 64) of CLIP."""
        return self.t5(self.as_t5(tokens, spaced))[0], self.clip(tokens).pooler_output


def flow(
    base: Base, transformer: Any, noisy: Tensor, sigma: Tensor, guidance: Tensor, text: tuple[Tensor, Tensor]
) -> Tensor:
    """The direction from picture to noise, (B, tokens, 64), that the transformer sees in packed latents."""
    embeds, pooled = text
    got: Tensor = transformer(
        hidden_states=noisy,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=sigma,
        guidance=guidance,
        img_ids=flux_nets.picture_ids(flux_nets.CELLS, flux_nets.CELLS, noisy.device),
        txt_ids=torch.zeros(embeds.shape[1], 3, device=noisy.device),
        return_dict=False,
    )[0]
    return got


@dataclass(frozen=True)
class Batch:
    """What one step learns from; random numbers are drawn when it is made."""

    clean: Tensor  # (B, tokens, 64)
    noise: Tensor
    sigma: Tensor  # (B,) share of noise
    tokens: Tensor  # (B, 77)
    spaced: Tensor  # (B,)
    weights: Tensor  # (B, tokens, 1) of errors

    @property
    def noisy(self) -> Tensor:
        sigma = self.sigma[:, None, None]
        return (1 - sigma) * self.clean + sigma * self.noise

    @property
    def target(self) -> Tensor:
        return self.noise - self.clean


def draw_batch(data: Data, count: int, device: torch.device) -> Batch:
    """Shares of noise are logit-normal, towards noise, as the scheduler shifts them for a picture of this size.

    One in ten is uniform, because drawing begins with nothing but noise, which the others hardly reach.
    """
    index = torch.randint(len(data.latents), (count,), device=device)
    which = torch.randint(data.tokens.shape[1], (count,), device=device)
    clean = flux_nets.packed(data.latents[index].float())
    sigma = torch.sigmoid(torch.randn(count, device=device) * 1.1 + 0.4)
    sigma = torch.where(torch.rand(count, device=device) < 0.1, torch.rand(count, device=device), sigma)
    spaced = torch.rand(count, device=device) < 0.5
    return Batch(clean, torch.randn_like(clean), sigma, data.tokens[index, which].long(), spaced, data.weights[index])


def some_left_out(base: Base, tokens: Tensor) -> Tensor:
    """One caption in ten becomes the empty one."""
    dropped = torch.rand(len(tokens), 1, device=tokens.device) < DROPOUT
    return torch.where(dropped, torch.tensor(base.empty, device=tokens.device), tokens)


def flow_loss(base: Base, transformer: Any, batch: Batch, device: torch.device) -> Tensor:
    """Mean weighted squared error at guidance 1."""
    with autocast(device):
        text = base.read(some_left_out(base, batch.tokens), batch.spaced)
        got = flow(base, transformer, batch.noisy, batch.sigma, torch.ones_like(batch.sigma), text)
    return (batch.weights * (got.float() - batch.target).square()).mean()


def taught_loss(
    base: Base, transformer: Any, teacher: Base, teaching: Any, batch: Batch, device: torch.device
) -> Tensor:
    """As ``flow_loss`` for the second half of the batch; the first half learns guidance from the teacher.

    Teacher and pupil make one pass each of the whole batch's size, so that compiled ones need no second compiling.
    """
    half = len(batch.tokens) // 2
    low, high = GUIDANCE
    guidance = torch.rand(half, device=device) * (high - low) + low
    empty = torch.tensor(base.empty, device=device).expand(half, -1)
    with torch.no_grad(), autocast(device):
        noisy, sigma, spaced = (torch.cat([part[:half]] * 2) for part in (batch.noisy, batch.sigma, batch.spaced))
        text = teacher.read(torch.cat([batch.tokens[:half], empty]), spaced)
        caption, without = flow(teacher, teaching, noisy, sigma, torch.ones_like(sigma), text).float().chunk(2)
        guided = without + guidance[:, None, None] * (caption - without)
    wanted = torch.cat([guided, batch.target[half:]])
    scales = torch.cat([guidance, torch.ones_like(batch.sigma[half:])])
    tokens = torch.cat([batch.tokens[:half], some_left_out(base, batch.tokens[half:])])
    with autocast(device):
        got = flow(base, transformer, batch.noisy, batch.sigma, scales, base.read(tokens, batch.spaced))
    return (batch.weights * (got.float() - wanted).square()).mean()


# --- the teacher -------------------------------------------------------------------------------------
def taught_by(teacher: Base, teaches: bool) -> dict[str, Tensor] | None:
    """What a checkpoint keeps of the teacher."""
    return teacher.state_dict() if teaches else None


def becomes_teacher(teacher: Base, base: Base, average: Average) -> None:
    """The teacher gets the averaged weights; it learns nothing more."""
    average.swap()
    teacher.load_state_dict(base.state_dict())
    average.swap()


def compiled_teacher(teacher: Base, data: Data, batch: int, device: torch.device, wanted: bool) -> Any:
    """Its transformer, compiled where the pupil's was; before the clock starts, because it takes a while."""
    if not wanted:
        return teacher.transformer
    compiled = torch.compile(teacher.transformer, dynamic=False)
    try:
        with torch.no_grad():
            flow_loss(teacher, compiled, draw_batch(data, batch, device), device)
    except Exception as error:  # any failure of the compiler only costs speed
        say(f"[flux] teacher not compiled: {type(error).__name__}: {str(error)[:300]}")
        return teacher.transformer
    return compiled


def export(base: Base, average: Average, out: Path, clock: Clock) -> None:
    """Write the pipeline with the averaged weights."""
    average.swap()
    figures = {"steps": clock.steps, "samples": clock.samples, "seconds": round(clock.elapsed())}
    known = dataset.vocabulary_words()
    flux_pipeline.save(out / flux_pipeline.FOLDER, base.transformer, base.clip, base.t5, known, figures)
    average.swap()


def main() -> None:
    """Train within the time given; write the pipeline at every checkpoint and at the end."""
    parser = arguments(__doc__ or "", 900)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--start", type=Path, help="folder of a demo FLUX whose weights are learned on from")
    parser.add_argument("--checkpoint", type=Path, default=Path("/tmp/demo_flux.pt"))
    parser.add_argument("--checkpoint-every", type=float, default=60, help="seconds")
    options = parser.parse_args()
    device = prepare_device(options.device, options.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)  # see headshot_ui.families.flux_parts.blocks.without_cudnn_attention
    base = Base(options.smoke, device).to(device)
    trained = list(base.parameters())
    if options.start:
        base.read_weights(options.start)
    average, optimizer = Average({"base": base}, 0.9993), adamw(trained, device)
    batch = options.batch or (4 if options.smoke else 512)
    say(
        f"[flux] transformer {count_parameters(base.transformer)}, CLIP {count_parameters(base.clip)}, "
        f"T5 {count_parameters(base.t5)}"
    )
    data = load_data(options.data, device)
    wanted = device.type == "cuda" and not options.no_compile
    runner = compile_or_not(
        base.transformer,
        lambda module: flow_loss(base, module, draw_batch(data, batch, device), device),
        wanted,
        "flux",
    )
    base.zero_grad(set_to_none=True)
    spent = resume(options.checkpoint, base, average, optimizer, device, "flux")
    teacher, teaches = copy.deepcopy(base).eval().requires_grad_(False), spent.get("teacher") is not None
    if teaches:
        teacher.load_state_dict(spent["teacher"])
    teaching = compiled_teacher(teacher, data, batch, device, runner is not base.transformer)
    clock = Clock(options.seconds, "flux", spent["elapsed"])
    clock.steps, clock.samples, saved = int(spent["steps"]), int(spent["samples"]), clock.elapsed()
    clock._said_samples = clock.samples
    recent = torch.ones((), device=device)  # running mean of the loss, about 200 steps long
    while (progress := clock.progress()) < 1:
        set_rate(optimizer, cosine(progress, options.rate))
        drawn = draw_batch(data, batch, device)
        if progress < TAUGHT_FROM:
            loss = flow_loss(base, runner, drawn, device)
        else:
            if not teaches:
                becomes_teacher(teacher, base, average)
                teaches = True
            loss = taught_loss(base, runner, teacher, teaching, drawn, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        recent.lerp_(loss.detach(), 0.005)
        clock.count(batch)
        if clock.steps % 10 == 0 and device.type == "cuda":  # a short queue, so that wall clock means something
            torch.cuda.synchronize()
        clock.say(lambda: {"loss": float(recent)})
        if clock.elapsed() - saved > options.checkpoint_every:
            saved = clock.elapsed()
            save_checkpoint(options.checkpoint, base, average, optimizer, clock, teacher=taught_by(teacher, teaches))
            export(base, average, options.out, clock)
    save_checkpoint(options.checkpoint, base, average, optimizer, clock, teacher=taught_by(teacher, teaches))
    export(base, average, options.out, clock)
    size = flux_pipeline.folder_bytes(options.out / flux_pipeline.FOLDER)
    say(
        f"[flux] done: {clock.steps} steps, {clock.samples / 1e6:.2f} M pictures in {clock.elapsed():.0f} s; "
        f"loss {float(recent):.4f}; {size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
