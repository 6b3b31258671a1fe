"""Words the base model does not know, told beside the prompt while it is being written. No gradio.

Only the tokenizer is read, once per base; no weight is.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from headshot_ui import families
from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.generation.plan import check_negative, check_words
from headshot_ui.generation.prompts import render_free

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, Vocabulary
    from headshot_ui.specs import GenerateSpec

_reading = threading.Lock()  # one at a time: two browsers must not read two tokenizers


@lru_cache(maxsize=8)
def _vocabulary(info: BaseInfo) -> Vocabulary:
    return families.vocabulary(info)


def check_prompt(info: BaseInfo | None, field: str, text: str) -> None:
    """Raise SpecError for ``field``: a placeholder that means nothing, or what the base does not read.

    A base whose vocabulary cannot be read raises nothing: that is told when it is used.
    """
    if not text.strip():
        return
    # {subject} becomes a word the model knows; a negative prompt is taken as it is.
    plain = render_free(text, "", "") if field == "prompt" else text
    if info is None:
        return
    try:
        if field == "negative_prompt":
            check_negative(info, text)
        with _reading:
            known = _vocabulary(info)
            check_words(known, field, [plain])
    except SpecError:
        raise
    except HeadshotError:
        return


def check_request_words(info: BaseInfo | None, spec: GenerateSpec) -> None:
    """Both prompts of a request. Raises SpecError."""
    check_prompt(info, "prompt", spec.prompt)
    check_prompt(info, "negative_prompt", spec.negative_prompt or "")


def said_of(info: BaseInfo | None, field: str, text: str | None) -> str:
    """The sentence beside the field; "" for none."""
    try:
        check_prompt(info, field, text or "")
    except SpecError as error:
        return str(error)
    return ""
