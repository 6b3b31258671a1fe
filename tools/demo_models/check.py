"""Measure the demo models: what docs/DEMO.md and the tests hold them to.

    python -m tools.demo_models.check --models models/demo --out /tmp/check

Writes ``drawings.png`` (drawings above, the same through the VAE below), ``samples.png`` (what the base draws) and
``figures.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch import Tensor

from headshot_ui.recognisers.demo import read_net
from tools.demo_models import measure, pipeline, world
from tools.demo_models.common import autocast, prepare_device, say
from tools.demo_models.train_recogniser import evaluate, read_vae, through_vae

TEMPLATE = "portrait of tok person, wearing {attire}, in front of {backdrop}, {light}, {framing}, {expression}"


def prompts(count: int, seed: int = 0) -> list[str]:
    """Prompts of the presets' form with random slots."""
    rng = random.Random(seed)
    return [
        TEMPLATE.format(
            attire=f"a {rng.choice(world.COLOURS)} {rng.choice(world.GARMENTS)}",
            backdrop=rng.choice(world.BACKDROPS),
            light=rng.choice(world.LIGHTS),
            framing=rng.choice(world.FRAMINGS),
            expression=rng.choice(world.EXPRESSIONS),
        )
        for _ in range(count)
    ]


def grid(path: Path, pictures: Tensor, across: int) -> None:
    """Write pictures (B, 3, H, W) in [0, 1] side by side, ``across`` in a row."""
    from PIL import Image

    rows = [torch.cat(list(row), 2) for row in pictures.split(across) if len(row) == across]
    pixels = (torch.cat(rows, 1) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def sample(models: Path, texts: list[str], device: torch.device, steps: int, guidance: float) -> Tensor:
    """Pictures (B, 3, 256, 256) of the demo base; picture i uses seed i."""
    pipe = pipeline.load(models / "sdxl", device)
    out = []
    for start in range(0, len(texts), 16):
        part = texts[start : start + 16]
        seeds = [torch.Generator("cpu").manual_seed(start + i) for i in range(len(part))]
        with autocast(device):
            made = pipe(
                prompt=part,
                height=256,
                width=256,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=seeds,
                output_type="pt",
            ).images
        out.append(made.float().cpu())
    return torch.cat(out)


def followed(pictures: Tensor, texts: list[str], judge: Path) -> dict[str, float]:
    """Share of pictures that show what was asked, per attribute."""
    found = measure.judged(measure.load_judge(judge), pictures)
    asked = [measure.asked(text) for text in texts]
    shares = {
        name: sum(have[name] == want[name] for have, want in zip(found, asked, strict=True)) / len(texts)
        for name in measure.ATTRIBUTES
    }
    colours = measure.shoulder_colours(pictures)
    shares["shoulder_colours"] = sum(
        have == want["attire_colour"] for have, want in zip(colours, asked, strict=True)
    ) / len(texts)
    return shares


def check_vae(models: Path, out: Path, device: torch.device, count: int) -> dict[str, float]:
    """Error of unseen drawings through the VAE, and who is still recognised."""
    from tools.demo_models import draw

    vae, net = (
        read_vae(models / "sdxl" / "vae", device),
        read_net(models / "recogniser" / "recogniser.safetensors").to(device),
    )
    people, scenes = world.sample_people(count, 66_001).to(device), world.sample_scenes(count, 66_001).to(device)
    with torch.inference_mode():
        drawn = (draw.draw(people, scenes, 256) * 255).round().to(torch.uint8)
        back = torch.cat([through_vae(vae, part) for part in drawn.split(16)])
        shown = min(8, count)
        grid(out / "drawings.png", torch.cat([drawn[:shown], back[:shown]]).float() / 255, shown)
        error = float((drawn.float() - back.float()).abs().mean()) / 255
        return {"mae": error} | evaluate(net, device, vae, *((4, 4) if count < 32 else (50, 8)))


def main() -> None:
    """Measure everything that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models/demo"))
    parser.add_argument("--judge", type=Path, default=measure.WEIGHTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, nargs="*", default=[3.0])
    parser.add_argument("--only", choices=("vae", "base"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.pictures, options.steps = 4, 2
    device = prepare_device(options.device, 0)
    figures: dict[str, dict[str, float]] = {}
    if options.only != "base":
        figures["vae"] = check_vae(options.models, options.out, device, 8 if options.smoke else 128)
    for guidance in options.guidance if options.only != "vae" else ():
        texts, started = prompts(options.pictures), time.monotonic()
        pictures = sample(options.models, texts, device, options.steps, guidance)
        seconds = (time.monotonic() - started) / len(texts)
        name = f"base, guidance {guidance:g}"
        figures[name] = followed(pictures, texts, options.judge) | {"seconds_per_picture": seconds}
        across = 2 if options.smoke else 8
        grid(options.out / f"samples-{guidance:g}.png", pictures[: across * 6], across)
    for name, values in figures.items():
        say(f"[check] {name}: " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
