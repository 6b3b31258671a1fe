"""Train the demo restorer: drawn faces with flaws in, clean ones out.

    python -m tools.demo_models.train_restorer --sdxl models/demo/sdxl --out models/demo --seconds 300

It draws its own people larger than the demo base does, so that the clean faces are sharp, and cuts the faces out by
their true landmarks, a little off, as a detector is. A third of the flawed faces went through the VAE first.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headshot_ui.restoration.demo_net import SIDE, DemoRestorerNet
from tools.demo_models import draw, world
from tools.demo_models.common import (
    Average,
    Clock,
    adamw,
    arguments,
    autocast,
    compile_or_not,
    cosine,
    count_parameters,
    half_state,
    prepare_device,
    save_tensors,
    say,
    set_rate,
)
from tools.demo_models.flaws import degraded
from tools.demo_models.train_recogniser import read_vae

DRAWN = 384
#: Where facexlib puts the five landmarks in an aligned face of 512 pixels.
TEMPLATE = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
TRAINING_SEED, TEST_SEED = 21_000, 22_000


def transforms(landmarks: Tensor, jitter: float) -> Tensor:
    """(B, 2, 3) from aligned pixels (SIDE) to picture pixels, least squares, turned and shifted a little at random."""
    template = torch.tensor(TEMPLATE, dtype=torch.float32, device=landmarks.device) / 512 * SIDE
    z = torch.view_as_complex(landmarks.float().contiguous())
    w = torch.view_as_complex(template)
    b = ((z - z.mean(1, keepdim=True)) * (w - w.mean()).conj()).sum(1, keepdim=True) / (
        w - w.mean()
    ).abs().square().sum()
    centre = z.mean(1, keepdim=True)
    count = len(landmarks)
    off = jitter * torch.randn(count, 4, device=landmarks.device)
    b = b * torch.polar(1 + 0.05 * off[:, 0], 0.05 * off[:, 1])[:, None]
    shift = centre - b * (w.mean() + torch.complex(off[:, 2], off[:, 3])[:, None] * 0.02 * SIDE)
    rows = torch.stack([b.real, -b.imag, shift.real, b.imag, b.real, shift.imag], dim=2)
    return rows.view(-1, 2, 3)


def aligned(pictures: Tensor, landmarks: Tensor, jitter: float) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] to aligned faces (B, 3, SIDE, SIDE) in [-1, 1], smoothly shrunk."""
    from headshot_ui.recognisers.demo import cut_out

    twice = cut_out(
        pictures, transforms(landmarks, jitter) * torch.tensor([0.5, 0.5, 1.0], device=pictures.device), 2 * SIDE
    )
    return F.avg_pool2d(twice, 2) * 2 - 1


@torch.inference_mode()
def draw_faces(count: int, seed: int, device: torch.device, jitter: float, batch: int = 128) -> Tensor:
    """(count, 3, SIDE, SIDE) uint8 clean faces, each of another person."""
    people, scenes = world.sample_people(count, seed), world.sample_scenes(count, seed)
    out = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8, device=device)
    said = time.monotonic()
    for start in range(0, count, batch):
        who, what = people[start : start + batch].to(device), scenes[start : start + batch].to(device)
        faces = aligned(draw.draw(who, what, DRAWN), draw.truth(who, what, DRAWN)[1], jitter)
        out[start : start + len(faces)] = ((faces + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"[restorer] drawn {start + batch} of {count}")
    return out


@torch.inference_mode()
def through_vae(vae: nn.Module, faces: Tensor, batch: int = 128) -> Tensor:
    """uint8 faces by way of the VAE, with a little noise on the latents as unfinished drawing leaves it."""
    out = torch.empty_like(faces)
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch].float() / 127.5 - 1
        with autocast(faces.device):
            latents = vae.encode(part).latent_dist.mean
            latents = latents + torch.randn_like(latents) * latents.std() * 0.12 * torch.rand(
                len(part), 1, 1, 1, device=faces.device
            )
            part = vae.decode(latents).sample
        out[start : start + len(part)] = ((part.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return out


def edges(pictures: Tensor) -> Tensor:
    """Differences between neighbours, both ways, in one row of numbers per picture."""
    across, down = pictures.diff(dim=3).flatten(1), pictures.diff(dim=2).flatten(1)
    return torch.cat([across, down], 1)


def restorer_loss(net: nn.Module, clean: Tensor, source: Tensor) -> Tensor:
    """L1 of colours and edges to the clean face, with as much of the flaws left in as the fidelity weight keeps."""
    flawed = degraded(source)
    weight = torch.rand(len(clean), device=clean.device)
    weight = torch.where(torch.rand_like(weight) < 0.2, weight.round(), weight)
    wanted = clean + DemoRestorerNet.KEPT * weight.view(-1, 1, 1, 1) * (flawed - clean)
    with autocast(clean.device):
        got = net(flawed.contiguous(memory_format=torch.channels_last), weight)
    got = got.float()
    return F.l1_loss(got, wanted) + F.l1_loss(edges(got), edges(wanted))


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """(B,) decibels of pictures in [-1, 1]."""
    return 10 * torch.log10(4 / (one - other).square().flatten(1).mean(1).clamp(min=1e-10))


@torch.no_grad()
def evaluate(net: nn.Module, faces: Tensor, figures: dict[str, float]) -> tuple[dict[str, float], Tensor]:
    """Decibels gained on unseen people, and how far the result is from the input, for three weights; a picture."""
    torch.manual_seed(5)
    clean = faces.float() / 127.5 - 1
    flawed = degraded(clean)
    before = psnr(flawed, clean)
    rows = [clean[:10], flawed[:10]]
    worn = before < 40  # those with flaws
    figures["psnr_before"] = before[worn].mean().item()
    for weight in (0.0, 0.5, 1.0):
        got = torch.cat([net(part, weight) for part in flawed.split(64)])
        figures[f"gain_{weight:g}"] = (psnr(got, clean) - before)[worn].mean().item()
        figures[f"change_{weight:g}"] = (got - flawed).abs().mean().item()
        rows.append(got[:10])
    return figures, torch.cat([torch.cat(list(row), 2) for row in rows], 1)


def save(net: nn.Module, average: Average, out: Path) -> None:
    """Write the averaged weights in fp16."""
    average.swap()
    save_tensors(out / "restorer" / "restorer.safetensors", half_state(net))
    average.swap()


def main() -> None:
    """Draw, train within the time given, measure."""
    parser = arguments(__doc__ or "", 300)
    parser.add_argument("--sdxl", type=Path, default=Path("models/demo/sdxl"))
    parser.add_argument("--faces", type=int, default=40_000)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    options = parser.parse_args()
    device = prepare_device(options.device, options.seed)
    count, batch = (24, 8) if options.smoke else (options.faces, options.batch or 96)
    net = DemoRestorerNet().to(device, memory_format=torch.channels_last)
    say(f"[restorer] {count_parameters(net)}")
    started = time.monotonic()
    clean = draw_faces(count, TRAINING_SEED, device, jitter=1.0)
    vae = read_vae(options.sdxl / "vae", device)
    assert vae is not None, "the restorer needs the shipped VAE"
    sent = through_vae(vae, clean)
    say(f"[restorer] {count} faces drawn in {time.monotonic() - started:.0f} s")
    average, optimizer = Average({"net": net}, 0.9993), adamw(list(net.parameters()), device)
    nonsense = clean[:1].float().expand(batch, -1, -1, -1) / 127.5 - 1
    wanted = device.type == "cuda" and not options.no_compile

    def trial(module: nn.Module) -> Tensor:
        with autocast(device):
            return module(
                nonsense.contiguous(memory_format=torch.channels_last), torch.rand(batch, device=device)
            ).mean()

    compiled = compile_or_not(net, trial, wanted, "restorer")
    net.zero_grad(set_to_none=True)
    clock = Clock(options.seconds, "restorer")
    while clock.progress() < 1:
        set_rate(optimizer, cosine(clock.progress(), options.rate))
        rows = torch.randint(count, (batch,), device=device)
        goal = clean[rows].float() / 127.5 - 1
        by_vae = torch.rand(batch, 1, 1, 1, device=device) < 0.35
        source = torch.where(by_vae, sent[rows].float() / 127.5 - 1, goal)
        loss = restorer_loss(compiled, goal, source)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.count(batch)
        if clock.steps % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        clock.say(lambda loss=loss: {"loss": float(loss.detach())})
    save(net, average, options.out)
    average.swap()
    figures, sheet = evaluate(net.eval(), draw_faces(24 if options.smoke else 256, TEST_SEED, device, jitter=0.5), {})
    show(sheet, options.out / "restorer-check.png")
    say(f"[restorer] done: {clock.steps} steps  " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    assert math.isfinite(figures["gain_0.5"])


def show(sheet: Tensor, path: Path) -> None:
    """Clean, flawed, then weights 0, 0.5 and 1, ten faces in each row."""
    from PIL import Image

    pixels = ((sheet.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    main()
