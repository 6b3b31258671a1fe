"""Does everything of a FLUX.1 base belong together? Told from configs, tokenizers and headers, before it is loaded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.flux_parts.files import CLIP, T5, TRANSFORMER, VAE, WEIGHTS, check_files, check_t5_words
from headshot_ui.families.flux_parts.single_file import usable
from headshot_ui.families.flux_parts.sizes import Shape, shape_of
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.words import check_tokenizer, check_words

TEXT_TO_IMAGE = ("FluxPipeline", "FluxImg2ImgPipeline")  # both are saved from the same parts
#: What a single file takes from a folder.
BORROWED = (VAE, CLIP, T5)
NEEDS_FLUX = "choose FLUX.1-dev or FLUX.1-schnell"
#: How the classes of other pipelines begin, and what they are; the first that fits counts.
_OTHER_PIPELINES = (
    ("Flux2", "FLUX.2, another family"),
    ("FluxFill", "FLUX.1 Fill, which draws only with a mask"),
    ("FluxKontext", "FLUX.1 Kontext, which changes a picture it is given"),
    ("FluxPriorRedux", "FLUX.1 Redux, which varies a picture it is given"),
    ("FluxControlNet", "FLUX.1 with a ControlNet"),
    ("FluxControl", "FLUX.1 Depth or Canny, which draws only along a picture it is given"),
    ("Flux", "FLUX.1 for another task"),
)
#: (channels of the latents of a step, per channel of the VAE): pixels of 2 by 2 cells, and more for other tasks.
_PACKED = 4


def check_base(info: BaseInfo) -> None:
    """Raise ModelError for the first thing that is missing, damaged or of another model."""
    if info.checkpoint is None:
        check_folder(info.folder)
        return
    shape = usable(info.checkpoint).shape
    check_folder(info.folder, BORROWED)
    if not fits(shape, lent_shape(info.folder)):
        raise ModelError(f"{info.checkpoint} is for other texts or another VAE than {info.folder} has: {NEEDS_FLUX}.")


def check_folder(folder: Path, weights: Collection[str] = WEIGHTS) -> None:
    """The same of a folder in diffusers layout, from which the ``weights`` of these parts are needed."""
    check_pipeline(folder)
    check_files(folder, weights)
    check_tokenizer(folder / "tokenizer")
    check_parts(folder)
    check_words(folder, "")
    check_t5_words(folder)


def lent_shape(folder: Path) -> Shape:
    """That of the transformer whose texts and VAE a folder has. Raises ModelError."""
    return shape_of(read_json_file(folder / TRANSFORMER / "config.json"))


def fits(shape: Shape, lent: Shape) -> bool:
    """Whether a transformer in a single file can be drawn with by what belongs to another one."""
    return all(getattr(shape, name) == getattr(lent, name) for name in ("head", "joint", "pooled", "channels"))


def pipeline_name(folder: Path) -> str:
    """The class that ``model_index.json`` names. Raises ModelError."""
    return str(read_json_file(folder / "model_index.json").get("_class_name", ""))


def check_pipeline(folder: Path) -> None:
    """Raise ModelError unless ``model_index.json`` names a pipeline that draws pictures from texts with FLUX.1."""
    name = pipeline_name(folder)
    if name in TEXT_TO_IMAGE:
        return
    told = next((told for mark, told in _OTHER_PIPELINES if name.startswith(mark)), "a model of another family")
    raise ModelError(f"{folder} is {told} ({name or 'no class is named'}): {NEEDS_FLUX}.")


def check_parts(folder: Path) -> None:
    """Raise ModelError unless the transformer takes what the other parts give: their texts and latents."""
    parts = (TRANSFORMER, VAE, CLIP, T5)
    transformer, vae, clip, t5 = (read_json_file(folder / part / "config.json") for part in parts)
    place = folder / TRANSFORMER
    if transformer.get("_class_name") != "FluxTransformer2DModel":
        raise ModelError(f"{place} is another kind of network, not the transformer of FLUX.1: {AGAIN}.")
    takes, gives = transformer.get("in_channels", 64), _PACKED * vae.get("latent_channels", 4)
    if takes != gives:
        if isinstance(takes, int) and takes > gives:
            raise ModelError(f"{place} takes a picture or mask beside the latents, for another task: {NEEDS_FLUX}.")
        raise ModelError(f"{place} takes {takes} channels, but the VAE beside it gives {gives}: {AGAIN}.")
    if (transformer.get("out_channels") or takes) != takes or transformer.get("patch_size", 1) != 1:
        raise ModelError(f"{place} is built for another task: {NEEDS_FLUX}.")
    wanted = transformer.get("joint_attention_dim", 4096), transformer.get("pooled_projection_dim", 768)
    if wanted != (t5.get("d_model"), clip.get("hidden_size")):
        raise ModelError(f"The parts in {folder} belong to different models: {AGAIN}.")
    schedule = read_json_file(folder / "scheduler" / "scheduler_config.json").get("_class_name")
    if schedule != "FlowMatchEulerDiscreteScheduler":
        raise ModelError(f"{folder / 'scheduler'} is that of another kind of model ({schedule}): {AGAIN}.")
