"""Florence-2 (arXiv 2311.06242), the captioner for photographs, with the network that transformers has.

Its weights in that layout are ``florence-community/Florence-2-base``; those of ``microsoft/Florence-2-base`` need code
that comes with them, and none is run here. 0.23 billion parameters, computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import ModelError
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.settings import Settings

WEIGHTS = "model.safetensors"
#: Without the tokenizer's files transformers makes an empty one and says nothing.
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)
PICTURES = ("preprocessor_config.json", "processor_config.json")  # how pictures are read: in one of them
TASK = "<MORE_DETAILED_CAPTION>"
MOST_TOKENS = 160
BEAMS = 3  # as its authors call it


class Florence2:
    """The network with its weights, behind the Captioner protocol."""

    id = "florence-2"

    def __init__(self, net: Any, processor: Any, device: str) -> None:
        self._net, self._processor, self._device = net.eval(), processor, device

    def describe(self, image: Image.Image) -> str:
        """Some English sentences about an RGB picture of any size. The same picture gives the same sentences."""
        import torch

        self._net.to(self._device)
        inputs = self._processor(text=TASK, images=image.convert("RGB"), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            ids = self._net.generate(**inputs, max_new_tokens=MOST_TOKENS, num_beams=BEAMS, do_sample=False)
        text: str = self._processor.batch_decode(ids, skip_special_tokens=True)[0]
        return " ".join(text.split())

    def keep(self, parts: frozenset[str]) -> None:
        """frozenset(): off the device until something is described again."""
        if not parts:
            self._net.to("cpu")


@dataclass(frozen=True)
class Florence2Loader:
    """How the program finds and loads this captioner."""

    id: str = "florence-2"
    title: str = "Florence-2 (photographs)"
    demo: bool = False

    def folder(self, settings: Settings) -> Path:
        """``models/florence-2/``."""
        return settings.models_dir / "florence-2"

    def weights(self, settings: Settings) -> tuple[Path, ...]:
        """The one file with its weights."""
        return (self.folder(settings) / WEIGHTS,)

    def missing(self, settings: Settings) -> tuple[Path, ...]:
        """Files it needs that are not there."""
        folder = self.folder(settings)
        pictures = next((name for name in PICTURES if (folder / name).is_file()), PICTURES[0])
        return tuple(path for name in (*NEEDED, pictures) if not (path := folder / name).is_file())

    def load(self, settings: Settings) -> Florence2:
        """Read the weights. Raises ModelError when they are missing, damaged or of another network."""
        import torch
        from transformers import Florence2ForConditionalGeneration, Florence2Processor

        folder, remedy = self.folder(settings), how_to_get(self.id)
        for path in self.missing(settings):
            raise ModelError(f"{path} is missing, so photos cannot be described: {remedy}.")
        try:
            with _quiet():
                net, told = Florence2ForConditionalGeneration.from_pretrained(
                    folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
                processor = Florence2Processor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # every reader has its own errors for a damaged file
            raise ModelError(f"The captioner in {folder} is damaged: {remedy}.") from error
        if told["missing_keys"] or told["mismatched_keys"]:  # they would be random numbers
            raise ModelError(f"{folder / WEIGHTS} does not hold all weights of Florence-2: {remedy}.")
        tokens = processor.tokenizer
        if len(tokens) > net.config.text_config.vocab_size or tokens.image_token_id != net.config.image_token_id:
            raise ModelError(f"The words in {folder / 'tokenizer.json'} are not those of its network: {remedy}.")
        return Florence2(net, processor, settings.device)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings of the library meanwhile; our own checks speak instead."""
    import transformers.utils.logging as log

    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    try:
        log.set_verbosity_error()
        log.disable_progress_bar()
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


CAPTIONER = Florence2Loader()
