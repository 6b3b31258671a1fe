"""Behind the Generate and Restore tabs in tests: a person with a finished training, runners without models."""

from __future__ import annotations

import threading
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance

from headshot_ui.export.runner import ExportedFile, ExportResult
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import RANKING, Picture
from headshot_ui.generation.runner import GenerateResult
from headshot_ui.jobs import Reporter
from headshot_ui.likeness import Likeness
from headshot_ui.restoration.records import BEFORE, Record, RestoredFace, RestoredPicture, RestoreResult
from headshot_ui.runs import Run, change_run, create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import ExportSpec, GenerateSpec, RestoreSpec, TrainSpec
from headshot_ui.stars import starred
from headshot_ui.store import Store, new_folder, save_png, write_bytes_atomic, write_json_atomic
from tests.ui.fake_engine import FakeEngine, portrait

PERSON = "anna"
BASE = BaseInfo(
    "demo-sdxl", "sdxl", "Demo (draws cartoons)", Path("."), "Apache-2.0",
    "The demo model draws cartoons, not photographs.", 256, demo=True,
)  # fmt: skip


def studio_settings(folder: Path) -> Settings:
    """Folders of its own, and a restorer that looks installed."""
    settings = Settings.from_environment(outputs_dir=folder / "outputs", models_dir=folder / "models", device="cpu")
    write_bytes_atomic(settings.models_dir / "demo" / "restorer" / "restorer.safetensors", b"fake")
    return settings


def trained(store: Store, person: str = PERSON) -> Run:
    """A finished training."""
    run = create_run(store, TrainSpec(person, BASE.id, steps=20), 20)
    write_bytes_atomic(run.folder / "lora.safetensors", b"fake")
    return change_run(run, state="done", step=20, lora="lora.safetensors")


class StudioEngine(FakeEngine):
    """Draws, restores and exports in milliseconds; ``drawing`` (an event) keeps a drawing at its preview."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, runners={
            GenerateSpec: self.draw, RestoreSpec: self.restore_pictures, ExportSpec: self.export,
        })  # fmt: skip
        self.drawing = threading.Event()
        self.drawing.set()

    def close(self) -> None:
        self.drawing.set()
        super().close()

    def draw(self, spec: GenerateSpec, report: Reporter) -> GenerateResult:
        preview = self.store.headshots_dir(spec.person) / "preview.png"
        save_png(preview, portrait(3, "preview"), {})
        report("Drawing", 1, 4, preview=preview)
        while not self.drawing.wait(0.02):
            report("Drawing", 1, 4, preview=preview)
        return draw_set(self.store, spec)

    def restore_pictures(self, spec: RestoreSpec, report: Reporter) -> RestoreResult:
        folder = new_folder(self.store.restored_dir(spec.person), "restored")
        record = Record(folder, spec, restorer=spec.restorer or "demo")
        for number, path in enumerate(map(Path, spec.pictures)):
            report("Repairing faces", number, len(spec.pictures))
            record.pictures.append(self._restored(spec, path, folder))
        record.write("done", 1.0)
        return RestoreResult(folder, tuple(record.pictures), 1.0, restorer=record.restorer)

    def _restored(self, spec: RestoreSpec, source: Path, folder: Path) -> RestoredPicture:
        image = Image.open(source).convert("RGB")
        before = folder / BEFORE / f"{source.stem}.jpg"
        before.parent.mkdir(exist_ok=True)
        image.save(before)
        path = folder / f"{source.stem}.png"
        large = image.resize((image.width * spec.upscale, image.height * spec.upscale))
        save_png(path, ImageEnhance.Color(large).enhance(2 - spec.fidelity_weight), {"request": spec.to_json()})
        count = 3 if "group" in source.stem else 1
        chosen = spec.faces or tuple(range(1, count + 1))
        faces = tuple(
            RestoredFace(number, (80.0, 50.0, 176.0, 180.0), "" if number in chosen else "It was not chosen.")
            for number in range(1, count + 1)
        )
        fell = spec.fidelity_weight < 0.2
        return RestoredPicture(
            source, path, faces, likeness_before=Likeness(0.8, 81.0, True),
            likeness_after=Likeness(0.8, 64.0 if fell else 84.0, True),
            warning="It is less like the person than before: try a higher weight." if fell else "",
            before=before, size=large.size,
        )  # fmt: skip

    def export(self, spec: ExportSpec, report: Reporter) -> ExportResult:
        folder = new_folder(self.store.exports_dir(spec.person), "export")
        pictures = [Path(path) for path in spec.pictures] or list(starred(self.store, spec.person))
        files = []
        archive = folder / "headshots.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for number, path in enumerate(pictures):
                report("Exporting", number, len(pictures))
                for layout in spec.layouts:
                    target = folder / f"{path.stem}-{layout}.{spec.file_type}"
                    Image.open(path).convert("RGB").resize((64, 64)).save(target)
                    packed.write(target, target.name)
                    files.append(ExportedFile(path, layout, target, 64, 64))
        return ExportResult(folder, tuple(files), archive, 0.1)


def draw_set(
    store: Store, spec: GenerateSpec, state: str = "done", prompt: str = "a prompt", **changes: Any
) -> GenerateResult:
    """A set of headshots as the real stage leaves it; the last picture of eight has no face."""
    presets = load_presets()
    folder = new_folder(store.headshots_dir(spec.person), "set")
    resolved = replace(spec, steps=16, guidance_scale=2.0)
    looks: list[str] = [*spec.presets] or [""]
    pictures: list[Picture] = []
    for number in range(len(looks) * spec.count):
        look = looks[number % len(looks)]
        title = presets[look].title if look else "Own prompt"
        path = folder / f"{number + 1:03d}-{look or 'prompt'}-{spec.seed + number}.png"
        planned = {"width": 256, "height": 256}
        save_png(path, portrait(number, look), {"request": resolved.to_json(), "picture": planned})
        no_face = number % 8 == 7
        likeness = Likeness(0.9 - number / 200, 96.0 - number, not no_face, "no face was found" if no_face else "")
        pictures.append(Picture(path, look, title, prompt, spec.seed + number, likeness, number + 1, **changes))
    entries = [{**asdict(picture), "path": picture.path.name} for picture in pictures]
    data = {"state": state, "pictures": entries, "request": resolved.to_json(), "lora": None}
    write_json_atomic(folder / RANKING, data)
    return GenerateResult(folder, tuple(pictures), 1.0)
