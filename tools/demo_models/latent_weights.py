"""Give each channel of a VAE's latents the weight that it has in the picture.

A VAE of 16 channels uses a few of them for nearly all that is seen. With the same deviation in all of them a small
transformer spends its size on what nobody sees: of the first demo FLUX's latents six directions made 98 % of the
picture and had six sixteenths of the loss, and its faces came apart. Here latents are turned so that what counts comes
first, and each direction's variance is the square root of its share of the picture: half way between shares as they
are, where the first direction would drown eyes and mouths, and equal ones.

How much a direction counts is measured: G = E[JᵀJ] of the decoder's Jacobian J, by finite differences, with the weights
that eyes, mouth and face have in the VAE's own training. The change is linear and exact: it goes into the convolutions
before and behind the latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

#: A change of a latent, as a share of all latents' deviation, by which the decoder's response is measured.
STEP = 0.1
#: Deviation that the encoder says its latents have, as a share of the channel's own: what its training adds.
SPREAD = 0.05


@torch.no_grad()
def responses(vae: AutoencoderKL, latents: Tensor, importance: Tensor) -> Tensor:
    """(C, C): mean over cells of the inner products of what changes of C channels do to the pictures, per unit.

    ``latents`` (B, C, h, w) unscaled, ``importance`` (B, 1, H, W) of pixels. Neighbouring cells change with different
    signs, so that each is measured by itself on the whole.
    """
    step = STEP * float(latents.std())
    generator = torch.Generator(latents.device).manual_seed(0)
    signs = torch.randint(0, 2, (len(latents), 1, *latents.shape[-2:]), generator=generator, device=latents.device)
    signs = 2.0 * signs - 1
    before, root = vae.decode(latents).sample, (importance / importance.mean((1, 2, 3), keepdim=True)).sqrt()
    changes = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel : channel + 1] += step * signs
        changes.append(((vae.decode(moved).sample - before) * root / step).flatten())
    rows = torch.stack(changes)
    return rows @ rows.T / signs.numel()


def weighing(covariance: Tensor, response: Tensor) -> Tensor:
    """(C, C) A: latents A z have no covariance, what counts most in front, variances as described above.

    Both matrices are symmetric, and the second is positive. In A z the trace of the covariance is C.
    """
    values, vectors = torch.linalg.eigh(response.double())
    half = vectors @ values.clamp(min=1e-12).sqrt().diag() @ vectors.T
    shares, turned = torch.linalg.eigh(half @ covariance.double() @ half)
    shares, turned = shares.flip(0).clamp(min=1e-12), turned.flip(1)
    variances = shares.sqrt() * len(shares) / shares.sqrt().sum()
    return ((variances / shares).sqrt().diag() @ turned.T @ half).to(covariance.dtype)


@torch.no_grad()
def weigh(vae: AutoencoderKL, pictures: Tensor, importance: Tensor, measured: int = 32) -> None:
    """Change the VAE in place: the same pictures come back, through weighed latents whose deviation is about 1.

    ``pictures`` (N, 3, H, W) uint8 with their ``importance`` (N, 1, H, W); ``measured`` of them tell the decoder's
    response. Mean and deviation of all channels together become 0 and 1 by shift and factor in the config.
    """
    means = torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in pictures.split(32)])
    channels = means.shape[1]
    response = sum(
        responses(vae, part, weights)
        for part, weights in zip(means[:measured].split(4), importance[:measured].split(4), strict=True)
    )
    covariance = torch.cov(means.movedim(1, 0).flatten(1))
    change = weighing(covariance, response / len(means[:measured].split(4)))  # type: ignore[operator]
    before, behind = vae.encoder.conv_out, vae.decoder.conv_in
    before.weight[:channels] = torch.einsum("ij,jkhw->ikhw", change, before.weight[:channels])
    before.bias[:channels] = change @ before.bias[:channels]
    behind.weight.copy_(torch.einsum("okhw,kj->ojhw", behind.weight, torch.linalg.inv(change.double()).float()))
    means = torch.einsum("ij,njhw->nihw", change, means)
    # Spreads cannot be turned with the means; each becomes the share of noise that the decoder has learned to forgive.
    before.weight[channels:] = 0
    before.bias[channels:] = 2 * (SPREAD * means.std((0, 2, 3))).log()
    vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))
