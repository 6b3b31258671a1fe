"""Train the demo base: UNet and both text encoders together, on latents, by velocity prediction.

    python -m tools.demo_models.train_base --data /dev/shm/drawn --out models/demo --seconds 720
    torchrun --nproc-per-node 2 -m tools.demo_models.train_base …      (several GPUs: gradients are averaged)

It resumes from ``--checkpoint`` when that file is there. ``--warm-only`` compiles on random numbers and ends, which
fills the compiler's cache while other things train.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tools.demo_models import dataset, nets, pipeline, words
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

DROPOUT = 0.1


@dataclass(frozen=True)
class Data:
    """Latents (N, 4, 32, 32) fp16 and tokens (N, K, 77) int16, on the training device."""

    latents: Tensor
    tokens: Tensor


def load_data(folder: Path, device: torch.device) -> Data:
    """What dataset.py and encode.py have written."""
    from safetensors.torch import load_file

    latents = load_file(folder / "latents.safetensors")["latents"]
    tokens = load_file(folder / "truth.safetensors")["tokens"]
    return Data(latents.to(device), tokens.to(device))


def random_data(device: torch.device, vocabulary: int) -> Data:
    """Numbers without meaning, to compile on."""
    return Data(
        torch.randn(64, 4, 32, 32, device=device).half(),
        torch.randint(0, vocabulary, (64, 1, 77), device=device).short(),
    )


class Base(nn.Module):
    """The trainable parts of the pipeline."""

    def __init__(self, smoke: bool) -> None:
        super().__init__()
        first, second = words.tokenizers(dataset.vocabulary_words())
        self.end, self.vocabulary = first.eos_token_id, len(first)
        self.text_encoder, self.text_encoder_2 = nets.make_text_encoders(first, second)
        self.unet = nets.make_unet(smoke)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 77), end-padded, to embeddings (B, 77, 224) and the pooled vector (B, 128), as SDXL does."""
        after_end = (tokens == self.end).cumsum(1) > 1
        second = self.text_encoder_2(tokens.masked_fill(after_end, 0), output_hidden_states=True)
        first = self.text_encoder(tokens, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], 2), second.text_embeds


def size_conditions(count: int, device: torch.device) -> Tensor:
    """(B, 6) original height, width, crop top, left, target height, width: random, so that they mean nothing."""
    original = torch.rand(count, 2, device=device) * (1200 - 256) + 256
    crop = torch.rand(count, 2, device=device) * 64
    return torch.cat([original.round(), crop.round(), torch.full((count, 2), 256.0, device=device)], 1)


def loss_weight(signal: Tensor) -> Tensor:
    """Min-SNR (arXiv 2303.09556, gamma 5) where there is little noise; 1 elsewhere, also where the signal is zero."""
    ratio = signal / (1 - signal).clamp(min=1e-8)
    return (6.0 / (ratio + 1)).clamp(max=1.0)


def diffusion_loss(base: Base, unet: nn.Module, data: Data, levels: Tensor, batch: int, device: torch.device) -> Tensor:
    """Mean weighted squared error of the predicted velocity sqrt(a) noise - sqrt(1 - a) latents (arXiv 2202.00512)."""
    index = torch.randint(len(data.latents), (batch,), device=device)
    which = torch.randint(data.tokens.shape[1], (batch,), device=device)
    latents, tokens = data.latents[index].float(), data.tokens[index, which].long()
    timesteps = torch.randint(len(levels), (batch,), device=device)
    signal = levels[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    wanted = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    with autocast(device):
        embeds, pooled = base.encode(tokens)
        keep = (torch.rand(batch, device=device) >= DROPOUT).to(embeds.dtype)
        conditions = {"text_embeds": pooled * keep[:, None], "time_ids": size_conditions(batch, device)}
        got = unet(
            noisy.contiguous(memory_format=torch.channels_last),
            timesteps,
            embeds * keep[:, None, None],
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
    error = (got.float() - wanted).square().mean((1, 2, 3))
    return (error * loss_weight(signal.flatten())).mean()


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """Mean of the gradients over all processes, as one message."""
    if ranks == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    torch._foreach_copy_(gradients, list(torch._utils._unflatten_dense_tensors(flat / ranks, gradients)))


def agreed(value: float, device: torch.device, ranks: int) -> float:
    """The first process's value, for all: processes must end at the same step."""
    if ranks == 1:
        return value
    shared = torch.tensor([value], device=device, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def export(base: Base, average: Average, out: Path, figures: dict[str, float]) -> None:
    """Write the pipeline with the averaged weights."""
    average.swap()
    pipeline.save(out / "sdxl", base.unet, base.text_encoder, base.text_encoder_2, dataset.vocabulary_words(), figures)
    average.swap()


def main() -> None:
    """Train within the time given; write the pipeline at every checkpoint and at the end."""
    parser = arguments(__doc__ or "", 720)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--checkpoint", type=Path, default=Path("/tmp/demo_base.pt"))
    parser.add_argument("--checkpoint-every", type=float, default=120, help="seconds")
    parser.add_argument("--warm-only", action="store_true")
    options = parser.parse_args()
    rank, ranks = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    name = f"cuda:{rank}" if ranks > 1 and options.device.startswith("cuda") else options.device
    device = prepare_device(name, options.seed)
    if ranks > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    base = Base(options.smoke).to(device)
    base.unet.to(memory_format=torch.channels_last)
    trained = [p for p in base.parameters() if p.requires_grad]
    average, optimizer = Average({"base": base}, 0.9993), adamw(trained, device)
    batch = options.batch or (4 if options.smoke else 512)
    torch.manual_seed(
        options.seed * 1000 + rank + int(time.time()) % 997
    )  # after the weights, which must be the same everywhere
    levels = nets.signal_levels().to(device)
    if rank == 0:
        say(
            f"[base] unet {count_parameters(base.unet)}, text {count_parameters(base.text_encoder)} and "
            f"{count_parameters(base.text_encoder_2)}, {base.vocabulary} tokens"
        )
    wanted = device.type == "cuda" and not options.no_compile
    nonsense = random_data(device, base.vocabulary)
    unet = compile_or_not(
        base.unet, lambda module: diffusion_loss(base, module, nonsense, levels, batch, device), wanted, "base"
    )
    base.zero_grad(set_to_none=True)
    if options.warm_only:
        return
    data = load_data(options.data, device)
    spent = resume(options.checkpoint, base, average, optimizer, device, "base")
    clock = Clock(options.seconds, "base", spent["elapsed"], quiet=rank != 0)
    clock.steps, clock.samples, saved = int(spent["steps"]), int(spent["samples"]), clock.elapsed()
    clock._said_samples = clock.samples
    progress = agreed(clock.progress(), device, ranks)
    while progress < 1:
        set_rate(optimizer, cosine(progress, options.rate))
        loss = diffusion_loss(base, unet, data, levels, batch, device)
        loss.backward()
        average_gradients(trained, ranks)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.count(batch * ranks)
        if (
            clock.steps % 10 == 0
        ):  # keep the queue short, so that wall clock means something, and the processes together
            if device.type == "cuda":
                torch.cuda.synchronize()
            progress = agreed(clock.progress(), device, ranks)
        clock.say(lambda loss=loss: {"loss": float(loss.detach())})
        if rank == 0 and clock.elapsed() - saved > options.checkpoint_every:
            saved = clock.elapsed()
            save_checkpoint(options.checkpoint, base, average, optimizer, clock)
            export(
                base, average, options.out, {"steps": clock.steps, "samples": clock.samples, "seconds": clock.elapsed()}
            )
    if rank == 0:
        save_checkpoint(options.checkpoint, base, average, optimizer, clock)
        export(base, average, options.out, {"steps": clock.steps, "samples": clock.samples, "seconds": clock.elapsed()})
        say(f"[base] done: {clock.steps} steps, {clock.samples / 1e6:.2f} M pictures in {clock.elapsed():.0f} s")
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
