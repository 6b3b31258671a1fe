"""Train the recogniser of drawn people: cosine-margin softmax over the training people (CosFace, arXiv 1801.09414).

Cut-outs are taken once from all pictures with the true landmarks. As soon as a VAE is there, a share of the cut-outs
is replaced by the same pictures sent through it, so that likeness survives the VAE.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headshot_ui.recognisers.demo import SIDE, DemoRecogniserNet, alignment, cut_out
from tools.demo_models import dataset, world
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

#: Cut-outs are stored with this much more on every side, so that jitter has something to show.
MARGIN, STORED = 0.12, 136
UNSEEN_SEED = 5_005


def stored_cuts(pictures: Tensor, landmarks: Tensor) -> Tensor:
    """uint8 pictures (B, 3, 256, 256) to wide uint8 cut-outs (B, 3, STORED, STORED)."""
    cuts = cut_out(pictures.float(), alignment(landmarks, STORED, MARGIN), STORED)
    return cuts.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def through_vae(vae: nn.Module, pictures: Tensor) -> Tensor:
    """uint8 pictures to uint8 pictures by way of the VAE."""
    latents = vae.encode(pictures.float() / 127.5 - 1).latent_dist.mean
    return ((vae.decode(latents).sample.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def read_vae(folder: Path, device: torch.device) -> nn.Module | None:
    """The VAE, or None while there is none that can be read (its trainer may be writing it at this moment)."""
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(folder).to(device, torch.float32, memory_format=torch.channels_last).eval()
    except Exception as error:  # missing or half-written, which diffusers tells in several ways
        say(f"[recogniser] no VAE yet: {type(error).__name__}")
        return None


def augment(cuts: Tensor) -> Tensor:
    """Wide cut-outs (B, 3, STORED, STORED) uint8 to jittered (B, 3, SIDE, SIDE) floats in [0, 1]."""
    count, device = len(cuts), cuts.device
    angle, scale = torch.randn(count, device=device) * 0.05, 1 + torch.randn(count, device=device) * 0.04
    shift = torch.randn(count, 2, device=device) * 0.025
    share = scale / (1 + 2 * MARGIN)
    rows = torch.stack(
        [share * angle.cos(), -share * angle.sin(), shift[:, 0], share * angle.sin(), share * angle.cos(), shift[:, 1]],
        1,
    )
    grid = F.affine_grid(rows.view(-1, 2, 3), [count, 3, SIDE, SIDE], align_corners=False)
    out = F.grid_sample(cuts.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(out, (2, 2, 2, 2), mode="replicate"), 5, 1)
    coarse = F.interpolate(F.interpolate(out, scale_factor=0.5, mode="area"), size=(SIDE, SIDE), mode="bilinear")
    pick = torch.rand(count, 1, 1, 1, device=device)
    out = torch.where(pick < 0.15, blurred, torch.where(pick < 0.35, coarse, out))
    gain = 1 + torch.randn(count, 3, 1, 1, device=device) * 0.03 + torch.randn(count, 1, 1, 1, device=device) * 0.08
    noise = torch.randn_like(out) * (torch.rand(count, 1, 1, 1, device=device) * 0.04)
    out = (out - 0.5) * (1 + torch.randn(count, 1, 1, 1, device=device) * 0.08) + 0.5
    return (out * gain + noise).clamp(0, 1)


class _Training(nn.Module):
    """Network and class centres; gives the CosFace loss."""

    def __init__(self, net: DemoRecogniserNet, people: int, scale: float = 32.0) -> None:
        super().__init__()
        self.net, self.scale = net, scale
        self.centres = nn.Parameter(torch.randn(people, 128) * 0.1)

    def forward(self, cuts: Tensor, who: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        cosines = self.net(cuts).float() @ F.normalize(self.centres.float(), dim=1).T
        own = F.one_hot(who, cosines.shape[1]).to(cosines.dtype)
        loss = F.cross_entropy(self.scale * (cosines - margin * own), who)
        return loss, (cosines.argmax(1) == who).float().mean()


def all_cuts(
    drawn: dataset.Drawn, count: int, device: torch.device, vae: nn.Module | None = None, every: int = 1
) -> Tensor:
    """Wide cut-outs of every ``every``-th picture, through the VAE when one is given."""
    rows = torch.arange(0, count, every)
    out = torch.empty(len(rows), 3, STORED, STORED, dtype=torch.uint8, device=device)
    for start in range(0, len(rows), 128):
        part = rows[start : start + 128]
        pictures = drawn.pictures[part].to(device)
        with autocast(device):
            pictures = through_vae(vae, pictures) if vae is not None else pictures
        out[start : start + len(part)] = stored_cuts(pictures, drawn.landmarks[part].to(device))
    return out


@torch.inference_mode()
def embed_drawn(
    net: DemoRecogniserNet, people: Tensor, scenes: Tensor, device: torch.device, vae: nn.Module | None = None
) -> Tensor:
    """Identity vectors (B, 128) of freshly drawn pictures, cut out by their true landmarks."""
    from tools.demo_models import draw

    found = []
    for who, what in zip(people.split(32), scenes.split(32), strict=True):
        who, what = who.to(device), what.to(device)
        pictures = (draw.draw(who, what, 256) * 255).round().to(torch.uint8)
        pictures = through_vae(vae, pictures) if vae is not None else pictures
        marks = draw.truth(who, what, 256)[1]
        found.append(net(cut_out(pictures.float() / 255, alignment(marks))).cpu())
    return torch.cat(found)


def evaluate(
    net: DemoRecogniserNet, device: torch.device, vae: nn.Module | None, people: int = 50, each: int = 8
) -> dict[str, float]:
    """First match among unseen people: half the pictures make the reference, the others are looked up."""
    who = world.sample_people(people, UNSEEN_SEED).repeat_interleave(each, 0)
    scenes = world.sample_scenes(people * each, UNSEEN_SEED)
    figures: dict[str, float] = {}
    plain = embed_drawn(net, who, scenes, device).view(people, each, -1)
    references = F.normalize(plain[:, : each // 2].mean(1), dim=1)
    for name, vectors in (
        ("", plain),
        ("_vae", embed_drawn(net, who, scenes, device, vae).view(people, each, -1) if vae else None),
    ):
        if vectors is None:
            continue
        probes = vectors[:, each // 2 :].reshape(-1, 128)
        owner = torch.arange(people).repeat_interleave(each - each // 2)
        cosines = probes @ references.T
        mine = F.one_hot(owner, people).bool()
        own, others = cosines[mine], cosines[~mine]
        figures |= {f"first{name}": float((cosines.argmax(1) == owner).float().mean()), f"own{name}": float(own.mean()),
                    f"others{name}": float(others.mean()), f"worst_other{name}": float(others.max())}  # fmt: skip
    return figures


def save(net: DemoRecogniserNet, average: Average, out: Path) -> None:
    """Write the averaged network in fp16."""
    average.swap()
    save_tensors(out / "recogniser" / "recogniser.safetensors", half_state(net), {"format": "pt"})
    average.swap()


def main() -> None:
    """Train within the time given and write ``recogniser/recogniser.safetensors``."""
    parser = arguments(__doc__ or "", 240)
    parser.add_argument("--vae", type=Path, help="VAE folder, which may appear while this trains")
    parser.add_argument(
        "--vae-from", type=float, default=0.4, help="from this share of the time on the VAE is looked for"
    )
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pictures", type=int, default=10**9)
    options = parser.parse_args()
    device = prepare_device(options.device, options.seed)
    drawn = dataset.load(options.data)
    count = min(options.pictures, len(drawn.pictures)) // drawn.each * drawn.each
    cuts = all_cuts(drawn, count, device)
    who = torch.arange(count, device=device) // drawn.each
    say(f"[recogniser] {count} cut-outs of {count // drawn.each} people")
    net = DemoRecogniserNet().to(device, memory_format=torch.channels_last)
    training = _Training(net, count // drawn.each).to(device)
    say(f"[recogniser] {count_parameters(net)} parameters")
    batch = options.batch or (16 if options.smoke else 1024)
    average = Average({"net": net}, 0.998)
    optimizer = adamw(list(training.parameters()), device, decay=0.02)
    margin = torch.zeros((), device=device)
    vae, passed, every = None, None, 6

    def step(module: nn.Module) -> tuple[Tensor, Tensor]:
        index = torch.randint(count, (batch,), device=device)
        seen = cuts[index]
        if passed is not None:  # half of the batch comes from pictures that went through the VAE
            half = torch.randint(len(passed), (batch // 2,), device=device)
            index[: batch // 2] = half * every
            seen[: batch // 2] = passed[half]
        ready = augment(seen).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            return module(ready, who[index], margin)

    wanted = device.type == "cuda" and not options.no_compile
    runner = compile_or_not(training, lambda module: step(module)[0], wanted, "recogniser")
    clock, saved, looked = Clock(options.seconds, "recogniser"), 0.0, -9.0
    while (progress := clock.progress()) < 1:
        if options.vae and vae is None and progress >= options.vae_from and clock.elapsed() - looked > 5:
            looked, vae = clock.elapsed(), read_vae(options.vae, device)
            if vae is not None:
                passed = all_cuts(drawn, count, device, vae, every)
                say(f"[recogniser] {len(passed)} cut-outs went through the VAE at {clock.elapsed():.0f} s")
        set_rate(optimizer, cosine(progress, options.rate))
        margin.fill_(0.35 * min(1.0, progress / 0.3))
        loss, right = step(runner)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.count(batch)
        if clock.steps % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        clock.say(lambda loss=loss, right=right: {"loss": float(loss.detach()), "right": float(right)})
        if clock.elapsed() - saved > 60:
            saved = clock.elapsed()
            save(net, average, options.out)
    save(net, average, options.out)
    average.swap()
    net.eval()
    vae = (read_vae(options.vae, device) if options.vae else None) or vae
    figures = evaluate(net, device, vae, *((6, 4) if options.smoke else (50, 8)))
    say("[recogniser] done, unseen people: " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
