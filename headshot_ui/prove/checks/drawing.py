"""Pictures: that they are pictures, that a LoRA changes them, that taking it off leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headshot_ui.engine_runners import run_generate
from headshot_ui.prove.bench import Latents, difference, flaw, pixels
from headshot_ui.prove.findings import Finding, fails, holds, not_possible

if TYPE_CHECKING:
    from headshot_ui.generation.runner import GenerateResult
    from headshot_ui.prove.bench import Bench

#: Mean difference of two pictures, in levels of 255, that is more than rounding to whole levels.
LEAST_CHANGE = 0.05
REPORT_IT = "Attach this report to an issue."


def check_repeats(bench: Bench) -> Finding:
    """The bare base draws the same from the same noise, twice and bit for bit; everything later is held against it."""
    import torch

    with bench.shop.loaded(bench.info) as loaded:
        embeds, negative = bench.prompts(loaded)
        first = bench.few_steps(loaded, embeds, negative)
        second = bench.few_steps(loaded, embeds, negative)
    bench.latents = Latents(embeds, negative, first)
    if not bool(first.isfinite().all()):
        return fails("the latents hold numbers that are none", "Choose another number format (HEADSHOT_UI_DTYPE).")
    if not torch.equal(first, second):
        worst = float((first - second).abs().max())
        return fails(f"two times the same request differ by up to {worst:.1e}", REPORT_IT)
    return holds(f"{bench.plan.amounts.latent_steps} steps twice: bit-equal")


def check_bare_pictures(bench: Bench) -> Finding:
    """The base draws pictures: nothing black, nothing of one colour."""
    bench.bare = run_generate(bench.shop, bench.plan.generate(), bench.job)
    return _are_pictures(bench, bench.bare, paced=True)


def check_lora_pictures(bench: Bench) -> Finding:
    """With the LoRA the same seeds give other pictures."""
    assert bench.bare is not None
    bench.learned = run_generate(bench.shop, bench.plan.generate(str(bench.lora)), bench.job)
    found = _are_pictures(bench, bench.learned)
    changed = difference(bench.bare, bench.learned)
    if found.verdict != "holds":
        return found
    told = f"they differ by {changed:.2f} levels of 255 on average"
    least = 0 if bench.plan.amounts.warming_up else LEAST_CHANGE
    if changed <= least:
        return fails(told, "Train longer with --steps; if that does not help, attach this report to an issue.")
    return holds(told, levels_changed_by_the_LoRA=changed)


def check_lora_off(bench: Bench) -> Finding:
    """Without the LoRA the base draws what it drew before, bit for bit: the latents and the pictures."""
    import torch

    assert bench.bare is not None and bench.latents is not None
    on = bench.with_lora()
    with bench.shop.loaded(bench.info) as loaded:
        bench.make_ready(loaded)
        off = bench.few_steps(loaded, bench.latents.embeds, bench.latents.negative)
    again = run_generate(bench.shop, bench.plan.generate(), bench.job)
    moved, residue = (float((x - bench.latents.without).abs().max()) for x in (on, off))
    levels = difference(bench.bare, again)
    told = (
        f"latents moved by up to {moved:.3g} with it; left behind: {residue:.3g}, {levels:.3g} levels in the pictures"
    )
    if not torch.equal(off, bench.latents.without) or levels:
        return fails(told, REPORT_IT)
    return holds(told)


def check_strength_zero(bench: Bench) -> Finding:
    """A LoRA with strength 0 is no LoRA."""
    assert bench.bare is not None
    zero = run_generate(bench.shop, bench.plan.generate(str(bench.lora), lora_scale=0.0), bench.job)
    levels = difference(bench.bare, zero)
    told = f"pictures differ by {levels:.3g} levels from those without"
    return holds(told) if levels == 0 else fails(told, REPORT_IT)


def check_likeness(bench: Bench) -> Finding:
    """Likeness to the photos that were kept out can be measured. A short training need not raise it."""
    if bench.plan.random:
        return not_possible("random weights draw no faces")
    if bench.plan.bundled and not bench.info.demo:
        return not_possible("the bundled people are drawn: name photographs with --photos")
    if bench.bare is None or bench.learned is None:
        return not_possible("no pictures were drawn with the LoRA")
    before, after = (
        [picture.likeness.percent for picture in drawn.pictures if picture.likeness is not None]
        for drawn in (bench.bare, bench.learned)
    )
    if not before or not after:
        why = next((note for note in bench.clock.notes if "ikeness was not measured" in note), "nobody judged")
        return not_possible(why)
    if all(picture.likeness is None or picture.likeness.reason for picture in bench.learned.pictures):
        return not_possible("no picture shows a face that could be judged")
    first, last = sum(before) / len(before), sum(after) / len(after)
    return holds(
        f"{first:.0f} % → {last:.0f} % after {bench.plan.amounts.train_steps} steps",
        likeness_before=first,
        likeness_after=last,
    )


def _are_pictures(bench: Bench, drawn: GenerateResult, paced: bool = False) -> Finding:
    """Fails when one of the pictures shows nothing."""
    flaws = [found for picture in drawn.pictures if (found := flaw(pixels(picture.path)))]
    count = len(drawn.pictures)
    if flaws:
        return fails(
            f"{len(flaws)} of {count} pictures are {flaws[0]}",
            "Choose another number format (HEADSHOT_UI_DTYPE=float32), or attach this report to an issue.",
        )
    with_size = f"{count} pictures of {' x '.join(str(side) for side in pixels(drawn.pictures[0].path).shape[1::-1])}"
    pace = bench.clock.seconds_per_step("Drawing")
    if paced and pace:
        seconds = pace * bench.plan.amounts.sampling_steps
        return holds(f"{with_size}, {seconds:.1f} s each", seconds_per_picture=seconds)
    return holds(with_size)
