"""Between pictures and latents."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image


@torch.no_grad()
def encode_images(vae: Any, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to scaled latents (B, C, H/8, W/8) float32; the posterior's mean without generator."""
    posterior = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
    latents: torch.Tensor = posterior.mode() if generator is None else posterior.sample(generator)
    shift, scale = _shift_and_scale(vae, latents)
    return (latents.float() - shift) * scale


@torch.no_grad()
def decode_latents(vae: Any, latents: torch.Tensor) -> list[Image.Image]:
    """Scaled latents (B, C, h, w) to RGB pictures, one after the other to keep the peak memory of one."""
    return [_to_picture(_decode(vae, item[None])[0]) for item in latents]


def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents to (B, 3, H, W) float32 in [-1, 1]."""
    shift, scale = _shift_and_scale(vae, latents)
    unscaled = latents.to(vae.device).float() / scale.to(vae.device) + shift.to(vae.device)
    images: torch.Tensor = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]
    return images.float().clamp(-1, 1)


def _shift_and_scale(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``scaled = (latents - shift) * scale``; (1, C, 1, 1) or (1, 1, 1, 1) float32."""
    factor = float(vae.config.scaling_factor)
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return like.new_zeros(1, 1, 1, 1, dtype=torch.float32), like.new_full((1, 1, 1, 1), factor, dtype=torch.float32)
    shift = torch.tensor(mean, device=like.device, dtype=torch.float32).view(1, -1, 1, 1)
    return shift, factor / torch.tensor(std, device=like.device, dtype=torch.float32).view(1, -1, 1, 1)


def _to_picture(image: torch.Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] to 8 bit RGB."""
    pixels = (image * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


# --- preview -------------------------------------------------------------------------------------
@torch.no_grad()
def fit_preview(vae: Any) -> torch.Tensor:
    """(C + 1, 3): the linear map from latents (and 1) to RGB that is nearest to this VAE.

    Fitted by least squares on smooth random latents, for which one latent cell has one colour.
    """
    generator = torch.Generator().manual_seed(0)
    channels = vae.config.latent_channels
    coarse = torch.randn(8, channels, 2, 2, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    pixels = torch.cat([_decode(vae, item[None]).cpu() for item in latents])
    colours = torch.nn.functional.adaptive_avg_pool2d(pixels, 8)
    known = latents.permute(0, 2, 3, 1).reshape(-1, channels)
    known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    matrix: torch.Tensor = torch.linalg.lstsq(known, colours.permute(0, 2, 3, 1).reshape(-1, 3)).solution
    return matrix


@torch.no_grad()
def preview_pictures(latents: torch.Tensor, matrix: torch.Tensor, scale: int) -> list[Image.Image]:
    """Latents in any state to small RGB pictures, enlarged ``scale`` times.

    Unfinished latents are mostly noise, up to thousands strong; dividing by their spread keeps colours in range.
    """
    cells = latents.detach().float().cpu()
    cells = cells / cells.std(dim=(1, 2, 3), keepdim=True).clamp(min=1.0)
    colours = torch.einsum("bchw,cd->bdhw", cells, matrix[:-1]) + matrix[-1].view(1, 3, 1, 1)
    pictures = [_to_picture(image.clamp(-1, 1)) for image in colours]
    return [p.resize((p.width * scale, p.height * scale), Image.Resampling.BICUBIC) for p in pictures]
