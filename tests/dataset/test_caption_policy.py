"""What of a description becomes a caption: never the person, always clothes, light, background, expression, framing."""

from __future__ import annotations

import random

import pytest

from headshot_ui.dataset.caption_policy import (
    MOST_WORDS,
    OF_LOOKS,
    OF_THE_PERSON,
    allowed_words,
    names_the_person,
)


@pytest.mark.parametrize(
    ("description", "caption"),
    [("The image is a portrait of a young woman with long blonde hair. She is wearing a red blouse and is smiling at "
      "the camera. The background is blurred and appears to be an office with large windows. The lighting is soft.",
      "wearing a red blouse, smiling at the camera, the background is blurred, an office, large windows, "
      "the lighting is soft"),
     ("The image shows a middle-aged Asian man with short black hair and a beard. He is wearing a dark blue suit, a "
      "white shirt and a striped tie, and he has a serious expression on his face. He is standing in front of an old "
      "brick building, his arms crossed.",
      "wearing a dark blue suit, a white shirt, a striped tie, a serious expression, in front of brick building, "
      "arms crossed"),
     ("A close-up of a woman's face. Her eyes are brown and her skin is pale. She is wearing gold earrings and a black "
      "turtleneck sweater. The background is plain white.",
      "a close-up, wearing gold earrings, a black turtleneck sweater, the background is plain white"),
     ("The image is a black and white portrait of a man in his early thirties. He has curly hair, freckles and is "
      "looking directly at the camera with a slight smile on his face.",
      "looking directly at the camera, a slight smile"),
     ("In this image we can see a girl sitting on a wooden bench. It is a sunny day.",
      "sitting on a wooden bench, a sunny day"),
     ("The room features a large bookshelf. She appears to be in her 30s. Upper body shot.",
      "the room has a large bookshelf, upper body shot"),
     ("There is a young man in a blue suit and tie standing in front of a white wall. The man in the image is "
      "wearing a watch.", "in a blue suit, tie, in front of a white wall, wearing a watch"),
     ("The image is a close-up portrait of an attractive woman in a red dress. She is in her thirties.",
      "in a red dress"),
     ("She wears a 1950s dress.", "a 1950s dress")],
)  # fmt: skip
def test_descriptions_become_captions(description: str, caption: str) -> None:
    assert allowed_words(description) == caption


@pytest.mark.parametrize(
    "description",
    ["", "a man", "A beautiful young woman.", "An elderly lady with grey hair and wrinkles.", "He is bald.",
     "The image is a portrait of a person.", "She is in her mid-20s.", "A long-haired, dark-eyed teenager.",
     "He has a strong jawline, pale skin and blue eyes.", "An attractive African American male."],
)  # fmt: skip
def test_where_only_the_person_is_described_nothing_is_left(description: str) -> None:
    assert allowed_words(description) == ""


@pytest.mark.parametrize("word", sorted(OF_THE_PERSON | OF_LOOKS))
def test_no_word_about_the_person_gets_through(word: str) -> None:
    for sentence in (
        f"A {word} one in a coat.", f"She has {word.upper()}, wearing a hat.", f"The light falls on {word}.",
        f"wearing a hat and a {word}-like scarf", f"“{word}”",
    ):  # fmt: skip
        assert not names_the_person(allowed_words(sentence)), sentence
    assert "wearing a hat" in allowed_words(f"She has {word}, wearing a hat.")


def test_no_mixture_of_words_lets_one_through() -> None:
    pick = random.Random(0)
    plain = ["a", "the", "with", "and", "wearing", "red", "coat,", "light.", "background", "office", "smiling", "his",
             "her", "is", "in", "front", "of", "window;", "close-up"]  # fmt: skip
    person = [*OF_THE_PERSON, *OF_LOOKS]
    for _ in range(400):
        text = " ".join(pick.choice(person if pick.random() < 0.25 else plain) for _ in range(25))
        said = allowed_words(text)
        assert not names_the_person(said), (text, said)
        assert len(said.split()) <= MOST_WORDS


def test_a_long_description_ends_with_a_whole_clause() -> None:
    clauses = [f"wearing thing number {number} of wool" for number in range(30)]
    said = allowed_words(". ".join(clauses))
    assert said.split(", ") == clauses[: len(said.split(", "))] and 0 < len(said.split()) <= MOST_WORDS


def test_nothing_is_said_twice() -> None:
    assert allowed_words("Wearing a hat. wearing a hat and wearing a hat") == "wearing a hat"
