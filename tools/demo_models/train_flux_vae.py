"""Train the VAE of the demo FLUX: 256 px pictures to 32 x 32 latents of 16 channels and back; then encode all pictures.

    python -m tools.demo_models.train_flux_vae --data /dev/shm/drawn --out models/demo --seconds 140

Losses, crops and weights are those of ``train_vae.py``. At the end ``flux_latents.safetensors`` lies beside the
pictures. It resumes from ``--checkpoint`` when that file is there.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.demo_models import dataset, flux_nets, flux_pipeline
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
    save_tensors,
    say,
    set_rate,
)
from tools.demo_models.latent_weights import weigh
from tools.demo_models.train_vae import crops, importance, loss_terms, mean_error

LATENTS = "flux_latents.safetensors"
CHECKPOINT_EVERY = 30  # seconds


class _RoundTrip(torch.nn.Module):
    """Picture → latents with a little noise → picture: one module, so that it compiles as one."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.vae.encoder(pictures).chunk(2, dim=1)
        spread = 0.05 * mean.detach().float().std()  # teaches the decoder to forgive a denoiser's small errors
        return self.vae.decoder(mean + spread.to(mean.dtype) * noise), mean, logvar


def save(vae: AutoencoderKL, average: Average, pictures: Tensor, seen: Tensor, folder: Path) -> float:
    """Write averaged weights, weighed (``latent_weights``), in fp16; returns the mean absolute error on ``pictures``.

    ``seen`` is the importance of their pixels.

    The folder is there whole or not at all: by it a later run knows that the VAE is done.
    """
    average.swap()
    copy = AutoencoderKL.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    average.swap()
    copy = copy.to(pictures.device).eval()
    weigh(copy, pictures, seen)
    copy = copy.half().float()
    error = mean_error(copy, pictures)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    copy.half().cpu().save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return error


@torch.inference_mode()
def encode_all(folder: Path, drawn: dataset.Drawn, device: torch.device, batch: int = 256) -> Tensor:
    """Latents (N, 16, 32, 32) fp16 on the CPU as the transformer takes them: (mean - shift) times the factor."""
    vae = AutoencoderKL.from_pretrained(folder).to(device, torch.float32, memory_format=torch.channels_last).eval()
    out = []
    for start in range(0, len(drawn.pictures), batch):
        pictures = drawn.pictures[start : start + batch].to(device).float() / 127.5 - 1
        with autocast(device):
            mean = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        out.append(((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu())
    return torch.cat(out)


def train(vae: AutoencoderKL, drawn: dataset.Drawn, device: torch.device, options: object, folder: Path) -> None:
    """Train within ``options.seconds`` and write ``folder``."""
    smoke, pictures_wanted = options.smoke, options.pictures  # type: ignore[attr-defined]
    kept_back = 16 if smoke else 512  # the last pictures are never trained on
    pictures = drawn.on(device, 0, min(pictures_wanted, len(drawn.pictures) - kept_back))
    test = drawn.on(device, len(drawn.pictures) - kept_back, kept_back)
    boxes, landmarks = drawn.boxes.to(device), drawn.landmarks.to(device)
    batch = options.batch or (4 if smoke else 128)  # type: ignore[attr-defined]
    average, optimizer = Average({"vae": vae}, 0.998), adamw(list(vae.parameters()), device)
    wholes = max(1, batch // 4)

    def step(module: torch.nn.Module, whole: bool) -> tuple[Tensor, Tensor]:
        count = wholes if whole else batch
        index = torch.randint(len(pictures), (count,), device=device)
        seen, box, marks = pictures[index], boxes[index], landmarks[index]
        if not whole:
            seen, box, marks = crops(seen, box, marks)
        target = (seen.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(count, flux_nets.CHANNELS, target.shape[-2] // 8, target.shape[-1] // 8, device=device)
        with autocast(device):
            out, mean, logvar = module(target, noise)
        return loss_terms(out, target, importance(box, marks, target.shape[-1]), mean, logvar)

    wanted = device.type == "cuda" and not options.no_compile  # type: ignore[attr-defined]
    trip = _RoundTrip(vae)
    runner = compile_or_not(trip, lambda module: step(module, False)[0] + step(module, True)[0], wanted, "flux vae")
    checkpoint = options.checkpoint  # type: ignore[attr-defined]
    spent = resume(checkpoint, vae, average, optimizer, device, "flux vae")
    clock = Clock(options.seconds, "flux vae", spent["elapsed"])  # type: ignore[attr-defined]
    clock.steps, clock.samples, saved = int(spent["steps"]), int(spent["samples"]), clock.elapsed()
    clock._said_samples = clock.samples
    while (progress := clock.progress()) < 1:
        whole = progress > 0.65 or clock.steps % 4 == 3
        set_rate(optimizer, cosine(progress, options.rate))  # type: ignore[attr-defined]
        loss, error = step(runner, whole)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.count(wholes if whole else batch)
        if clock.steps % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        clock.say(lambda loss=loss, error=error: {"loss": float(loss.detach()), "mae": float(error.detach())})
        if clock.elapsed() - saved > CHECKPOINT_EVERY:
            saved = clock.elapsed()
            save_checkpoint(checkpoint, vae, average, optimizer, clock)
    last = slice(len(drawn.pictures) - kept_back, None)
    error = save(vae, average, test, importance(boxes[last], landmarks[last], dataset.SIZE), folder)
    say(
        f"[flux vae] done: {clock.steps} steps, {clock.samples} pictures; "
        f"mean absolute error {error:.4f} on {len(test)} unseen pictures"
    )


def main() -> None:
    """Train unless there is one, then encode."""
    parser = arguments(__doc__ or "", 140)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--pictures", type=int, default=64_000, help="how many pictures are held on the device")
    parser.add_argument("--checkpoint", type=Path, default=Path("/tmp/demo_flux_vae.pt"))
    options = parser.parse_args()
    device, drawn = prepare_device(options.device, options.seed), dataset.load(options.data)
    folder = options.out / flux_pipeline.FOLDER / "vae"
    if not (folder / "config.json").is_file():
        vae = flux_nets.make_vae(options.smoke).to(device, memory_format=torch.channels_last)
        say(f"[flux vae] {count_parameters(vae)} parameters")
        train(vae, drawn, device, options, folder)
    started = time.monotonic()
    latents = encode_all(folder, drawn, device)
    save_tensors(options.data / LATENTS, {"latents": latents})
    flat = latents[:4096].float()
    say(
        f"[flux vae] {len(latents)} latents in {time.monotonic() - started:.0f} s; "
        f"mean {flat.mean():.3f}, deviation {flat.std():.3f}"
    )


if __name__ == "__main__":
    main()
