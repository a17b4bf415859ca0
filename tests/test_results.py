"""What the pages of results show is what the commands print that they name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from studies import dual_encoder, foundation, image_tables, language_tables
from studies.bits_per_byte import bits_per_byte
from studies.runs import Study
from tests.tiny.task import tiny_backbone

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def page(name: str) -> list[str]:
    return table_lines((RESULTS / name).read_text(encoding="utf-8"))


@pytest.mark.real
def test_the_tables_of_images_are_those_of_the_command() -> None:
    assert page("images.md") == table_lines(image_tables.tables())


@pytest.mark.parametrize("name", image_tables.STUDIES)
def test_costs_of_images_are_those_of_the_runs(name: str) -> None:
    for file, text in image_tables.costs(name).items():
        assert (image_tables.FOUND / name / file).read_text(encoding="utf-8") == text


def test_the_scores_by_size_are_those_of_the_report() -> None:
    report = (RESULTS / "scale" / "scores.md").read_text(encoding="utf-8")
    assert page("scale.md")[: len(table_lines(report))] == table_lines(report)


def test_the_tables_of_dual_encoders_are_those_of_the_command() -> None:
    first = 2 + len(dual_encoder.STYLES)  # the lines of examples/emoji_clip.py's table
    found = table_lines(dual_encoder.tables(Study(RESULTS / "clip.json")))
    assert page("clip.md")[first:] == found


def test_the_tables_of_the_foundation_are_those_of_the_command() -> None:
    runs = json.loads((RESULTS / "foundation.json").read_text(encoding="utf-8"))
    found = [foundation.table(runs), foundation.grid_table(runs), foundation.wider_table(runs)]
    assert page("foundation.md") == table_lines("\n".join(found))


def test_the_tables_of_language_methods_are_those_of_the_command() -> None:
    runs = json.loads((RESULTS / "language-methods.json").read_text(encoding="utf-8"))
    found = [language_tables.decoder_table(), language_tables.tables(runs)]
    assert page("language-methods.md") == table_lines("\n".join(found))


def test_bits_a_byte_of_a_model_that_knows_nothing_are_those_of_its_vocabulary() -> None:
    backbone = tiny_backbone()
    for parameter in backbone.model.parameters():  # all logits 0: each token has log2(V) bits
        torch.nn.init.zeros_(parameter)
    texts = ["good film", "a bad story of a film"]
    ids = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"][1:] for text in texts]
    length = sum(len(backbone.tokenizer.decode(row).encode()) for row in ids)
    bits = sum(map(len, ids)) * math.log2(backbone.spec.vocabulary)
    assert bits_per_byte(backbone, texts) == pytest.approx(bits / length)
