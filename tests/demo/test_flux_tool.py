"""The tool that makes the demo FLUX: what it trains on is what diffusers' FluxPipeline gives the same networks."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tools.demo_models import (
    captions,
    check_flux,
    dataset,
    flux_nets,
    flux_pipeline,
    flux_words,
    latent_weights,
    train_flux,
    train_flux_vae,
    words,
)
from tools.demo_models.checkpoint import resume, save_checkpoint
from tools.demo_models.common import Average, Clock, adamw

CPU = torch.device("cpu")
MADE = Path(__file__).parents[2] / "models" / "demo" / flux_pipeline.FOLDER
EVERYWHERE = torch.ones(2, 1, 64, 64)  # importance of pixels


def some_captions(count: int) -> list[str]:
    rng = random.Random(0)
    torch.manual_seed(0)
    return [captions.caption(torch.rand(36), torch.rand(25), rng) for _ in range(count)]


def as_tokens(lines: list[str]) -> torch.Tensor:
    vocab, _ = words.vocabulary(dataset.vocabulary_words())
    return torch.tensor([words.encode(line, vocab) for line in lines])


@pytest.fixture(scope="module")
def base() -> train_flux.Base:
    torch.manual_seed(0)
    return train_flux.Base(smoke=True, device=CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything at the size it is shipped, untrained."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("flux") / flux_pipeline.FOLDER
    whole = train_flux.Base(smoke=False, device=CPU)
    flux_pipeline.save(place, whole.transformer, whole.clip, whole.t5, dataset.vocabulary_words(), {"steps": 0})
    vae = flux_nets.make_vae()
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    train_flux_vae.save(vae, Average({"vae": vae}), pictures, EVERYWHERE, place / "vae")
    return place


def test_it_is_small_enough_and_diffusers_draws_with_it(folder: Path) -> None:
    assert 7_500_000 < flux_pipeline.folder_bytes(folder) <= flux_nets.MOST_BYTES
    pipe = flux_pipeline.load(folder, CPU)
    pictures = flux_pipeline.draw(pipe, ["portrait of tok person, close-up"], [0], 2, 2.0, size_px=64)
    assert pictures.shape == (1, 3, 64, 64) and pictures.std() > 0
    (folder / "more").write_bytes(bytes(1_000_000))
    with pytest.raises(ValueError, match=r"more than 7\.8"):
        flux_pipeline.folder_bytes(folder)
    (folder / "more").unlink()


def test_text_is_what_the_pipeline_makes_of_it(folder: Path) -> None:
    pipe = flux_pipeline.load(folder, CPU)
    lines = ["", *some_captions(40)]
    tokens = as_tokens(lines)
    reader = train_flux.Base(smoke=True, device=CPU)
    reader.clip, reader.t5 = pipe.text_encoder, pipe.text_encoder_2
    apart = [" ".join(words.pieces(line)) for line in lines]
    for texts, spaced in ((lines, False), (apart, True)):
        ids = pipe.tokenizer_2(texts, padding="max_length", max_length=flux_words.LENGTH, return_tensors="pt").input_ids
        assert torch.equal(reader.as_t5(tokens, torch.full((len(lines),), spaced)), ids)
        assert not (ids == pipe.tokenizer_2.unk_token_id).any()
        embeds, pooled, _ = pipe.encode_prompt(texts, None, max_sequence_length=flux_words.LENGTH)
        with torch.no_grad():
            mine, mine_pooled = reader.read(tokens, torch.full((len(lines),), spaced))
        assert torch.allclose(mine, embeds, atol=1e-5) and torch.allclose(mine_pooled, pooled, atol=1e-5)


def test_latents_are_packed_as_in_the_pipeline() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(flux_nets.packed(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 6, CPU, torch.float32)
    assert torch.equal(flux_nets.picture_ids(8, 12, CPU), ids)


def some_batch(count: int = 4) -> train_flux.Batch:
    weights = torch.rand(8, 256, 1)
    data = train_flux.Data(torch.randn(8, 16, 32, 32).half(), as_tokens(some_captions(8))[:, None].short(), weights)
    torch.manual_seed(1)
    return train_flux.draw_batch(data, count, CPU)


def test_noise_is_mixed_in_as_the_scheduler_does_it() -> None:
    batch = some_batch()
    scheduler = flux_nets.make_scheduler()
    scheduler.sigmas, scheduler.timesteps = batch.sigma, batch.sigma * 1000
    assert torch.allclose(scheduler.scale_noise(batch.clean, batch.sigma * 1000, batch.noise), batch.noisy, atol=1e-6)
    # Going back from the noisy picture along the target by the share of noise is the clean one.
    assert torch.allclose(batch.noisy - batch.sigma[:, None, None] * batch.target, batch.clean, atol=1e-5)


def test_errors_in_a_face_count_more_and_most_round_eyes_and_mouth() -> None:
    box = torch.tensor([[64.0, 64.0, 192.0, 192.0]])
    marks = torch.tensor([[[104.0, 104.0], [152.0, 104.0], [128.0, 128.0], [110.0, 160.0], [146.0, 160.0]]])
    weights = train_flux.cell_weights(box, marks)
    assert weights.shape == (1, 256, 1) and float(weights.mean()) == pytest.approx(1, abs=1e-5)
    cells = weights.view(16, 16)  # of 16 px
    beside, face, eye = (float(cells[row, column]) for row, column in ((0, 0), (4, 7), (6, 6)))
    assert face == pytest.approx(3 * beside, rel=1e-4) and eye == pytest.approx(6 * beside, rel=1e-4)
    batch = train_flux.draw_batch(
        train_flux.Data(torch.zeros(2, 16, 32, 32).half(), torch.zeros(2, 1, 77).short(), torch.cat([weights] * 2)),
        3, CPU,
    )  # fmt: skip
    assert torch.equal(batch.weights, torch.cat([weights] * 3))


def test_what_is_shipped_can_be_learned_on_from() -> None:
    base = train_flux.Base(smoke=False, device=CPU)
    base.read_weights(MADE)
    pipe = flux_pipeline.load(MADE, CPU)
    tokens = as_tokens(some_captions(2))
    with torch.no_grad():
        ids = base.as_t5(tokens, torch.zeros(2, dtype=torch.bool))
        assert torch.equal(base.t5(ids)[0], pipe.text_encoder_2(ids)[0])
    theirs = dict(pipe.transformer.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in base.transformer.named_parameters())
    with pytest.raises(RuntimeError):
        train_flux.Base(smoke=True, device=CPU).read_weights(MADE)


def test_the_teacher_teaches_what_guidance_does(base: train_flux.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, one = some_batch(), torch.ones(4)
    monkeypatch.setattr(train_flux, "some_left_out", lambda base, tokens: tokens)
    with torch.no_grad():
        text = base.read(batch.tokens, batch.spaced)
        caption = train_flux.flow(base, base.transformer, batch.noisy, batch.sigma, one, text)
        text = base.read(torch.tensor(base.empty).expand(4, -1), batch.spaced)
        without = train_flux.flow(base, base.transformer, batch.noisy, batch.sigma, one, text)
        text = base.read(batch.tokens, batch.spaced)
        pupil = train_flux.flow(base, base.transformer, batch.noisy, batch.sigma, torch.tensor([4.0, 4, 1, 1]), text)
    wanted = torch.cat([(without + 4 * (caption - without))[:2], batch.target[2:]])
    monkeypatch.setattr(train_flux, "GUIDANCE", (4.0, 4.0))
    got = train_flux.taught_loss(base, base.transformer, base, base.transformer, batch, CPU)
    assert float(got.detach()) == pytest.approx(float((batch.weights * (pupil - wanted).square()).mean()), rel=1e-5)
    assert not torch.allclose(caption, without, atol=1e-4)


def test_it_goes_on_where_it_ended(base: train_flux.Base, tmp_path: Path) -> None:
    average, optimizer = Average({"base": base}), adamw(list(base.parameters()), CPU)
    for _ in range(2):
        train_flux.flow_loss(base, base.transformer, some_batch(), CPU).backward()
        optimizer.step()
        average.update()
        optimizer.zero_grad()
    teacher = copy.deepcopy(base)
    train_flux.becomes_teacher(teacher, base, average)
    assert torch.equal(teacher.t5.shared.weight, average.mean["base.t5.shared.weight"])
    assert not torch.equal(teacher.t5.shared.weight, base.t5.shared.weight)
    clock = Clock(100, "test", spent=40)
    clock.count(7)
    save_checkpoint(tmp_path / "a.pt", base, average, optimizer, clock, teacher=train_flux.taught_by(teacher, True))
    other = train_flux.Base(smoke=True, device=CPU)
    again, other_optimizer = Average({"base": other}), adamw(list(other.parameters()), CPU)
    state = resume(tmp_path / "a.pt", other, again, other_optimizer, CPU, "flux")
    assert (state["steps"], state["samples"]) == (1, 7) and state["elapsed"] >= 40
    assert again.steps == 2 and all(torch.equal(again.mean[key], average.mean[key]) for key in average.mean)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), base.parameters(), strict=True))
    assert all(torch.equal(state["teacher"][key], value) for key, value in teacher.state_dict().items())
    moments = [s["exp_avg"] for s in optimizer.state.values()]
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, other_optimizer.state.values(), strict=True))


def test_the_vae_goes_on_where_it_ended_and_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> tuple[Any, Average, torch.optim.Optimizer]:
        vae = flux_nets.make_vae(smoke=True).to(memory_format=torch.channels_last)
        return vae, Average({"vae": vae}), adamw(list(vae.parameters()), CPU)

    vae, average, optimizer = begin()
    for _ in range(2):
        vae(torch.randn(1, 3, 32, 32)).sample.square().mean().backward()
        optimizer.step()
        average.update()
    clock = Clock(100, "test", spent=40)
    clock.count(7)
    save_checkpoint(tmp_path / "vae.pt", vae, average, optimizer, clock)
    again, mean, other = begin()
    state = resume(tmp_path / "vae.pt", again, mean, other, CPU, "flux vae")
    assert (state["steps"], state["samples"], mean.steps) == (1, 7, 2) and state["elapsed"] >= 40
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again.parameters(), vae.parameters(), strict=True))
    assert all(torch.equal(mean.mean[key], average.mean[key]) for key in average.mean)
    for before, after in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert (
            torch.equal(before["exp_avg"], after["exp_avg"]) and before["exp_avg"].stride() == after["exp_avg"].stride()
        )

    def cut(self: Any, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(vae), "save_pretrained", cut)
        train_flux_vae.save(vae, average, pictures, EVERYWHERE, tmp_path / "vae")
    assert not (tmp_path / "vae").exists()
    train_flux_vae.save(vae, average, pictures, EVERYWHERE, tmp_path / "vae")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["vae"]


def test_weighed_latents_have_deviation_1_and_pictures_stay() -> None:
    torch.manual_seed(0)
    vae = flux_nets.make_vae(smoke=True).eval()
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    given = pictures.float() / 127.5 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(given).latent_dist.mean).sample
        latent_weights.weigh(vae, pictures, torch.ones(3, 1, 64, 64))
        posterior = vae.encode(given).latent_dist
        latents = (posterior.mean - vae.config.shift_factor) * vae.config.scaling_factor
        after = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert abs(float(latents.mean())) < 1e-4 and float(latents.std()) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(before, after, atol=1e-4)
    spread = latents.std((0, 2, 3)) / vae.config.scaling_factor
    assert torch.all(spread[:-1] >= spread[1:] * 0.999) and spread[0] > 1.5 * spread[-1]  # what counts most is in front
    assert torch.allclose(posterior.std.mean((0, 2, 3)), latent_weights.SPREAD * spread, rtol=0.01)
    together = torch.corrcoef(latents.movedim(1, 0).flatten(1))
    assert torch.allclose(together, torch.eye(16), atol=1e-3)  # each channel says something of its own


def test_channels_weigh_what_they_change_in_the_picture() -> None:
    """Of two channels that vary alike, one is seen four times as strongly: variances as the root of 16 to 1."""
    change = latent_weights.weighing(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 16.0]]))
    made = change @ change.T
    assert torch.allclose(made.diag(), torch.tensor([1.6, 0.4])) and abs(float(made[0, 1])) < 1e-6
    assert abs(float(change[0, 1])) > 1.2 and abs(float(change[0, 0])) < 1e-6


def test_the_response_of_a_decoder_is_its_gram_matrix() -> None:
    mix = torch.tensor([[1.0, 0.0], [2.0, 0.5], [0.0, 3.0]])  # colours by channels: a linear decoder
    decoder = SimpleNamespace(decode=lambda z: SimpleNamespace(sample=torch.einsum("oc,nchw->nohw", mix, z)))
    torch.manual_seed(0)
    latents = torch.randn(2, 2, 8, 8)
    got = latent_weights.responses(decoder, latents, torch.ones(2, 1, 8, 8))  # type: ignore[arg-type]
    assert torch.allclose(got, mix.T @ mix, atol=1e-4)


def test_the_report_says_what_falls_short() -> None:
    good = {name: 1.0 for name, _ in check_flux.GATES}
    assert check_flux.missed({"vae": {"mae": 0.01}, "flux": good}) == []
    short = check_flux.missed({"vae": {"mae": 0.02}, "flux": good | {"garment": 0.5}, "other": {"garment": 0.6}})
    assert short == ["garment 0.600 < 0.85", "mae 0.0200 > 0.012"]


def test_stages_follow_each_other(tmp_path: Path) -> None:
    from tools.demo_models import make_flux

    options = make_flux.parse(["--out", "o", "--work", str(tmp_path), "--smoke", "--device", "cpu"])
    made = make_flux.stages(options)
    assert tuple(stage.name for stage in made) == make_flux.STAGES
    assert all("--smoke" in stage.arguments and "cpu" in stage.arguments for stage in made)
    options = SimpleNamespace(**{**vars(options), "smoke": False, "seconds": 330.0})
    assert make_flux.stages(options)[2].arguments[5] == "330.0"  # type: ignore[arg-type]


def test_the_kept_vae_is_taken_once_and_is_the_shape_that_is_trained(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    from tools.demo_models import make_flux

    make_flux.take_vae(tmp_path / "vae")
    kept = AutoencoderKL.from_pretrained(tmp_path / "vae")
    shapes = {name: value.shape for name, value in flux_nets.make_vae().state_dict().items()}
    assert {name: value.shape for name, value in kept.state_dict().items()} == shapes
    (tmp_path / "vae" / "config.json").write_text("{}")
    make_flux.take_vae(tmp_path / "vae")
    assert (tmp_path / "vae" / "config.json").read_text() == "{}"
