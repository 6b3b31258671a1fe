"""Between pictures and latents.

Photos are read in the VAE's own number format. Pictures may be decoded in another: in bfloat16 one takes a third of the
time of float32 and differs by half of one of 255 levels (54 dB, measured with the demo base).

A picture that is not a number would be saved black. It is decoded again in float32, which a VAE that overflowed in 16
bit survives; where that is no number either, the latents were none, and a ModelError says so.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from headshot_ui.errors import ModelError
from headshot_ui.families.shared_parts.drawing import not_a_number
from headshot_ui.memory import DECODING, ENCODING

TILE_PX = 512

_log = logging.getLogger(__name__)


@torch.no_grad()
def encode_images(
    vae: Any, images: torch.Tensor, generator: torch.Generator | None = None, room: int | None = None
) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to scaled latents (B, C, H/8, W/8) float32; the posterior's mean without generator.

    ``room``: bytes that are free on the device; with too few it works in tiles. None: there is enough.
    """
    with _in_tiles(vae, ENCODING * images.shape[-1] * images.shape[-2], room):
        latents = _in_float32_if_need_be(vae, lambda: _encode(vae, images, generator))
    if not torch.isfinite(latents).all():
        raise ModelError("The base model reads a photo as “not a number”: get its VAE again, or choose another base.")
    shift, scale = _shift_and_scale(vae, latents)
    return (latents.float() - shift) * scale


def _encode(vae: Any, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    posterior = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
    latents: torch.Tensor = posterior.mode() if generator is None else posterior.sample(generator)
    return latents


@torch.no_grad()
def decode_latents(
    vae: Any, latents: torch.Tensor, room: int | None = None, dtype: torch.dtype | None = None
) -> list[Image.Image]:
    """Scaled latents (B, C, h, w) to RGB pictures, one after the other to keep the peak memory of one.

    ``room`` as for ``encode_images``, 0: it works in tiles; ``dtype`` to compute in, None: the VAE's own. Raises
    ModelError for a picture that is not a number.
    """
    pixels = latents.shape[-1] * latents.shape[-2] * _cell_px(vae) ** 2
    with _in_format(vae, dtype or vae.dtype), _in_tiles(vae, DECODING * pixels, room):
        return [_picture(vae, item[None]) for item in latents]


def _picture(vae: Any, latents: torch.Tensor) -> Image.Image:
    image = _in_float32_if_need_be(vae, lambda: _decode(vae, latents))[0]
    if not torch.isfinite(image).all():
        raise ModelError(not_a_number(torch.float32))
    return _to_picture(image)


def _in_float32_if_need_be(vae: Any, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``compute`` answers; where that is no number, what it answers with the VAE in float32."""
    result, dtype = compute(), vae.dtype
    if dtype == torch.float32 or torch.isfinite(result).all():
        return result
    _log.warning("The VAE overflowed in %s and computes this picture in float32", dtype)
    with _in_format(vae, torch.float32):
        return compute()


@contextmanager
def _in_format(vae: Any, dtype: torch.dtype) -> Iterator[None]:
    """Have the VAE compute in this number format; afterwards its weights are the very same tensors as before."""
    if vae.dtype == dtype:
        yield
        return
    kept = [(tensor, tensor.data) for tensor in (*vae.parameters(), *vae.buffers()) if tensor.is_floating_point()]
    try:
        for tensor, data in kept:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@contextmanager
def _in_tiles(vae: Any, bytes_in_16_bit: int, room: int | None) -> Iterator[None]:
    """Have the VAE work in overlapping tiles where the whole picture would not fit. Tiles change colours a little."""
    needed = bytes_in_16_bit * (2 if vae.dtype == torch.float32 else 1)
    if room is None or needed <= room:
        yield
        return
    _log.warning("The picture is computed in tiles: the VAE needs %d MB for it and may have %d",
                 needed >> 20, room >> 20)  # fmt: skip
    before = vae.tile_sample_min_size, vae.tile_latent_min_size
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE_PX, TILE_PX // _cell_px(vae)
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = before


def _cell_px(vae: Any) -> int:
    """Pixels per side of one latent cell."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents to (B, 3, H, W) float32 in [-1, 1]."""
    shift, scale = _shift_and_scale(vae, latents)
    unscaled = latents.to(vae.device).float() / scale.to(vae.device) + shift.to(vae.device)
    images: torch.Tensor = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]
    return images.float().clamp(-1, 1)


def _shift_and_scale(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``scaled = (latents - shift) * scale``; (1, C, 1, 1) or (1, 1, 1, 1) float32."""
    factor, middle = float(vae.config.scaling_factor), float(getattr(vae.config, "shift_factor", None) or 0)
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        shift, scale = (like.new_full((1, 1, 1, 1), number, dtype=torch.float32) for number in (middle, factor))
        return shift, scale
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
    if vae.device.type == "cpu" and vae.dtype != torch.float32:  # processors are slow in half precision
        vae = copy.deepcopy(vae).float()
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
