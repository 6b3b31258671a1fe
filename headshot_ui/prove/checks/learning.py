"""Photos become a dataset, and the dataset a LoRA that fits them better than the bare model does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from headshot_ui.amounts import plan_prepare
from headshot_ui.engine_runners import run_train
from headshot_ui.forecast import DOING
from headshot_ui.prove.findings import Finding, fails, holds, not_possible
from headshot_ui.runs import load_run
from headshot_ui.specs import NONE
from headshot_ui.wording import format_seconds

if TYPE_CHECKING:
    import torch

    from headshot_ui.families.protocol import LoadedBase
    from headshot_ui.prove.bench import Bench

#: The loss over fixed noise must fall at least by this share: far above rounding, far below what a training reaches.
LEAST_FALL = 2e-4
MEASURING = "Measuring the loss"


def check_photos(bench: Bench) -> Finding:
    """Faces are found, and most photos can be used."""
    shop, spec = bench.shop, bench.plan.prepare
    drawn = bench.plan.bundled or bench.info.demo
    plan = plan_prepare(spec, shop.known)
    with (
        shop.measured(plan, bench.job, DOING[plan.name], "Close other programs."),
        shop.any_detector(drawn_first=drawn) as detector,
    ):
        bench.dataset = shop.parts.prepare(
            spec, shop.store, bench.info, detector, bench.job.report, shop.recogniser(bench.info)
        )
    photos = bench.dataset.photos
    faces = sum(photo.face is not None for photo in photos)
    used = [photo for photo in photos if photo.verdict != "rejected"]
    kept_out = sum(photo.verdict == "held_out" for photo in used)
    if used and not faces:
        return not_possible(f"nothing looked for faces; {len(used)} pictures to learn from", leads_on=True)
    told = f"{len(photos)} photos, a face in {faces}; {len(used) - kept_out} to learn from, {kept_out} kept out"
    if 2 * len(used) < len(photos):
        reasons = " ".join(sorted({photo.reason for photo in photos if photo.reason})[:2])
        return fails(told, f"Choose other photos with --photos. {reasons}")
    return holds(told)


def check_training(bench: Bench) -> Finding:
    """A short training runs to its end. What the bare base makes of the photos is measured before it."""
    with bench.shop.loaded(bench.info) as loaded:
        _fix_items(bench, loaded)
        bench.losses = fixed_losses(bench, loaded)
    bench.trained = run_train(bench.shop, bench.plan.train(bench.info.defaults.rank), bench.job)
    pace = bench.clock.seconds_per_step("Training")
    told = f"{bench.trained.steps} steps in {format_seconds(bench.trained.seconds)}"
    level = load_run(bench.trained.run_dir).spec.gradient_checkpointing
    if level != NONE:
        told += f" with {level} gradient checkpointing"
    return holds(f"{told}, {pace:.2f} s each", seconds_per_training_step=pace) if pace else holds(told)


def check_loss(bench: Bench) -> Finding:
    """The training brought the loss down over fixed photos, noise and timesteps.

    The loss shown while training swings with its random timesteps far more than a short training moves it.
    """
    if bench.plan.amounts.warming_up:
        return not_possible(f"{bench.plan.amounts.train_steps} steps are too few to move it: use more with --steps")
    with bench.shop.loaded(bench.info) as loaded:
        loaded.use_loras([(bench.lora, 1.0)])
        bench.make_fit(loaded, _draws(bench))
        loaded.keep(frozenset({"denoiser"}))
        after = fixed_losses(bench, loaded)
    first, last = _mean(bench.losses), _mean(after)
    fell = sum(late < early for early, late in zip(bench.losses, after, strict=True))
    told = (
        f"{first:.4f} → {last:.4f} ({(last - first) / first:+.2%}), lower for {fell} of {len(after)} pictures with "
        "the same noise"
    )
    figures = {"loss_before_training": first, "loss_after_training": last}
    if not math.isfinite(last):
        return fails(told, "Choose another number format, or attach this report to an issue.", **figures)
    if last > first * (1 - LEAST_FALL):
        return fails(
            told, "Train longer with --steps; if that does not help, attach this report to an issue.", **figures
        )
    return holds(told, **figures)


def _fix_items(bench: Bench, loaded: LoadedBase) -> None:
    """Latents and captions of the first photos, encoded as training encodes them."""
    from headshot_ui.training.cache import cache_photos, encode_texts
    from headshot_ui.training.plan import training_photos

    assert bench.dataset is not None
    photos = training_photos(bench.dataset)[: bench.plan.amounts.fixed_items]
    few = replace(bench.dataset, photos=photos)
    bench.make_fit(loaded, len(photos) * bench.plan.amounts.fixed_draws)
    loaded.keep(frozenset({"text"}))
    texts = encode_texts(loaded, ["", *(photo.caption for photo in photos)], bench.job.report)
    loaded.keep(frozenset({"vae"}))
    bench.items = cache_photos(loaded, few, texts, bench.job.report)
    loaded.keep(frozenset({"denoiser"}))


def fixed_losses(bench: Bench, loaded: LoadedBase) -> list[float]:
    """The loss of each fixed photo under each of its fixed noises and timesteps, by the model as it is now."""
    import torch

    device = torch.device(bench.shop.settings.device)
    total = _draws(bench)
    loaded.prepare_for([_inputs(bench, loaded, number) for number in range(total)])
    losses = []
    for number in range(total):
        bench.job.report(MEASURING, number, total)
        inputs = _inputs(bench, loaded, number)
        with torch.no_grad():
            loss = loaded.loss({name: tensor.to(device) for name, tensor in inputs.items()})
        losses.append(float(loss))
    return losses


def _draws(bench: Bench) -> int:
    return len(bench.items) * bench.plan.amounts.fixed_draws


def _inputs(bench: Bench, loaded: LoadedBase, number: int) -> Mapping[str, torch.Tensor]:
    """Of the fixed photo, noise and timestep of this number; the same every time."""
    import torch

    from headshot_ui.training.cache import make_batch

    item = bench.items[number % len(bench.items)]
    batch = make_batch([item], [False], item.embeds)
    return loaded.loss_inputs(batch, torch.Generator().manual_seed(1000 + number), None)


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses)
