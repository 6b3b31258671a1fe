"""What is tried and how much of it, so that it takes minutes on the device at hand; and the requests made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import HeadshotError, ModelError
from headshot_ui.forecast import likely_device
from headshot_ui.prove.random_sets import random_ids
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec
from headshot_ui.training.plan import WARMUP_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headshot_ui.engine import Engine
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.forecast import Forecast
    from headshot_ui.settings import Settings

PERSON = "prove"
DRAWN_PEOPLE = Path("demo/people")  # under the models folder; the first of them is taken
PROMPT = "portrait of {subject}"
#: Alpha is twice the rank, so that an export that forgets it is noticed, and a short training shows.
ALPHA_OVER_RANK = 2.0


@dataclass(frozen=True)
class Amounts:
    """How much is done."""

    train_steps: int
    pictures: int  # of each kind
    sampling_steps: int
    fixed_items: int  # photos, and of each …
    fixed_draws: int  # … noises and timesteps over which the loss is measured before and after
    latent_steps: int  # sampling steps where latents are compared bit by bit

    @property
    def warming_up(self) -> bool:
        """Whether the training ends before its learning rate has risen, so that little can be asked of it."""
        return self.train_steps < WARMUP_STEPS


#: Measured: ten minutes on a card of 12 GB with SDXL, 80 seconds with the demo on two CPU cores, and a full-size model
#: on a CPU, where a single step takes a minute, shows at least that everything works.
ON_GPU = Amounts(60, 2, 20, 8, 2, 3)
DEMO_ON_CPU = Amounts(24, 2, 6, 6, 2, 2)
FULL_ON_CPU = Amounts(2, 1, 2, 2, 1, 1)


@dataclass(frozen=True)
class ProvePlan:
    """One proof."""

    base: str
    photos: tuple[str, ...]
    bundled: bool  # the photos are those of a drawn person that ship with the program
    amounts: Amounts
    seed: int = 0

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that nothing can be said of what is drawn."""
        return self.base in random_ids()

    @property
    def prepare(self) -> PrepareSpec:
        return PrepareSpec(PERSON, self.photos, self.base)

    def train(self, rank: int) -> TrainSpec:
        steps = self.amounts.train_steps
        return TrainSpec(
            PERSON, self.base, steps=steps, rank=rank, alpha=ALPHA_OVER_RANK * rank, seed=self.seed,
            checkpoint_every=steps, sample_every=steps + 1,
        )  # fmt: skip

    def generate(self, lora: str | None = None, lora_scale: float = 1.0, refine: str = "off") -> GenerateSpec:
        """``lora`` None is the bare base."""
        amounts = self.amounts
        return GenerateSpec(
            PERSON, self.base, prompt=PROMPT, count=amounts.pictures, seed=self.seed + 1, steps=amounts.sampling_steps,
            lora=lora, lora_scale=lora_scale, refine=refine,
            # Half and half, so that with the fewest steps each of the two still has one.
            refiner_switch=0.5 if refine == "ensemble" else None,
            refiner_strength=0.5 if refine == "img2img" else None,
        )  # fmt: skip

    def like_headshots(self, info: BaseInfo) -> HeadshotsSpec:
        """The request whose plan is that of a proof: the same stages, and as much as any one of them needs."""
        return HeadshotsSpec(self.prepare, self.train(info.defaults.rank), self.generate(), restore_best=1)


def plan_proof(info: BaseInfo, photos: Sequence[str], steps: int | None, settings: Settings) -> ProvePlan:
    """What to try with a base on this device. Raises ModelError when no photos are given and none are bundled."""
    on_cpu = likely_device(settings) == "cpu"
    amounts = (DEMO_ON_CPU if info.size_px <= 256 else FULL_ON_CPU) if on_cpu else ON_GPU
    if steps is not None:
        amounts = replace(amounts, train_steps=steps)
    given = tuple(photos) or (str(bundled_photos(settings)),)
    return ProvePlan(info.id, given, bundled=not photos, amounts=amounts)


def bundled_photos(settings: Settings) -> Path:
    """The folder of the first bundled drawn person. Raises ModelError when there is none."""
    people = settings.models_dir / DRAWN_PEOPLE
    for folder in sorted(people.iterdir()) if people.is_dir() else ():
        if any(folder.glob("*.jpg")):
            return folder
    raise ModelError(f"There are no bundled photos in {people}: name some with --photos, or get the program again.")


def forecast_of(plan: ProvePlan, info: BaseInfo, engine: Engine) -> Forecast | None:
    """None where nothing can be forecast; what is wrong is then told by the check that meets it."""
    try:
        return engine.forecast(plan.like_headshots(info))
    except HeadshotError:
        return None
