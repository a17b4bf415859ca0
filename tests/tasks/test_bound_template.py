"""Images in templates: what stands where, what is cut, and what is refused."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest

import softprompt as sp
from softprompt.backbones.image_text import ImageTextBackbone
from softprompt.binding import bind
from softprompt.outputs import EncodedRow
from softprompt.tasks.room import Room
from softprompt.tasks.template import Template
from tests.tiny.image_text import noise, tiny_image_text_backbone
from tests.tiny.task import tiny_backbone


@functools.cache
def backbone_of(kind: str = "llava") -> ImageTextBackbone:
    return tiny_image_text_backbone(kind)


def encoded(
    template: str,
    row: dict[str, Any],
    *,
    soft: int = 0,
    most: int | None = None,
    kind: str = "llava",
    **settings: Any,
) -> EncodedRow:
    task = sp.TextGeneration(template, max_new_tokens=2, **settings)
    return bind(backbone_of(kind), task, Room(most, soft, 0, None)).encode(row, answer=False)


def ids(text: str) -> tuple[int, ...]:
    return tuple(backbone_of().spec.tokenize(text))


def test_images_stand_anywhere_among_text_and_virtual_tokens() -> None:
    first, second = noise(0), noise(1)
    row = {"image": first, "other": second, "text": "cat"}
    found = encoded("{soft:1}{image} the {soft:1}{other:image}{text}{soft}", row, soft=3)
    one = backbone_of().reader(first).tokens
    assert found.context == (-1, *one, *ids(" the "), -2, *one, *ids("cat"), -3)
    assert found.pictures == (backbone_of().reader(first), backbone_of().reader(second))


def test_the_words_around_an_image_are_those_of_the_models_chat() -> None:
    found = encoded("{image}{text}", {"image": noise(0), "text": "cat"}, kind="qwen2_vl")
    tokens = backbone_of("qwen2_vl").tokenizer.convert_ids_to_tokens(list(found.context))
    assert tokens[0] == "<|vision_start|>"
    assert set(tokens[1:-2]) == {"<|image_pad|>"}
    assert tokens[-2] == "<|vision_end|>"


def test_only_text_is_cut() -> None:
    row = {"image": noise(0), "text": "cat dog cat dog cat dog"}
    found = encoded("{image}{text} the", row, most=10)
    assert found.context == (*backbone_of().reader(row["image"]).tokens, *ids("cat dog cat"), *ids(" the"))
    with pytest.raises(ValueError, match="without 'text' the row still takes 5"):
        encoded("{image}{text} the", row, most=6)
    with pytest.raises(ValueError, match="which is an image: name a field of text"):
        Template.parse("{photo:image}{text}", cut="photo")


def test_a_placeholder_in_the_text_of_a_row_is_text() -> None:
    image = backbone_of().reader.image_id
    found = encoded("{image}{text}", {"image": noise(0), "text": "a <image> here"})
    assert found.context.count(image) == backbone_of().reader(noise(0)).tokens.count(image)
    for settings, template in (({"control_tokens": "tokens"}, "{image}{text}"), ({}, "<image>{text}")):
        with pytest.raises(ValueError, match=r"a text holds '<image>'.*write \{image\} in the template"):
            encoded(template, {"image": noise(0), "text": "a <image> here"}, **settings)


def test_missing_and_superfluous_images_are_errors_that_name_the_column() -> None:
    with pytest.raises(ValueError, match=r"columns are .*'image' is needed"):
        encoded("{image}{text}", {"text": "cat"})
    with pytest.raises(ValueError, match=r"column 'photo' holds 2 images, and \{image\} is the place of one"):
        encoded("{image}{text}", {"photo": [noise(0), noise(1)], "text": "cat"}, columns={"image": "photo"})
    with pytest.raises(ValueError, match="column 'image': an image is a path"):
        encoded("{image}{text}", {"image": 3, "text": "cat"})
    with pytest.raises(FileNotFoundError, match=r"column 'image': there is no image file cat\.png"):
        encoded("{image}{text}", {"image": "cat.png", "text": "cat"})
    with pytest.raises(
        ValueError, match=r"300 x 1 pixels, and the model's Qwen2VLProcessor does not read it"
    ):
        encoded("{image}{text}", {"image": noise(0, 1, 300), "text": "cat"}, kind="qwen2_vl")


def test_rows_of_text_alone_are_allowed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="softprompt"):
        assert encoded("{text}", {"text": "cat"}).context == ids("cat")
    assert "shows no image: every row is text alone" in caplog.text


def test_a_backbone_of_text_shows_no_images() -> None:
    task = sp.TextGeneration("{photo:image}{text}")
    with pytest.raises(
        ValueError, match=r"shows the images \['photo'\], and this is causal-lm, which reads no images"
    ):
        bind(tiny_backbone(), task, Room(None, 0, 0, None))
    words = bind(tiny_backbone(), sp.TextGeneration("{image}"), Room(None, 0, 0, None))
    assert words.encode({"image": "cat"}, answer=False).context == tuple(tiny_backbone().spec.tokenize("cat"))


def test_an_image_is_shown_to_people_as_a_word() -> None:
    task = sp.TextGeneration("{image} {text}", target=" {answer}")
    assert task.render({"image": noise(0), "text": "cat", "answer": "dog"}) == "[image] cat dog"
