"""Send all training pictures through the trained VAE once, so that the base trains on latents only.

python -m tools.demo_models.encode --data /dev/shm/drawn --vae models/demo/sdxl/vae
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.demo_models import dataset
from tools.demo_models.common import autocast, prepare_device, save_tensors, say


@torch.inference_mode()
def encode_all(vae: AutoencoderKL, drawn: dataset.Drawn, device: torch.device, batch: int = 256) -> Tensor:
    """Scaled latents (N, 4, 32, 32) fp16 on the CPU: the mean of the posterior times the scaling factor."""
    out, said = [], time.monotonic()
    for start in range(0, len(drawn.pictures), batch):
        pictures = drawn.pictures[start : start + batch].to(device).float() / 127.5 - 1
        with autocast(device):
            mean = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        out.append((mean.float() * vae.config.scaling_factor).half())
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"[encode] {start} of {len(drawn.pictures)}")
    return torch.cat(out).cpu()


def main() -> None:
    """Write ``latents.safetensors`` beside the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = prepare_device(options.device, 0)
    started = time.monotonic()
    vae = AutoencoderKL.from_pretrained(options.vae).to(device, torch.float32, memory_format=torch.channels_last).eval()
    latents = encode_all(vae, dataset.load(options.data), device)
    save_tensors(options.data / "latents.safetensors", {"latents": latents})
    flat = latents[:4096].float()
    say(
        f"[encode] {len(latents)} latents in {time.monotonic() - started:.0f} s; "
        f"mean {flat.mean():.3f}, deviation {flat.std():.3f}"
    )


if __name__ == "__main__":
    main()
