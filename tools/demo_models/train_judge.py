"""Train the classifier that tells what a picture shows (measure.py), on drawings only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.demo_models import dataset, measure
from tools.demo_models.common import (
    Average,
    Clock,
    adamw,
    arguments,
    autocast,
    compile_or_not,
    cosine,
    half_state,
    prepare_device,
    save_tensors,
    say,
    set_rate,
)


def disturb(pictures: Tensor) -> Tensor:
    """Blur, noise and small changes of exposure, as a diffusion model's pictures have them."""
    count, device = len(pictures), pictures.device
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(count, 1, 1, 1, device=device)
    out = pictures + (soft - pictures) * share * (share > 0.4)
    out = (
        out * (1 + torch.randn(count, 1, 1, 1, device=device) * 0.03)
        + torch.randn(count, 3, 1, 1, device=device) * 0.015
    )
    return (out + torch.randn_like(out) * 0.03 * torch.rand(count, 1, 1, 1, device=device)).clamp(0, 1)


def accuracy(judge: measure.Judge, pictures: Tensor, scenes: Tensor) -> dict[str, float]:
    """Share of uint8 pictures judged right, per attribute."""
    wanted, right = measure.truth(scenes), dict.fromkeys(measure.ATTRIBUTES, 0.0)
    for start in range(0, len(pictures), 128):
        found = measure.judged(judge, pictures[start : start + 128].float() / 255)
        for i, words in enumerate(found):
            for name, word in words.items():
                right[name] += measure.ATTRIBUTES[name][int(wanted[name][start + i])] == word
    return {name: count / len(pictures) for name, count in right.items()}


def main() -> None:
    """Train within the time given and write ``judge.safetensors`` into --out."""
    parser = arguments(__doc__ or "", 60)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--pictures", type=int, default=48_000)
    options = parser.parse_args()
    device = prepare_device(options.device, options.seed)
    drawn = dataset.load(options.data)
    kept_back = 16 if options.smoke else 512
    count = min(options.pictures, len(drawn.pictures) - kept_back)
    small = [
        F.interpolate(drawn.on(device, start, min(2048, count - start)).float(), (128, 128), mode="area")
        .round()
        .to(torch.uint8)
        for start in range(0, count, 2048)
    ]
    pictures = torch.cat(small)
    wanted = torch.stack(list(measure.truth(drawn.scenes[:count].to(device)).values()), 1)
    judge = measure.Judge().to(device, memory_format=torch.channels_last)
    average, optimizer = Average({"judge": judge}, 0.995), adamw(list(judge.parameters()), device, decay=0.05)
    batch = options.batch or (8 if options.smoke else 512)

    def step(module: torch.nn.Module) -> Tensor:
        index = torch.randint(count, (batch,), device=device)
        ready = disturb(pictures[index].float() / 255).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            parts = measure.split(module(ready))
        return torch.stack(
            [F.cross_entropy(part.float(), wanted[index, i]) for i, part in enumerate(parts.values())]
        ).sum()

    runner = compile_or_not(judge, step, device.type == "cuda" and not options.no_compile, "judge")
    clock = Clock(options.seconds, "judge")
    while (progress := clock.progress()) < 1:
        set_rate(optimizer, cosine(progress, options.rate))
        loss = step(runner)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.count(batch)
        if clock.steps % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        clock.say(lambda loss=loss: {"loss": float(loss.detach())})
    average.swap()
    judge.eval()
    save_tensors(options.out / "judge.safetensors", half_state(judge), {"format": "pt"})
    last = len(drawn.pictures) - kept_back
    unseen, scenes = drawn.on(device, last, kept_back), drawn.scenes[last:]
    figures = accuracy(judge, unseen, scenes)
    colours = measure.shoulder_colours(unseen.float() / 255)
    truth = measure.truth(scenes)["attire_colour"].tolist()
    figures["shoulder_colours"] = sum(
        measure.ATTRIBUTES["attire_colour"][i] == word for i, word in zip(truth, colours, strict=True)
    ) / len(truth)
    say("[judge] done, right on unseen drawings: " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
