"""Models that somebody dropped into the models folder: found, loaded to the last bit, or refused with a reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headshot_ui import doctor, families
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import BASE_FILE, REFINER_FILE
from headshot_ui.families.protocol import BaseInfo, DenoiseRequest
from headshot_ui.families.sdxl_parts import files, single_file
from headshot_ui.families.shared_parts import mapped
from headshot_ui.memory import files_bytes
from headshot_ui.prove.random_models import BASE_ID, REFINER_ID, make_random_models
from headshot_ui.settings import Settings
from tests.families.sgm_writer import checkpoint_of, write_checkpoint

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Described folders of a small base and refiner, whose configs stand for the published ones meanwhile."""
    folder = tmp_path_factory.mktemp("made")
    make_random_models(folder, "tiny", device="cpu")
    published = tmp_path_factory.mktemp("published")
    for part, made_id in (("base", BASE_ID), ("refiner", REFINER_ID)):
        without = shutil.ignore_patterns("*.safetensors", BASE_FILE, REFINER_FILE)
        shutil.copytree(folder / made_id, published / part, ignore=without)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_PUBLISHED", published)
        yield folder


@pytest.fixture(scope="module")
def checkpoint(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(made / BASE_ID, tmp_path_factory.mktemp("file") / "Fine Photos_v1.safetensors")


@pytest.fixture
def models(checkpoint: Path, tmp_path: Path) -> Settings:
    """A models folder into which one good checkpoint was dropped."""
    (tmp_path / "models").mkdir()
    shutil.copy(checkpoint, tmp_path / "models")
    return settings_of(tmp_path / "models")


def settings_of(models_dir: Path) -> Settings:
    return Settings.from_environment(root=models_dir, models_dir=models_dir, device="cpu", environment={})


def tensors(loaded: Any) -> dict[str, torch.Tensor]:
    modules = loaded.modules
    parts = {"unet": modules.unet, "vae": modules.vae, "one": modules.text_encoders[0], "two": modules.text_encoders[1]}
    return {f"{part}.{name}": each for part, module in parts.items() for name, each in module.state_dict().items()}


def picture(loaded: Any) -> bytes:
    embeds, empty = loaded.encode_prompts(["portrait of a person"]), loaded.encode_prompts([""])
    *_, last = loaded.denoise(DenoiseRequest(embeds, empty, [1], 2, 5.0, 128, 128))
    return loaded.decode_latents(last.latents)[0].tobytes()


@pytest.fixture(scope="module")
def expected(made: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    """Every tensor and a picture of the described folder."""
    settings = settings_of(made)
    loaded = families.load_base(families.find_base(BASE_ID, settings), settings)
    return tensors(loaded), picture(loaded)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def load(base_id: str, settings: Settings) -> tuple[BaseInfo, Any]:
    info = families.find_base(base_id, settings)
    return info, families.load_base(info, settings)


# --- found -----------------------------------------------------------------------------------------
def test_a_checkpoint_is_listed_and_is_the_folder_to_the_last_bit(models: Settings, expected: Any) -> None:
    (listed,) = families.all_bases(models)
    assert (listed.id, listed.title, listed.size_px) == ("fine-photos_v1", "Fine Photos v1", 128)
    families.check_base(listed)
    info, loaded = load("Fine Photos_v1.safetensors", models)
    assert info == listed
    assert same(tensors(loaded), expected[0]) and picture(loaded) == expected[1]


def test_what_was_dropped_from_memory_is_read_from_the_checkpoint_again(models: Settings, expected: Any) -> None:
    _, loaded = load("fine-photos_v1", models)
    loaded.keep(frozenset())
    loaded.shed()
    assert loaded.modules.unet is None and loaded.modules.vae is None and not loaded.modules.text_encoders
    assert picture(loaded) == expected[1]


@pytest.mark.parametrize(("dtype", "at_once"), [(torch.float32, False), (torch.float16, True)])
def test_of_a_file_whose_numbers_change_little_is_mapped_at_a_time(
    dtype: torch.dtype, at_once: bool, made: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came through one opening stays mapped until the last tensor of it is gone."""
    openings: list[list[int]] = []

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file
            openings.append([])

        def get_tensor(self, name: str) -> torch.Tensor:
            tensor = self.file.get_tensor(name)
            openings[-1].append(tensor.nbytes)
            return tensor

    @contextmanager
    def counted(*args: Any, **kwargs: Any) -> Iterator[Counted]:
        with safe_open(*args, **kwargs) as file:
            yield Counted(file)

    monkeypatch.setattr(safetensors, "safe_open", counted)
    monkeypatch.setattr(mapped, "AT_A_TIME", 100_000)
    unet = single_file.read_part(UNet2DConditionModel, checkpoint, made / BASE_ID, "unet", dtype)
    stored = load_file(next((made / BASE_ID / "unet").glob("*.safetensors")))
    assert same(unet.state_dict(), {name: tensor.to(dtype) for name, tensor in stored.items()})
    assert (len(openings) == 1) is at_once
    assert at_once or all(sum(opening) <= 100_000 or len(opening) == 1 for opening in openings)


def test_bytes_of_a_checkpoint_are_counted_by_its_parts(made: Path, models: Settings) -> None:
    (info,) = families.all_bases(models)
    there = files_bytes(families.weight_places(info), "float16")
    folder = files_bytes([made / BASE_ID], "float16")
    assert there.pop("text_encoder_2") == folder.pop("text_encoder_2") + 2, "the scale that nothing uses"
    assert there == folder


def test_a_checkpoint_that_predicts_v_says_so_itself(made: Path, models: Settings) -> None:
    from headshot_ui.families.sdxl_parts.kinds import read_schedule

    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    write_checkpoint(made / BASE_ID, models.models_dir / "vpred.safetensors", marks)
    plain, other = (read_schedule(families.find_base(name, models)) for name in ("fine-photos_v1", "vpred"))
    assert plain.get("prediction_type", "epsilon") == "epsilon" and other["prediction_type"] == "v_prediction"
    assert other["rescale_betas_zero_snr"] is True and other["timestep_spacing"] == "trailing"


def test_a_folder_without_description_is_listed_and_draws_the_same(made: Path, tmp_path: Path, expected: Any) -> None:
    shutil.copytree(made / BASE_ID, tmp_path / "RealPhotos", ignore=shutil.ignore_patterns(BASE_FILE))
    settings = settings_of(tmp_path)
    info, loaded = load("RealPhotos", settings)
    assert info.id == "realphotos" and families.all_bases(settings) == (info,)
    assert same(tensors(loaded), expected[0]) and picture(loaded) == expected[1]


def test_a_refiner_checkpoint_finishes_what_the_base_began(made: Path, models: Settings) -> None:
    write_checkpoint(made / REFINER_ID, models.models_dir / "polish.safetensors")
    described = settings_of(made)
    (base,) = families.all_bases(models)
    info = families.find_refiner("polish", base, models)
    families.refiner_facts(info, base)
    own = families.find_refiner(REFINER_ID, families.find_base(BASE_ID, described), described)
    ours, theirs = (families.load_refiner(each, settings) for each, settings in ((info, models), (own, described)))
    assert same(ours.unet.state_dict(), theirs.unet.state_dict())  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", [".hidden/x.safetensors", "sdxl-vae-fp16-fix/x.safetensors", ".x.safetensors"])
def test_what_is_hidden_or_known_by_its_name_is_no_model(models: Settings, place: str) -> None:
    path = models.models_dir / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    assert families.all_misfits(models) == () and len(families.all_bases(models)) == 1


def test_a_folder_whose_download_is_being_repaired_is_no_model(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / BASE_ID, tmp_path / "x", ignore=shutil.ignore_patterns(BASE_FILE))
    (tmp_path / "x" / "base.json.waiting").touch()
    settings = settings_of(tmp_path)
    assert families.all_bases(settings) == () and families.all_misfits(settings) == ()


# --- refused ---------------------------------------------------------------------------------------
def pickle(made: Path, models_dir: Path) -> None:
    (models_dir / "wrong.ckpt").write_bytes(b"PK\x03\x04anything")


def sd15(made: Path, models_dir: Path) -> None:
    names = ("cond_stage_model.transformer.text_model.embeddings.position_ids", f"{UNET}input_blocks.0.0.weight")
    save_file({name: torch.zeros(1) for name in names}, models_dir / "wrong.safetensors")


def flux(made: Path, models_dir: Path) -> None:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1)}, models_dir / "wrong.safetensors")


def inpainting(made: Path, models_dir: Path) -> None:
    state, name = checkpoint_of(made / BASE_ID), f"{UNET}input_blocks.0.0.weight"
    wide = torch.zeros(state[name].shape[0], 9, 3, 3)
    save_file(state | {name: wide}, models_dir / "wrong.safetensors")


def half(made: Path, models_dir: Path) -> None:
    path = write_checkpoint(made / BASE_ID, models_dir / "wrong.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])


def without_vae(made: Path, models_dir: Path) -> None:
    state = {name: each for name, each in checkpoint_of(made / BASE_ID).items() if "first_stage" not in name}
    save_file(state, models_dir / "wrong.safetensors")


WRONG = [
    (pickle, "a pickle, which can run any program.*get the .safetensors version"),
    (sd15, "Stable Diffusion 1, another family: choose a checkpoint of Stable Diffusion XL"),
    (flux, "incomplete .*“img_in.weight” is missing.: get it again"),
    (inpainting, "an inpainting checkpoint, which draws only with a mask"),
    (half, r"damaged \(\d+ bytes instead of \d+\): get it again"),
    (without_vae, "a checkpoint without VAE: get the complete checkpoint"),
]


@pytest.mark.parametrize(("write", "sentence"), WRONG, ids=[write.__name__ for write, _ in WRONG])
def test_a_wrong_file_is_told_and_hides_no_other(made: Path, models: Settings, write: Any, sentence: str) -> None:
    write(made, models.models_dir)
    (path,) = models.models_dir.glob("wrong.*")
    with pytest.raises(ModelError, match=sentence) as refused:
        families.find_base(path.name, models)
    assert str(path) in str(refused.value)
    assert [info.id for info in families.all_bases(models)] == ["fine-photos_v1"]
    (told,) = doctor.check_misfits(models)
    assert path.name in told.name and told.advice == str(refused.value)
    assert told.ok is (False if write in (half, flux) else None)
    (base,) = doctor.check_bases(models)
    assert base.ok is True, base.advice


def test_a_refiner_is_no_base(made: Path, models: Settings) -> None:
    write_checkpoint(made / REFINER_ID, models.models_dir / "polish.safetensors")
    with pytest.raises(ModelError, match="“polish” is a refiner.*choose a base model"):
        families.find_base("polish", models)
    assert [info.id for info in families.all_bases(models)] == ["fine-photos_v1"]


def test_a_checkpoint_that_lacks_a_tensor_is_named_with_it(made: Path, models: Settings) -> None:
    state = checkpoint_of(made / BASE_ID)
    del state["first_stage_model.decoder.mid.attn_1.q.weight"]
    save_file(state, models.models_dir / "lacking.safetensors")
    with pytest.raises(ModelError, match=r"The vae in .*lacking.safetensors is incomplete .*to_q.weight”"):
        load("lacking", models)
