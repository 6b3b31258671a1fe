"""A person with a finished training on a tiny model of SDXL's classes: a real LoRA file to take along."""

from __future__ import annotations

from headshot_ui import families
from headshot_ui.families.bases import find_bases
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.runs import Run, change_run, create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from tests.tiny_models import make_tiny_sdxl


def tiny_base(settings: Settings) -> BaseInfo:
    """Write the model into the models folder; what is known of it."""
    make_tiny_sdxl(settings.models_dir / "tiny")
    (info,) = find_bases("sdxl", settings)
    return info


def trained_tiny(store: Store, info: BaseInfo, person: str = "anna") -> Run:
    """A finished training of rank 4 and alpha 2, whose words are “tok woman”."""
    loaded = families.load_base(info, store.settings)
    loaded.add_trainable_lora(4, 2.0, 0)
    run = create_run(store, TrainSpec(person, info.id), total=40)
    told = {"rank": "4", "alpha": "2.0", "trigger": "tok", "date": "2026-11-24T10:00:00Z"}
    loaded.save_lora(run.folder / "lora.safetensors", loaded.trainable_lora_state(), told)
    loaded.release()
    return change_run(
        run, state="done", step=40, lora="lora.safetensors", facts={"trigger": "tok", "class_word": "woman"}
    )
