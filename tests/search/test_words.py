"""Which words a search may use, and that prompts survive being written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softprompt import TextClassification, TextGeneration, ZeroShot, fit
from softprompt.binding import bind
from softprompt.search import draw_words, nearest_surviving, searchable_words, write_into, written_task
from softprompt.search.scoring import substituted
from softprompt.tasks.room import Room
from tests.search.problems import BEHIND, FRONT, PARTED, check_of, tiny_problem
from tests.tiny.language import SPECIAL_TOKENS
from tests.tiny.task import ROWS, TASK, tiny_backbone


def test_special_tokens_blanks_and_parts_of_characters_are_no_words() -> None:
    backbone = tiny_backbone()
    backbone.tokenizer.add_tokens(["<tool>"])
    allowed = set(searchable_words(backbone).ids.tolist())
    assert allowed
    for id_ in range(len(backbone.tokenizer)):
        text = str(backbone.tokenizer.decode([id_]))
        if id_ < len(SPECIAL_TOKENS) or not text.strip() or not text.isascii() or not text.isprintable():
            assert id_ not in allowed, text
    assert backbone.tokenizer.convert_tokens_to_ids("<tool>") not in allowed
    assert max(allowed) < backbone.spec.vocabulary  # the added token has no embedding


def test_label_words_are_left_out_however_they_are_written() -> None:
    backbone = tiny_backbone()
    texts = {
        backbone.tokenizer.decode([i]) for i in searchable_words(backbone, without=[" good"]).ids.tolist()
    }
    assert not {" good", "good"} & texts
    assert {" bad", "bad"} <= texts


def test_a_vocabulary_without_any_word_left_is_said() -> None:
    backbone = tiny_backbone()
    every = [str(backbone.tokenizer.decode([i])) for i in range(len(backbone.tokenizer))]
    with pytest.raises(ValueError, match="no word of tiny/llama is left to search among"):
        searchable_words(backbone, without=every)


@pytest.mark.parametrize("task", [FRONT, BEHIND, PARTED], ids=["front", "behind", "parted"])
@pytest.mark.parametrize("bos", [False, True])
def test_drawn_words_are_read_again_inside_their_template(task: TextClassification, bos: bool) -> None:
    problem = tiny_problem(task, length=4, bos=bos)
    backbone = problem.backbone
    words, survives = searchable_words(backbone), check_of(problem)
    for seed in range(5):
        ids = draw_words(words, 4, survives, torch.Generator().manual_seed(seed)).tolist()
        text = str(backbone.tokenizer.decode(ids))
        assert backbone.spec.tokenize(text) == ids
        written = written_task(task, ids, backbone.tokenizer)
        assert isinstance(written, TextClassification)
        assert "{soft" not in written.template
        encoder = bind(backbone, written, Room())
        for row, encoded in zip(problem.data, problem.rows, strict=True):
            assert encoder.encode(row).context == substituted(encoded.context, ids)


def test_words_that_merge_alone_or_with_their_neighbours_do_not_survive() -> None:
    problem = tiny_problem(FRONT, length=2)
    good, film, is_, th = (problem.backbone.spec.tokenize(w)[0] for w in (" good", " film", "is", "th"))
    survives = check_of(problem)
    assert survives([good, film])
    assert not survives([th, is_])  # "this" is one word
    assert not survives([good, 4000])  # no token at all
    for template, alive in (("{soft} is {text}", True), ("{soft}is {text}", False)):
        alone = check_of(tiny_problem(replace(FRONT, template=template), length=1))
        assert alone([th]) == alive


def test_a_text_directly_behind_the_slot_is_tried_with_the_rows_at_hand() -> None:
    """No word survives in front of every text: what follows it is part of the same word."""
    task = replace(TASK, template="{soft}{text} sentiment")
    problem = tiny_problem(task, length=1)
    survives = check_of(problem)
    backbone = problem.backbone
    for text in (" a", "th", "!"):
        ids = backbone.spec.tokenize(text)
        if len(ids) != 1:
            continue
        expected = all(
            backbone.spec.tokenize(f"{text}{row['text']} sentiment")
            == ids + backbone.spec.tokenize(f"{row['text']} sentiment")
            for row in problem.data
        )
        assert survives(ids) == expected


def test_the_nearest_words_are_taken_where_they_survive_and_else_the_nearest_that_do() -> None:
    problem = tiny_problem(FRONT, length=2)
    backbone = problem.backbone
    words, survives = searchable_words(backbone), check_of(problem)
    good, film = (backbone.spec.tokenize(w)[0] for w in (" good", " film"))
    near = backbone.spec.embed(torch.tensor([good, film])) * 3
    assert nearest_surviving(near, words, survives).tolist() == [good, film]
    th, is_ = (backbone.spec.tokenize(w)[0] for w in ("th", "is"))
    found = nearest_surviving(backbone.spec.embed(torch.tensor([th, is_])), words, survives).tolist()
    assert found != [th, is_]
    assert survives(found)
    with pytest.raises(ValueError, match="no prompt of 2 words was found"):
        nearest_surviving(near, words, lambda ids: False)
    with pytest.raises(ValueError, match=r"as in '\{soft\} \{text\}'"):
        draw_words(words, 2, lambda ids: False, torch.Generator())


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{text} sentiment", " good film{text} sentiment"),
        ("{bos}Review: {text:cut}", "{bos} good filmReview: {text:cut}"),
        ("{soft} {text}", " good film {text}"),
        ("{soft:1} {text}{soft}", " good {text} film"),
        ("{{x}} {text}{soft}", "{{x}} {text} good film"),
    ],
)
def test_words_are_written_into_the_slots(template: str, written: str) -> None:
    tokenizer = tiny_backbone().tokenizer
    ids = tokenizer(" good film")["input_ids"]
    assert write_into(template, ids, tokenizer) == written


def test_braces_are_escaped_and_slots_of_another_length_refused() -> None:
    tokenizer = tiny_backbone().tokenizer
    ids = tokenizer(" {good}")["input_ids"]
    assert write_into("{soft}\n{text}", ids, tokenizer) == " {{good}}\n{text}"
    with pytest.raises(ValueError, match=r"take 2 words, the prompt has"):
        write_into("{soft:2} {text}", ids, tokenizer)


def test_a_generation_task_is_written_out_too() -> None:
    task = TextGeneration("{soft} {text} label", target=" {label}")
    backbone = tiny_backbone()
    written = written_task(task, backbone.spec.tokenize(" good film"), backbone.tokenizer)
    assert isinstance(written, TextGeneration)
    assert written.template == " good film {text} label"
    assert fit(backbone, written, ZeroShot(), ROWS, progress=False).predict(["dog"])
