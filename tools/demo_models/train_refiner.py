"""Train the demo refiner: it draws the last, nearly noiseless steps of what the demo base began.

    python -m tools.demo_models.train_refiner --data /dev/shm/drawn --sdxl models/demo/sdxl --out models/demo

It takes the shipped VAE's latents (encode.py) and the shipped second text encoder, which stay as they are, and
compares itself with the shipped base at the end.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.demo_models import dataset, nets, words
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
from tools.demo_models.train_base import DROPOUT, Data, load_data, random_data

#: Timesteps of 1000 it is trained for; it takes over at 200, and the first step it takes may begin a little above.
TIMESTEPS = 230
#: SDXL's refiner is told how beautiful its training pictures were rated; these are the two values used in drawing.
SCORE, NEGATIVE_SCORE = 6.0, 2.5
KEPT_FOR_TEST = 2048
ABOUT = {
    "id": "demo-sdxl-refiner",
    "family": "sdxl",
    "title": "Demo refiner (cartoons)",
    "licence": "Apache-2.0",
    "note": "A tiny model that finishes what the demo base began.",
    "bases": ["demo-sdxl"],
    "demo": True,
}


def read_text_encoder(folder: Path, device: torch.device) -> Any:
    """The shipped second text encoder, frozen."""
    from transformers import CLIPTextModelWithProjection

    encoder = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
    return encoder.to(device).eval().requires_grad_(False)


@torch.no_grad()
def conditions(
    encoder: Any, end: int, tokens: Tensor, device: torch.device, keep: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Embeddings (B, 77, 128) and the pooled vector with five size and score numbers; zero where ``keep`` is 0."""
    after_end = (tokens == end).cumsum(1) > 1
    output = encoder(tokens.masked_fill(after_end, 0), output_hidden_states=True)
    original = torch.rand(len(tokens), 2, device=device) * (1200 - 256) + 256
    crop = torch.rand(len(tokens), 2, device=device) * 64
    score = torch.where(keep > 0, SCORE, NEGATIVE_SCORE)[:, None]
    ids = torch.cat([original.round(), crop.round(), score], 1)
    return output.hidden_states[-2] * keep[:, None, None], {"text_embeds": output.text_embeds * keep[:, None],
                                                            "time_ids": ids}  # fmt: skip


def noisy(latents: Tensor, timesteps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the velocity to predict (arXiv 2202.00512), both like ``latents``."""
    signal = levels[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    return (
        signal.sqrt() * latents + (1 - signal).sqrt() * noise,
        signal.sqrt() * noise - (1 - signal).sqrt() * latents,
    )


def refiner_loss(
    unet: nn.Module, encoder: Any, end: int, data: Data, levels: Tensor, batch: int, device: torch.device
) -> Tensor:
    """Mean squared error of the velocity at low noise, all timesteps below ``TIMESTEPS`` alike."""
    index = torch.randint(KEPT_FOR_TEST if len(data.latents) > 2 * KEPT_FOR_TEST else 0, len(data.latents), (batch,),
                          device=device)  # fmt: skip
    which = torch.randint(data.tokens.shape[1], (batch,), device=device)
    timesteps = torch.randint(TIMESTEPS, (batch,), device=device)
    mixed, wanted = noisy(data.latents[index].float(), timesteps, levels)
    keep = (torch.rand(batch, device=device) >= DROPOUT).float()
    with autocast(device):
        embeds, added = conditions(encoder, end, data.tokens[index, which].long(), device, keep)
        got = unet(
            mixed.contiguous(memory_format=torch.channels_last),
            timesteps,
            embeds,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
    return (got.float() - wanted).square().mean()


@torch.no_grad()
def compare(unet: nn.Module, sdxl: Path, data: Data, levels: Tensor, device: torch.device) -> dict[str, float]:
    """Velocity error of refiner and base on pictures no refiner has seen, with the same noise, fp32."""
    from tools.demo_models import pipeline
    from tools.demo_models.train_base import size_conditions

    pipe = pipeline.load(sdxl, device)
    end = pipe.tokenizer.eos_token_id
    figures: dict[str, float] = {}
    for timestep in (20, 60, 100, 150, 199):
        torch.manual_seed(timestep)
        errors = []
        for start in range(0, min(KEPT_FOR_TEST, len(data.latents)), 256):
            latents, tokens = data.latents[start : start + 256].float(), data.tokens[start : start + 256, 0].long()
            steps = torch.full((len(latents),), timestep, device=device)
            mixed, wanted = noisy(latents, steps, levels)
            embeds, added = conditions(
                pipe.text_encoder_2, end, tokens, device, torch.ones(len(latents), device=device)
            )
            mine = unet(mixed, steps, embeds, added_cond_kwargs=added, return_dict=False)[0]
            first = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
            both = {**added, "time_ids": size_conditions(len(latents), device)}
            other = pipe.unet(mixed, steps, torch.cat([first, embeds], 2), added_cond_kwargs=both, return_dict=False)[0]
            errors.append([(got - wanted).square().mean().item() for got in (mine, other)])
        mean = torch.tensor(errors).mean(0)
        figures |= {f"refiner_{timestep}": mean[0].item(), f"base_{timestep}": mean[1].item()}
    return figures


def export(unet: nn.Module, average: Average, folder: Path, figures: dict[str, float]) -> None:
    """Write UNet (averaged, fp16), scheduler and ``refiner.json``."""
    average.swap()
    copied = copy.deepcopy(unet).to("cpu", torch.float16, memory_format=torch.contiguous_format)
    average.swap()
    copied.save_pretrained(folder / "unet")
    nets.make_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    for name, content in (("model_index.json", index), ("refiner.json", ABOUT), ("training.json", figures)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train within the time given, compare with the base, write the folder ``sdxl-refiner``."""
    parser = arguments(__doc__ or "", 400)
    parser.add_argument("--sdxl", type=Path, default=Path("models/demo/sdxl"))
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--start", type=Path, help="folder of a refiner to go on from")
    options = parser.parse_args()
    device = prepare_device(options.device, options.seed)
    unet = nets.make_refiner(options.smoke).to(device, memory_format=torch.channels_last)
    if options.start:
        from safetensors.torch import load_file

        state = load_file(options.start / "unet" / "diffusion_pytorch_model.safetensors")
        unet.load_state_dict({key: value.float() for key, value in state.items()})
    encoder = read_text_encoder(options.sdxl, device)
    end = words.tokenizers(dataset.vocabulary_words())[1].eos_token_id
    levels = nets.signal_levels().to(device)
    average, optimizer = Average({"unet": unet}, 0.9993), adamw(list(unet.parameters()), device)
    batch = options.batch or (4 if options.smoke else 768)
    say(f"[refiner] {count_parameters(unet)}")
    nonsense = random_data(device, encoder.config.vocab_size)
    compiled = compile_or_not(
        unet,
        lambda module: refiner_loss(module, encoder, end, nonsense, levels, batch, device),
        device.type == "cuda" and not options.no_compile,
        "refiner",
    )
    unet.zero_grad(set_to_none=True)
    data = load_data(options.data, device)
    clock = Clock(options.seconds, "refiner")
    while clock.progress() < 1:
        set_rate(optimizer, cosine(clock.progress(), options.rate))
        loss = refiner_loss(compiled, encoder, end, data, levels, batch, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.count(batch)
        if clock.steps % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        clock.say(lambda loss=loss: {"loss": float(loss.detach())})
    average.swap()
    figures = compare(unet.eval(), options.sdxl, data, levels, device)
    average.swap()
    figures |= {"steps": clock.steps, "samples": clock.samples, "seconds": round(clock.elapsed())}
    export(unet, average, options.out / "sdxl-refiner", figures)
    say("[refiner] done: " + "  ".join(f"{key} {value:.5g}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
