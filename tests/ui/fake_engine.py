"""An engine without models: real jobs on the real queue, pictures painted with Pillow in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from headshot_ui.dataset.saved import save_dataset
from headshot_ui.dataset.types import Dataset, Face, PreparedPhoto
from headshot_ui.engine import TASKS, HeadshotsResult, count_likeness, title_of
from headshot_ui.errors import Cancelled, HeadshotError
from headshot_ui.export import ExportedFile, ExportResult
from headshot_ui.forecast import Forecast, StageForecast
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import RANKING, Picture
from headshot_ui.generation.runner import GenerateResult
from headshot_ui.jobs import Job, JobQueue, Reporter
from headshot_ui.likeness import Likeness
from headshot_ui.meter import StageUse
from headshot_ui.restoration.records import RestoredPicture, RestoreResult
from headshot_ui.runs import Run, change_run, create_run, find_run, load_run, resume_run
from headshot_ui.settings import Settings
from headshot_ui.specs import ExportSpec, GenerateSpec, HeadshotsSpec, PrepareSpec, RestoreSpec, Spec, TrainSpec
from headshot_ui.store import Store, new_folder, save_png, write_bytes_atomic, write_json_atomic

FACE = Face((80, 50, 176, 180), ((100, 100), (150, 100), (128, 130), (105, 150), (150, 150)), 0.99)
#: A name from inside a zip archive that would be a script, did the page not escape it.
GROUP = "<img src=x onerror=document.body.remove()>${document.body.remove()}\\group.jpg"


@dataclass(frozen=True)
class FakeTrained:
    run_dir: Path
    lora_path: Path
    steps: int
    losses: tuple[float, ...]
    seconds: float = 1.0


class FakeEngine:
    """The real engine's methods that the page uses; ``step_s`` makes jobs last.

    ``hold`` (an event) keeps a training at its last step until it is set, ``fail`` makes every job fail with
    that sentence. ``runners`` adds or replaces what is done for a kind of spec.
    """

    def __init__(
        self,
        settings: Settings,
        step_s: float = 0.0,
        steps: int = 20,
        fail: str = "",
        runners: Mapping[type[Spec], Callable[[Any, Reporter], Any]] | None = None,
    ) -> None:
        self.settings = settings
        self.submitted: list[Spec] = []
        self.closed = False
        self.hold = threading.Event()
        self.hold.set()
        self.store = Store(settings)
        self._queue = JobQueue()
        self._step_s = step_s
        self._steps = steps
        self._fail = fail
        self._runners: dict[type[Spec], Callable[[Any, Reporter], Any]] = {
            PrepareSpec: self._prepare, TrainSpec: self._train, GenerateSpec: self._generate,
            HeadshotsSpec: self._headshots, RestoreSpec: self._restore, ExportSpec: self._export, **(runners or {}),
        }  # fmt: skip

    def submit(self, spec: Spec) -> Job:
        self.submitted.append(spec)
        task = TASKS[type(spec)]
        runner = self._runners[type(spec)]
        return self._queue.submit(task.kind, title_of(spec), lambda report: runner(spec, report), task.lane)

    def forecast(self, spec: Spec) -> Forecast:
        stage = StageForecast("train", ("denoiser",), 2**30, False, None)
        return Forecast((stage,), "memory", 2**33, 10**6, None, True, "")

    def position(self, job_id: str) -> int:
        return self._queue.position(job_id)

    def ahead_of(self, job_id: str) -> tuple[Job, ...]:
        return self._queue.ahead_of(job_id)

    def current(self) -> Job | None:
        return self._queue.current()

    def jobs(self) -> tuple[Job, ...]:
        return self._queue.jobs()

    def find_job(self, job_id: str) -> Job | None:
        return self._queue.find(job_id)

    def cancel(self, job_id: str | None = None) -> bool:
        return self._queue.cancel(job_id)

    def delete_person(self, person: str) -> tuple[Path, ...]:
        return self.store.delete_person(person)

    def close(self) -> None:
        self.closed = True
        self._queue.close(5)
        self.hold.set()

    def _headshots(self, spec: HeadshotsSpec, report: Reporter) -> HeadshotsResult:
        dataset = self._prepare(spec.prepare, report)
        trained = self._train(spec.train, report)
        aside = replace(self.store, headshots_elsewhere=trained.run_dir / "before")
        before = self._generate(replace(spec.generate, lora=None, count=1), report, aside)
        generated = self._generate(replace(spec.generate, lora=trained.run_dir.name), report)
        best = [str(picture.path) for picture in generated.pictures if picture.kept]
        restored = exported = None
        names = ["prepare", "train", "before", "generate"]
        if spec.restore_best:
            restored = self._restore(RestoreSpec(spec.generate.person, tuple(best[: spec.restore_best])), report)
            names.append("restore")
        if spec.export_best:
            exported = self._export(ExportSpec(spec.generate.person, tuple(best[: spec.export_best])), report)
            names.append("export")
        stages = tuple(StageUse(name, 1.5, 2**30, 0) for name in names)
        return HeadshotsResult(
            dataset,
            trained,  # type: ignore[arg-type]
            generated,
            count_likeness(before),
            count_likeness(generated),
            stages,
            restored,
            exported,
        )

    def _restore(self, spec: RestoreSpec, report: Reporter) -> RestoreResult:
        folder = new_folder(self.store.restored_dir(spec.person), "set")
        made = []
        for number, source in enumerate(map(Path, spec.pictures)):
            report("Repairing faces", number + 1, len(spec.pictures))
            self._pause()
            save_png(folder / f"{source.stem}.png", portrait(number, "restored"), {})
            made.append(RestoredPicture(source, folder / f"{source.stem}.png", (), size=(256, 256)))
        return RestoreResult(folder, tuple(made), 1.0)

    def _export(self, spec: ExportSpec, report: Reporter) -> ExportResult:
        folder = new_folder(self.store.exports_dir(spec.person), "set")
        files = []
        for source in map(Path, spec.pictures):
            for layout in spec.layouts:
                path = folder / f"{source.stem}-{layout}.jpg"
                write_bytes_atomic(path, b"jpeg")
                files.append(ExportedFile(source, layout, path, 400, 400))
        report("Exporting", len(files), len(files))
        write_bytes_atomic(folder / "headshots.zip", b"zip")
        return ExportResult(folder, tuple(files), folder / "headshots.zip", 1.0)

    def _prepare(self, spec: PrepareSpec, report: Reporter) -> Dataset:
        """All photos are used, the second is held out; one that was left out is added."""
        folder = self.store.dataset_dir(spec.person)
        if self._fail:
            raise HeadshotError(self._fail)
        originals = self.store.photos_dir(spec.person)
        photos = []
        given = [
            path for each in map(Path, spec.photos) for path in (sorted(each.iterdir()) if each.is_dir() else [each])
        ]
        for number, path in enumerate(given):
            report("Looking at the photos", number + 1, len(given))
            self._pause()
            crop = f"{number:03d}.png"
            save_png(folder / crop, portrait(number, "photo"), {})
            if path.is_file() and not (originals / path.name).exists():
                write_bytes_atomic(originals / path.name, path.read_bytes())
            warnings = ("a little blurred",) if number == 2 else ()
            verdict = "held_out" if number == 1 else "train"
            photos.append(PreparedPhoto(path.name, verdict, "", warnings, crop, "tok person", FACE, (256, 256)))
        photos.append(PreparedPhoto(GROUP, "rejected", "Several faces were found; give a photo of you alone."))
        dataset = Dataset(spec.person, folder, 256, "tok", "person", tuple(photos))
        save_dataset(dataset)
        return dataset

    def _train(self, spec: TrainSpec, report: Reporter) -> FakeTrained:
        total = self._steps if spec.steps is None else min(spec.steps, 4 * self._steps)
        run = (
            resume_run(find_run(self.store, spec.person, spec.run)) if spec.run else create_run(self.store, spec, total)
        )
        run = change_run(run, spec=replace(spec, run=run.name, steps=total), total=total)
        try:
            losses = self._steps_of(run, report)
        except Cancelled:
            change_run(load_run(run.folder), state="cancelled")
            raise
        write_bytes_atomic(run.folder / "lora.safetensors", b"fake")
        write_json_atomic(run.folder / "losses.json", losses)
        change_run(load_run(run.folder), state="done", step=total, lora="lora.safetensors", facts={"seconds": 12.5})
        return FakeTrained(run.folder, run.folder / "lora.safetensors", total, tuple(losses))

    def _steps_of(self, run: Run, report: Reporter) -> list[float]:
        losses = [0.5 / step**0.5 for step in range(1, run.step + 1)]
        for step in range(run.step + 1, run.total + 1):
            losses.append(0.5 / step**0.5)
            preview = run.folder / "samples" / f"step-{step:06d}.png" if step % 5 == 0 else None
            if preview is not None:
                save_png(preview, portrait(step, f"step {step}"), {})
                change_run(load_run(run.folder), step=step)
            report("Training", step, run.total, preview=preview, metrics={"loss": losses[-1]})
            self._pause()
        while not self.hold.wait(0.02):
            report("Training", run.total, run.total)
        return losses

    def _generate(self, spec: GenerateSpec, report: Reporter, store: Store | None = None) -> GenerateResult:
        presets = load_presets()
        looks = spec.presets or tuple(presets)
        folder = new_folder((store or self.store).headshots_dir(spec.person), "set")
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
        lora = None if spec.lora is None else {"name": spec.lora, "sha256": ""}
        write_json_atomic(folder / RANKING, {"pictures": entries, "lora": lora, "request": spec.to_json()})
        return GenerateResult(folder, tuple(pictures), 1.0)

    def _pause(self) -> None:
        if self._step_s:
            threading.Event().wait(self._step_s)


def portrait(number: int, text: str) -> Image.Image:
    """A small RGB picture with a head and shoulders that differs by number."""
    hue = (number * 37) % 255
    image = Image.new("HSV", (256, 256), (hue, 60, 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 170, 216, 360), (160, 140, 90))
    draw.ellipse((80, 50, 176, 180), (18, 90, 220))
    draw.text((8, 8), text, (0, 0, 40))
    return image.convert("RGB")
