"""The tables on the pages of results are those that their commands print."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch

from docs.results.archive import clip, foundation, images, language_methods
from docs.tools.bits_per_byte import bits_per_byte
from tests.tiny.task import tiny_backbone

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def page(name: str) -> list[str]:
    return table_lines((RESULTS / name).read_text(encoding="utf-8"))


def test_the_tables_of_images_are_those_of_the_command() -> None:
    assert page("images.md") == table_lines(images.tables())


@pytest.mark.parametrize("study", images.CONDITIONS)
def test_costs_of_images_are_those_of_the_runs(study: str) -> None:
    for file, average in (("costs.md", statistics.fmean), ("costs-median.md", statistics.median)):
        assert (RESULTS / "images" / study / file).read_text(encoding="utf-8") == images.costs(study, average)


def test_the_scores_by_size_are_those_of_the_report() -> None:
    report = (RESULTS / "scale" / "scores.md").read_text(encoding="utf-8")
    assert page("scale.md")[: len(table_lines(report))] == table_lines(report)


def test_the_tables_of_dual_encoders_are_those_of_the_command() -> None:
    first = 2 + 3  # the lines of examples/emoji_clip.py's table
    assert page("clip.md")[first:] == table_lines(clip.tables())


def test_the_tables_of_the_foundation_are_those_of_the_command() -> None:
    assert page("foundation.md") == table_lines(foundation.tables())


def test_the_tables_of_language_methods_are_those_of_the_command() -> None:
    assert page("language-methods.md") == table_lines(language_methods.tables())


def test_bits_a_byte_of_a_model_that_knows_nothing_are_those_of_its_vocabulary() -> None:
    backbone = tiny_backbone()
    for parameter in backbone.model.parameters():  # all logits 0: each token has log2(V) bits
        torch.nn.init.zeros_(parameter)
    texts = ["good film", "a bad story of a film"]
    ids = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"][1:] for text in texts]
    length = sum(len(backbone.tokenizer.decode(row).encode()) for row in ids)
    bits = sum(map(len, ids)) * math.log2(backbone.spec.vocabulary)
    assert bits_per_byte(backbone, texts) == pytest.approx(bits / length)
