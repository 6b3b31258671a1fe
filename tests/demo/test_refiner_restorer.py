"""The shipped demo refiner and restorer do what they are there for, on people they have never seen."""

from __future__ import annotations

import io
import random

import numpy as np
import torch
from PIL import Image, ImageFilter

from headshot_ui.restoration.demo_net import read_net
from tools.demo_models import dataset, draw, pipeline, train_restorer, words
from tools.demo_models.measure_people import Bench
from tools.demo_models.nets import signal_levels
from tools.demo_models.train_base import size_conditions
from tools.demo_models.train_refiner import conditions, noisy

UNSEEN_SEED = 41_414
PICTURES, FACES = 12, 10


def test_at_low_noise_the_refiner_errs_less_than_the_base(bench: Bench) -> None:
    from diffusers import UNet2DConditionModel

    from tools.demo_models import captions

    folder, cpu = bench.settings.models_dir / "demo", torch.device("cpu")
    pipe = pipeline.load(folder / "sdxl", cpu)
    refiner = UNet2DConditionModel.from_pretrained(folder / "sdxl-refiner" / "unet", torch_dtype=torch.float32)
    people, scenes = draw.sample_people(PICTURES, UNSEEN_SEED), draw.sample_scenes(PICTURES, UNSEEN_SEED)
    vocab, _ = words.vocabulary(dataset.vocabulary_words())
    rng = random.Random(0)
    lines = [captions.caption(who, what, rng) for who, what in zip(people, scenes, strict=True)]
    tokens = torch.tensor([words.encode(line, vocab) for line in lines]).long()
    errors: dict[int, tuple[float, float]] = {}
    with torch.no_grad():
        mean = pipe.vae.encode(draw.draw(people, scenes) * 2 - 1).latent_dist.mean
        latents = mean * pipe.vae.config.scaling_factor
        first = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        for timestep in (20, 60, 100, 150):
            torch.manual_seed(timestep)
            steps = torch.full((PICTURES,), timestep)
            mixed, wanted = noisy(latents, steps, signal_levels())
            embeds, added = conditions(
                pipe.text_encoder_2, pipe.tokenizer.eos_token_id, tokens, cpu, torch.ones(PICTURES)
            )
            mine = refiner(mixed, steps, embeds, added_cond_kwargs=added, return_dict=False)[0]
            sizes = {**added, "time_ids": size_conditions(PICTURES, cpu)}
            base = pipe.unet(mixed, steps, torch.cat([first, embeds], 2), added_cond_kwargs=sizes, return_dict=False)[0]
            errors[timestep] = ((mine - wanted).square().mean().item(), (base - wanted).square().mean().item())
    for timestep, (mine, base) in errors.items():
        assert mine < 0.97 * base, errors | {"at": timestep}


def _worn(clean: torch.Tensor) -> torch.Tensor:
    """Flaws made by other means than those of training: PIL's blur and scaling, real JPEG, film grain."""
    grain = np.random.default_rng(0)
    out = []
    for number, face in enumerate(((clean + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        image = Image.fromarray(face)
        if number % 2:
            image = image.filter(ImageFilter.GaussianBlur(2))
        small = image.resize((64, 64), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
        rough = np.asarray(small, dtype=np.float32) + grain.normal(0, 6, (*image.size, 3))
        file = io.BytesIO()
        Image.fromarray(rough.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=45)
        out.append(np.asarray(Image.open(file), dtype=np.float32) / 127.5 - 1)
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()


def test_the_restorer_brings_worn_faces_3_db_nearer_and_a_higher_weight_keeps_more(bench: Bench) -> None:
    net = read_net(bench.settings.models_dir / "demo" / "restorer" / "restorer.safetensors")
    faces = train_restorer.draw_faces(FACES, UNSEEN_SEED, torch.device("cpu"), jitter=0.5, batch=5)
    clean = faces.float() / 127.5 - 1
    worn = _worn(clean)
    changes = []
    for weight in (0.0, 0.5, 1.0):
        got = net(worn, weight)
        gain = train_restorer.psnr(got, clean) - train_restorer.psnr(worn, clean)
        assert gain.mean() >= 3.0, (weight, gain)
        changes.append((got - worn).abs().flatten(1).mean(1))
    assert (changes[0] > changes[1]).all() and (changes[1] > changes[2]).all(), changes


def test_the_restorer_leaves_a_good_face_much_as_it_is(bench: Bench) -> None:
    net = read_net(bench.settings.models_dir / "demo" / "restorer" / "restorer.safetensors")
    faces = train_restorer.draw_faces(4, UNSEEN_SEED + 1, torch.device("cpu"), jitter=0.5, batch=4)
    clean = faces.float() / 127.5 - 1
    assert train_restorer.psnr(net(clean, 0.5), clean).min() > 27
