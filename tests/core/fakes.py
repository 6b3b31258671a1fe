"""Stand-ins for the stages: they report, write a little, and note what they were given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from headshot_ui.dataset.saved import save_dataset
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.engine import Parts
from headshot_ui.errors import DatasetError, ModelError, SpecError
from headshot_ui.families.protocol import BaseInfo, RefinerInfo
from headshot_ui.jobs import Reporter
from headshot_ui.likeness import Likeness
from headshot_ui.restoration.protocol import RestorerInfo
from headshot_ui.runs import change_run, create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import ExportSpec, GenerateSpec, PrepareSpec, RestoreSpec, TrainSpec
from headshot_ui.store import Store, save_png, write_bytes_atomic, write_json_atomic


def base(base_id: str, models_dir: Path) -> BaseInfo:
    folder = models_dir / base_id
    return BaseInfo(base_id, "fake", base_id.title(), folder, "Apache-2.0", "", 64, demo=True)


@dataclass
class FakeLoaded:
    """A model in memory that only remembers what was done to it."""

    info: Any
    loras: list[Sequence[tuple[Path, float]]] = field(default_factory=list)
    kept: list[frozenset[str]] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    released: int = 0
    takes_bytes: float | None = None

    def report_to(self, told: Any) -> None:
        self.told.append(told)

    def keep(self, parts: frozenset[str]) -> None:
        self.kept.append(parts)

    def use_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        self.loras.append(tuple(loras))

    def release(self) -> None:
        self.released += 1


@dataclass(frozen=True)
class FakeTrained:
    run_dir: Path
    lora_path: Path


@dataclass(frozen=True)
class FakePicture:
    path: Path
    likeness: Likeness | None
    kept: bool = True


@dataclass(frozen=True)
class FakeGenerated:
    pictures: tuple[FakePicture, ...]


@dataclass(frozen=True)
class FakeTools:
    """What a restoring stage is given."""

    detector: Any
    open_restorer: Any
    open_upscaler: Any
    open_parser: Any


@dataclass(frozen=True)
class FakeRestorer:
    """A kind of restorer, installed when ``reason`` is empty."""

    info: RestorerInfo
    load: Any
    reason: str = ""

    def weights(self, settings: Settings) -> Path:
        return settings.models_dir / f"{self.info.id}.safetensors"


@dataclass(frozen=True)
class FakeCaptionerLoader:
    """A captioner that is installed."""

    folder: Path
    load: Any
    id: str = "florence-2"
    title: str = "Captioner"

    def weights(self, settings: Settings) -> tuple[Path, ...]:
        return (self.folder / "captioner.safetensors",)


@dataclass(frozen=True)
class FakeMade:
    """What restoring or exporting made: one file per picture (and layout)."""

    source: Path
    path: Path


@dataclass(frozen=True)
class FakeRestored:
    pictures: tuple[FakeMade, ...]


@dataclass(frozen=True)
class FakeExported:
    files: tuple[FakeMade, ...]


@dataclass(frozen=True)
class FakeJudge:
    """Takes red pictures for the person."""

    def score(self, image: Image.Image) -> Likeness:
        red = image.getpixel((0, 0)) == (255, 0, 0)
        return Likeness(0.9, 90.0, True) if red else Likeness(0.1, 10.0, False)


@dataclass
class FakeWorld:
    """Everything the fake stages saw; ``hold`` makes training wait at each step, ``fail`` makes it break.

    ``refiner`` is the one that requests choose, ``no_restorer`` is why none can be used, ``exporting`` is set when an
    export began and ``hold_export`` keeps it from ending.
    """

    settings: Settings
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    loaded: list[FakeLoaded] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    training: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event | None = None
    fail: BaseException | None = None
    judge_fails: bool = False
    refiner: RefinerInfo | None = None
    no_restorer: str = ""
    no_captioner: str = ""
    wrong_request: str = ""
    exporting: threading.Event = field(default_factory=threading.Event)
    hold_export: threading.Event | None = None

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def parts(self) -> Parts:
        self.note("parts")
        bases = {name: base(name, self.settings.models_dir) for name in ("demo", "other")}
        self.restorers = {
            name: FakeRestorer(
                RestorerInfo(name, name.title(), "", "", 8, True, demo=name == "demo"), self.load_other(name)
            )
            for name in ("real", "demo")
        }
        return Parts(
            all_bases=lambda settings: tuple(bases.values()),
            find_base=lambda base_id, settings: bases[base_id],
            likely_refiner=lambda spec, info, settings: self.refiner,
            chosen_refiner=lambda spec, info, settings: self.refiner,
            all_restorers=lambda: self.restorers,
            choose_restorer=self.choose_restorer,
            check_request=self.check_request,
            load_dataset=load_dataset,
            load_base=self.load_base,
            load_refiner=lambda info, settings: self.load_other("refiner")(settings),
            load_detector=lambda settings, info: self.note("detector") or "detector",
            load_any_detector=self.load_any_detector,
            load_upscaler=lambda factor, settings: self.load_other("upscaler")(settings),
            load_parser=self.load_other("parser"),
            load_judge=self.load_judge,
            load_recogniser=self.load_recogniser,
            find_captioner=self.find_captioner,
            prepare=self.prepare,
            train=self.train,
            generate=self.generate,
            restore_tools=FakeTools,
            restore=self.restore,
            export=self.export,
        )  # type: ignore[arg-type]

    def note(self, *call: Any) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(call)

    def load_base(self, info: BaseInfo, settings: Settings) -> Any:
        self.note("load_base", info.id)
        self.loaded.append(FakeLoaded(info))
        return self.loaded[-1]

    def load_other(self, name: str) -> Callable[[Settings], FakeLoaded]:
        def load(settings: Settings) -> FakeLoaded:
            self.note("load", name)
            return FakeLoaded(name)

        return load

    def load_any_detector(self, settings: Settings, drawn_first: bool) -> str:
        self.note("any detector", settings.device, drawn_first)
        return "any detector"

    def choose_restorer(self, restorer_id: str | None, settings: Settings) -> FakeRestorer:
        if self.no_restorer:
            raise ModelError(self.no_restorer)
        return self.restorers[restorer_id or "real"]

    def check_request(self, spec: GenerateSpec, store: Store, info: BaseInfo) -> None:
        self.note("check", spec.lora)
        if self.wrong_request:
            raise SpecError("prompt", self.wrong_request)

    def load_judge(self, settings: Settings, info: BaseInfo, detector: Any, dataset: Dataset) -> Any:
        self.note("judge", detector, dataset.person)
        if self.judge_fails:
            raise ModelError("No face recogniser is installed.")
        return FakeJudge()

    def load_recogniser(self, settings: Settings, info: BaseInfo) -> Any:
        if self.judge_fails:
            raise ModelError("No face recogniser is installed.")
        return "recogniser"

    def find_captioner(self, settings: Settings, info: BaseInfo) -> FakeCaptionerLoader:
        if self.no_captioner:
            raise ModelError(self.no_captioner)
        return FakeCaptionerLoader(settings.models_dir, self.load_other("captioner"))

    def prepare(
        self, spec: PrepareSpec, store: Store, info: BaseInfo, detector: Any, report: Reporter, recogniser: Any,
        open_captioner: Any = None,
    ) -> Dataset:  # fmt: skip
        self.note("prepare", spec, detector, recogniser)
        if open_captioner is not None:
            with open_captioner() as captioner:
                self.note("captioner open", captioner)
        report("Looking at the photos", 1, 1)
        folder = store.dataset_dir(spec.person)
        write_json_atomic(folder / "dataset.json", {"person": spec.person})
        return load_dataset(folder)

    def train(self, spec: TrainSpec, store: Store, loaded: Any, dataset: Dataset, report: Reporter) -> Any:
        self.note("train", spec, dataset)
        run = create_run(store, spec)
        for step in range(1, 4):
            report("Training", step, 3, metrics={"loss": 1 / step})
            self.training.set()
            if self.hold is not None:
                assert self.hold.wait(10)
        if self.fail is not None:
            change_run(run, state="failed", step=2)
            raise self.fail
        write_bytes_atomic(run.folder / "lora.safetensors", b"lora")
        change_run(run, state="done", lora="lora.safetensors", step=3)
        return FakeTrained(run.folder, run.folder / "lora.safetensors")

    def generate(
        self, spec: GenerateSpec, store: Store, loaded: Any, report: Reporter, judge: Any, open_refiner: Any
    ) -> Any:
        self.note("generate", spec, judge)
        if spec.lora is not None:
            loaded.use_loras([(Path(spec.lora), spec.lora_scale)])
        if open_refiner is not None:
            with open_refiner() as refiner:
                self.note("refine", refiner.info)
        pictures = []
        for number in range(spec.count * max(1, len(spec.presets))):
            report("Drawing", number + 1, spec.count)
            image = Image.new("RGB", (4, 4), "red" if spec.lora is not None else "blue")
            path = store.headshots_dir(spec.person) / f"{number}.png"
            save_png(path, image, spec.to_json())
            pictures.append(FakePicture(path, None if judge is None else judge.score(image), number < 5))
        return FakeGenerated(tuple(pictures))

    def restore(self, spec: RestoreSpec, store: Store, tools: FakeTools, report: Reporter, judge: Any) -> Any:
        self.note("restore", spec, tools.detector, judge)
        with tools.open_restorer() as restorer:
            self.note("restorer", restorer.info)
        with tools.open_upscaler(2) as upscaler, tools.open_parser() as parser:
            self.note("others", upscaler.info, parser.info)
        report("Repairing faces", 1, 1)
        made = []
        for source in map(Path, spec.pictures):
            path = store.restored_dir(spec.person) / source.name
            save_png(path, Image.new("RGB", (4, 4), "green"), {})
            made.append(FakeMade(source, path))
        return FakeRestored(tuple(made))

    def export(self, spec: ExportSpec, store: Store, detector: Any, report: Reporter) -> Any:
        self.note("export", spec, detector)
        self.exporting.set()
        if self.hold_export is not None:
            assert self.hold_export.wait(10)
        report("Exporting", 1, 1)
        folder = store.exports_dir(spec.person)
        sources = [(Path(source), layout) for source in spec.pictures for layout in spec.layouts]
        return FakeExported(
            tuple(FakeMade(source, folder / f"{source.stem}-{layout}.jpg") for source, layout in sources)
        )


def load_dataset(folder: Path) -> Dataset:
    if not (folder / "dataset.json").is_file():
        raise DatasetError("No photos have been prepared yet: add photos first.")
    return Dataset(folder.parent.name, folder, 64, "tok", "person", ())


def write_weights(path: Path, tensors: Mapping[str, tuple[str, int]]) -> None:
    """A safetensors file of zeros; ``tensors`` maps name to (dtype, count)."""
    import json
    import struct

    sizes = {"F32": 4, "F16": 2, "I64": 8}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, count) in tensors.items():
        end = start + sizes[dtype] * count
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))


def grey_pictures(spec: PrepareSpec, store: Any, *_: Any) -> Dataset:
    """Four grey pictures, as if they had been prepared, so that a job takes a moment."""
    folder = store.dataset_dir(spec.person)
    photos = []
    for number in range(4):
        picture = Image.linear_gradient("L").resize((64, 64)).rotate(90 * number).convert("RGB")
        save_png(folder / f"{number}.png", picture, {})
        caption, size = "portrait of tok person", (64, 64)
        photos.append(PreparedPhoto(f"{number}.jpg", "train", "", (), f"{number}.png", caption, original_size=size))
    dataset = Dataset(spec.person, folder, 64, "tok", "person", tuple(photos))
    save_dataset(dataset)
    return dataset
