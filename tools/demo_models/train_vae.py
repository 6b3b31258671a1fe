"""Train the VAE of the demo base: 256 px pictures to 32 x 32 latents and back.

Most steps see crops of 128 px round the face, which cost a quarter; the last part sees whole pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from tools.demo_models import dataset, nets
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

CROP = 128


class _RoundTrip(torch.nn.Module):
    """Picture → latents with a little noise → picture: one module, so that it compiles as one."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moments = self.vae.quant_conv(self.vae.encoder(pictures))
        mean, logvar = moments.chunk(2, dim=1)
        # Five per cent of noise teaches the decoder to forgive the small errors of a denoiser.
        spread = 0.05 * mean.detach().float().std()
        latents = mean + spread.to(mean.dtype) * noise
        return self.vae.decoder(self.vae.post_quant_conv(latents)), mean, logvar


def importance(boxes: Tensor, landmarks: Tensor, size: int) -> Tensor:
    """(B, 1, size, size): 1 outside, 3 in the face's box, 6 round eyes and mouth; boxes and marks in pixels."""
    places = torch.arange(size, device=boxes.device) + 0.5
    x, y = places.view(1, 1, 1, size), places.view(1, 1, size, 1)
    left, top, right, bottom = (boxes[:, i].view(-1, 1, 1, 1) for i in range(4))
    weight = 1 + 2 * ((x > left) & (x < right) & (y > top) & (y < bottom)).float()
    radius = (0.11 * (right - left)).square()
    for i in (0, 1, 3, 4):
        mark = landmarks[:, i].view(-1, 2, 1, 1)
        near = ((x - mark[:, :1]) ** 2 + (y - mark[:, 1:]) ** 2) < radius
        weight = torch.where(near, 6.0, weight)
    return weight


def crops(pictures: Tensor, boxes: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A window of 128 px from each picture (uint8), more often than not over the face, with the marks moved along."""
    count, size = len(pictures), pictures.shape[-1]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + torch.randn(count, 2, device=boxes.device) * 30
    anywhere = torch.rand(count, 2, device=boxes.device) * size
    middle = torch.where(torch.rand(count, 1, device=boxes.device) < 0.6, middle, anywhere)
    corner = (middle - CROP / 2).round().clamp(0, size - CROP).long()
    steps = torch.arange(CROP, device=pictures.device)
    rows, columns = corner[:, 1:] + steps, corner[:, :1] + steps
    cut = pictures[torch.arange(count, device=pictures.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2), boxes - corner.repeat(1, 2), landmarks - corner[:, None]


def _edges(picture: Tensor) -> tuple[Tensor, Tensor]:
    return picture[..., :, 1:] - picture[..., :, :-1], picture[..., 1:, :] - picture[..., :-1, :]


def loss_terms(out: Tensor, target: Tensor, weight: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted L1 with edges at three scales and a touch of KL; also the plain mean error. Pictures in [-1, 1]."""
    out, difference = out.float(), out.float() - target
    normal = weight / weight.mean(dim=(2, 3), keepdim=True)
    loss = (difference.abs() * normal).mean()
    for _ in range(3):
        for got, wanted, side in zip(
            _edges(out), _edges(target), (normal[..., :, 1:], normal[..., 1:, :]), strict=True
        ):
            loss = loss + 0.7 * ((got - wanted).abs() * side).mean()
        out, target, normal = F.avg_pool2d(out, 2), F.avg_pool2d(target, 2), F.avg_pool2d(normal, 2)
    kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
    return loss + 1e-5 * kl, difference.abs().mean() / 2


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Bake mean 0 and standard deviation 1 / SCALING_FACTOR of each latent channel into the two 1 x 1 convolutions."""
    means = torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in pictures.split(32)])
    middle, spread = means.mean((0, 2, 3)), means.std((0, 2, 3)) * nets.SCALING_FACTOR
    channels = len(middle)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] /= spread.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - middle) / spread
    before.bias[channels:] -= 2 * spread.log()
    after.bias += (after.weight[:, :, 0, 0] * middle).sum(1)
    after.weight *= spread.view(1, -1, 1, 1)


@torch.no_grad()
def mean_error(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean absolute error in [0, 1] of uint8 pictures sent through the VAE."""
    total = 0.0
    for part in pictures.split(32):
        target = part.float() / 127.5 - 1
        out = vae.decode(vae.encode(target).latent_dist.mean).sample.clamp(-1, 1)
        total += float((out - target).abs().mean()) / 2 * len(part)
    return total / len(pictures)


def save(vae: AutoencoderKL, average: Average, pictures: Tensor, folder: Path) -> float:
    """Write the averaged weights, normalised, in fp16; returns the error on ``pictures``."""
    average.swap()
    kept = vae.state_dict()
    copy = AutoencoderKL.from_config(vae.config)
    copy.load_state_dict(kept)
    average.swap()
    copy = copy.to(pictures.device).eval()
    normalise(copy, pictures)
    copy = copy.half().float()
    error = mean_error(copy, pictures)
    copy.half().cpu().save_pretrained(folder)
    return error


def main() -> None:
    """Train within the time given and write ``sdxl/vae``."""
    parser = arguments(__doc__ or "", 200)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=64_000, help="how many pictures are held on the device")
    options = parser.parse_args()
    device = prepare_device(options.device, options.seed)
    drawn = dataset.load(options.data)
    kept_back = 32 if options.smoke else 512  # the last pictures are never trained on
    pictures = drawn.on(device, 0, min(options.pictures, len(drawn.pictures) - kept_back))
    test = drawn.on(device, len(drawn.pictures) - kept_back, kept_back)
    boxes, landmarks = drawn.boxes.to(device), drawn.landmarks.to(device)
    vae = nets.make_vae(options.smoke).to(device, memory_format=torch.channels_last)
    say(f"[vae] {count_parameters(vae)} parameters, {len(pictures)} pictures")
    trip = _RoundTrip(vae)
    batch = options.batch or (4 if options.smoke else 128)
    average = Average({"vae": vae}, 0.998)
    optimizer = adamw(list(vae.parameters()), device)
    wholes = max(1, batch // 4)

    def step(module: torch.nn.Module, whole: bool) -> tuple[Tensor, Tensor]:
        count = wholes if whole else batch
        index = torch.randint(len(pictures), (count,), device=device)
        seen, box, marks = pictures[index], boxes[index], landmarks[index]
        if not whole:
            seen, box, marks = crops(seen, box, marks)
        target = (seen.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        weight = importance(box, marks, target.shape[-1])
        noise = torch.randn(count, 4, target.shape[-2] // 8, target.shape[-1] // 8, device=device)
        with autocast(device):
            out, mean, logvar = module(target, noise)
        return loss_terms(out, target, weight, mean, logvar)

    wanted = device.type == "cuda" and not options.no_compile
    runner = compile_or_not(trip, lambda module: step(module, False)[0] + step(module, True)[0], wanted, "vae")
    clock, saved = Clock(options.seconds, "vae"), 0.0
    while (progress := clock.progress()) < 1:
        whole = progress > 0.65 or clock.steps % 4 == 3
        set_rate(optimizer, cosine(progress, options.rate))
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
        if clock.elapsed() - saved > 60:
            saved = clock.elapsed()
            save(vae, average, test, options.out / "sdxl" / "vae")
    error = save(vae, average, test, options.out / "sdxl" / "vae")
    say(
        f"[vae] done: {clock.steps} steps, {clock.samples} pictures; "
        f"mean absolute error {error:.4f} on {len(test)} unseen pictures"
    )


if __name__ == "__main__":
    main()
