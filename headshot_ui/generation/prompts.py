"""From a preset or a free prompt to the text a model reads."""

from __future__ import annotations

import re

from headshot_ui.errors import SpecError
from headshot_ui.generation.presets import FamilyWords, Preset

#: The order is that of the captions the bases and LoRAs of this program are trained on.
TEMPLATE = "portrait of {subject}, wearing {attire}, in front of {backdrop}, {light}, {framing}, {expression}"
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|[{}]")


def subject_of(trigger: str, class_word: str) -> str:
    """How the person is called in a prompt, e.g. "tok person"."""
    return f"{trigger} {class_word}".strip()


def render(preset: Preset, trigger: str, class_word: str, closed_vocabulary: bool, family: str = "") -> str:
    """The prompt of a preset.

    Models that know only a small vocabulary get exactly ``TEMPLATE``; others also get the preset's
    ``detail`` for their family.
    """
    prompt = TEMPLATE.format(
        subject=subject_of(trigger, class_word),
        attire=preset.attire,
        backdrop=preset.backdrop,
        light=preset.light,
        framing=preset.framing,
        expression=preset.expression,
    )
    detail = "" if closed_vocabulary else preset.families.get(family, FamilyWords()).detail
    return f"{prompt}, {detail}" if detail else prompt


def render_negative(preset: Preset, closed_vocabulary: bool, family: str = "") -> str:
    """The preset's negative prompt for a family; "" for models with a small vocabulary."""
    return "" if closed_vocabulary else preset.families.get(family, FamilyWords()).negative


def render_free(prompt: str, trigger: str, class_word: str) -> str:
    """A person's own prompt with every ``{subject}`` replaced.

    Raises SpecError for any other placeholder: nothing else is filled in.
    """
    text = prompt.replace("{subject}", subject_of(trigger, class_word))
    wrong = _PLACEHOLDER.search(text)
    if wrong:
        raise SpecError("prompt", f"“{wrong.group()}” in the prompt means nothing here: only {{subject}} is filled in.")
    return text.strip()
