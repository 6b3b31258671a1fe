"""An engine without models: real jobs on the real queue, pictures painted with Pillow in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.engine import HeadshotsResult, count_likeness
from headshot_ui.errors import HeadshotError
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import RANKING, Picture
from headshot_ui.generation.runner import GenerateResult
from headshot_ui.jobs import Job, JobQueue, Reporter
from headshot_ui.likeness import Likeness
from headshot_ui.meter import StageUse
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, Spec, TrainSpec
from headshot_ui.store import Store, new_folder, read_json, save_png, write_bytes_atomic, write_json_atomic


@dataclass(frozen=True)
class FakeTrained:
    run_dir: Path
    lora_path: Path
    steps: int
    losses: tuple[float, ...]


#: A name from inside a zip archive that would be a script, did the page not escape it.
GROUP = "<img src=x onerror=document.body.remove()>group.jpg"


class FakeEngine:
    """``submit``, ``current``, ``cancel`` and ``close`` as the real one; ``step_s`` makes jobs last.

    ``hold`` (an event) keeps a training at its last step until it is set, ``fail`` makes every job fail with
    that sentence.
    """

    def __init__(self, settings: Settings, step_s: float = 0.0, steps: int = 20, fail: str = "") -> None:
        self.settings = settings
        self.submitted: list[Spec] = []
        self.closed = False
        self.hold = threading.Event()
        self.hold.set()
        self._store = Store(settings)
        self._queue = JobQueue()
        self._step_s = step_s
        self._steps = steps
        self._fail = fail

    def submit(self, spec: Spec) -> Job:
        self.submitted.append(spec)
        runners: dict[type, Callable[[Any, Reporter], Any]] = {
            PrepareSpec: self._prepare, TrainSpec: self._train, GenerateSpec: self._generate,
            HeadshotsSpec: self._headshots,
        }  # fmt: skip
        kind = type(spec).__name__.removesuffix("Spec").lower()
        return self._queue.submit(kind, f"{kind} for a person", lambda report: runners[type(spec)](spec, report))

    def current(self) -> Job | None:
        return self._queue.current()

    def jobs(self) -> tuple[Job, ...]:
        return self._queue.jobs()

    def cancel(self, job_id: str | None = None) -> bool:
        return self._queue.cancel(job_id)

    def close(self) -> None:
        self.hold.set()
        self.closed = True
        self._queue.close(5)

    def _headshots(self, spec: HeadshotsSpec, report: Reporter) -> HeadshotsResult:
        dataset = self._prepare(spec.prepare, report)
        trained = self._train(spec.train, report)
        aside = replace(self._store, headshots_elsewhere=trained.run_dir / "before")
        before = self._generate(replace(spec.generate, lora=None, count=1), report, aside)
        generated = self._generate(spec.generate, report)
        stages = tuple(StageUse(name, 1.5, 2**30, 0) for name in ("prepare", "train", "before", "generate"))
        return HeadshotsResult(
            dataset,
            trained,
            generated,
            count_likeness(before),
            count_likeness(generated),
            stages,  # type: ignore[arg-type]
        )

    def _prepare(self, spec: PrepareSpec, report: Reporter) -> Dataset:
        folder = self._store.dataset_dir(spec.person)
        if self._fail:
            raise HeadshotError(self._fail)
        photos = []
        for number, given in enumerate(spec.photos):
            report("Looking at the photos", number + 1, len(spec.photos))
            self._pause()
            crop = f"{number:03d}.png"
            save_png(folder / crop, portrait(number, "photo"), {})
            photos.append(PreparedPhoto(Path(given).name, "train", "", crop=crop, caption="tok person"))
        photos.append(PreparedPhoto(GROUP, "rejected", "Several faces were found; give a photo of you alone."))
        dataset = Dataset(spec.person, folder, 256, "tok", "person", tuple(photos))
        write_json_atomic(folder / "dataset.json", [asdict(photo) for photo in photos])
        return dataset

    def _train(self, spec: TrainSpec, report: Reporter) -> FakeTrained:
        run = self._store.runs_dir(spec.person) / "run-1"
        losses = []
        for step in range(1, self._steps + 1):
            losses.append(0.5 / step**0.5)
            preview = run / f"sample-{step}.png" if step % 5 == 0 else None
            if preview is not None:
                save_png(preview, portrait(step, f"step {step}"), {})
            report("Training", step, self._steps, preview=preview, metrics={"loss": losses[-1]})
            self._pause()
        while not self.hold.wait(0.02):
            report("Training", self._steps, self._steps)
        write_bytes_atomic(run / "lora.safetensors", b"fake")
        return FakeTrained(run, run / "lora.safetensors", self._steps, tuple(losses))

    def _generate(self, spec: GenerateSpec, report: Reporter, store: Store | None = None) -> GenerateResult:
        presets = load_presets()
        looks = spec.presets or tuple(presets)
        folder = new_folder((store or self._store).headshots_dir(spec.person), "set")
        pictures: list[Picture] = []
        for number in range(len(looks) * spec.count):
            report("Drawing", number + 1, len(looks) * spec.count)
            self._pause()
            look = presets[looks[number % len(looks)]]
            path = folder / f"{number:03d}.png"
            save_png(path, portrait(number, look.id), {"request": spec.to_json()})
            likeness = Likeness(
                0.9 - number / 100, 96.0 - number, number % 8 != 7, "" if number % 8 != 7 else "no face"
            )
            pictures.append(Picture(path, look.id, look.title, "a prompt", spec.seed + number, likeness, number + 1))
        entries = [{**asdict(picture), "path": picture.path.name} for picture in pictures]
        write_json_atomic(folder / RANKING, {"pictures": entries})
        return GenerateResult(folder, tuple(pictures), 1.0)

    def _pause(self) -> None:
        if self._step_s:
            threading.Event().wait(self._step_s)


def load_fake_dataset(folder: Path) -> Dataset:
    """What ``_prepare`` wrote."""
    photos = tuple(PreparedPhoto(**entry) for entry in read_json(folder / "dataset.json"))
    return Dataset(folder.parent.name, folder, 256, "tok", "person", photos)


def portrait(number: int, text: str) -> Image.Image:
    """A small RGB picture with a head and shoulders that differs by number."""
    hue = (number * 37) % 255
    image = Image.new("HSV", (256, 256), (hue, 60, 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 170, 216, 360), (160, 140, 90))
    draw.ellipse((80, 50, 176, 180), (18, 90, 220))
    draw.text((8, 8), text, (0, 0, 40))
    return image.convert("RGB")
