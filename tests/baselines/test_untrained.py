"""Baselines that nobody trains: a prompt of words equals the words written into the text."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import (
    FewShot,
    ManualPrompt,
    TextClassification,
    TextGeneration,
    TunedPrompt,
    ZeroShot,
    fit,
    load,
)
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.baselines.untrained import _in_turn
from softprompt.binding import bind
from softprompt.outputs import EncodedRow
from softprompt.prompts.base import BuildContext
from softprompt.tasks.room import Room
from tests.tiny.language import ARCHITECTURES, Architecture
from tests.tiny.task import ROWS, TASK, tiny_backbone

TEXTS = [row["text"] for row in ROWS[:6]]


def probabilities(tuned: TunedPrompt) -> Tensor:
    """(B, K)"""
    found = tuned.predict(TEXTS)
    return torch.tensor([list(p.probabilities.values()) for p in found], dtype=torch.float64)


def plain(backbone: CausalBackbone, written: list[str], words: tuple[str, ...] = (" bad", " good")) -> Tensor:
    """Label probabilities of texts, special tokens included, by a plain pass for each word: (B, K)."""
    rows = []
    for text in written:
        context = backbone.tokenizer(text)["input_ids"]
        scores = []
        for word in words:
            target = backbone.tokenizer(word, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = backbone.model(torch.tensor([context + target])).logits[0]
            log_probabilities = logits[len(context) - 1 : -1].log_softmax(dim=-1)
            scores.append(log_probabilities[range(len(target)), target].sum())
        rows.append(torch.stack(scores).softmax(dim=0))
    return torch.stack(rows)


def untrained(backbone: CausalBackbone, method: Any, task: Any = TASK, **settings: Any) -> TunedPrompt:
    return fit(backbone, task, method, ROWS, progress=False, **settings)


def context_of(
    backbone: CausalBackbone, rows: list[dict[str, Any]], task: Any = TASK, seed: int = 0
) -> BuildContext:
    """What `fit` gives a method, with the ids themselves where the embeddings would be."""
    from dataclasses import replace

    encoder = bind(backbone, task, Room())
    spec = replace(backbone.spec, embed=lambda ids: ids[:, None].float())
    return BuildContext(
        spec=spec,
        labels=task.label_words,
        rows=lambda: [encoder.encode(row) for row in rows],
        generator=torch.Generator().manual_seed(seed),
    )


def shown(backbone: CausalBackbone, method: FewShot, rows: list[dict[str, Any]], **settings: Any) -> str:
    """The demonstrations as text."""
    module = method.build(context_of(backbone, rows, **settings))
    return backbone.tokenizer.decode(module.state_dict()["tokens"][:, 0].long())


@pytest.mark.slow
@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zero_shot_is_the_model_without_any_prompt(architecture: Architecture, bos: bool) -> None:
    backbone = tiny_backbone(architecture, bos=bos)
    tuned = untrained(backbone, ZeroShot())
    expected = plain(backbone, [f"{text} sentiment" for text in TEXTS])
    assert_close(probabilities(tuned), expected, rtol=0, atol=1e-6)
    assert tuned.history == []
    assert tuned.recipe["trained_parameters"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_a_manual_prompt_is_its_text_written_into_the_template(architecture: Architecture, bos: bool) -> None:
    backbone = tiny_backbone(architecture, bos=bos)
    text = "is this a good film or a bad film?\n"  # a line break, before which every tokenisation ends
    written = [f"{text}{row} sentiment" for row in TEXTS]
    pieces = backbone.spec.tokenize
    assert all(pieces(text) + pieces(w.removeprefix(text)) == pieces(w) for w in written)
    expected = plain(backbone, written)
    assert_close(probabilities(untrained(backbone, ManualPrompt(text=text))), expected, rtol=0, atol=1e-6)
    task = TextClassification(text + TASK.template, labels=TASK.labels)
    assert_close(probabilities(untrained(backbone, ZeroShot(), task)), expected, rtol=0, atol=1e-6)


def test_a_manual_prompt_may_stand_anywhere() -> None:
    backbone = tiny_backbone()
    task = TextClassification("{text}{soft} sentiment", labels=TASK.labels)
    found = probabilities(untrained(backbone, ManualPrompt(text="\nquestion"), task))
    assert_close(found, plain(backbone, [f"{t}\nquestion sentiment" for t in TEXTS]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_few_shot_is_the_demonstrations_written_before_the_text(
    architecture: Architecture, bos: bool
) -> None:
    backbone = tiny_backbone(architecture, bos=bos)
    method = FewShot(shots=3, separator="\n")
    demonstrations = shown(tiny_backbone(architecture), method, ROWS)
    assert len(demonstrations.splitlines()) == 3
    rendered = {TASK.render(row) for row in ROWS}
    assert all(line in rendered for line in demonstrations.splitlines())
    expected = plain(backbone, [f"{demonstrations}{text} sentiment" for text in TEXTS])
    assert_close(probabilities(untrained(backbone, method)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shots", range(1, 9))
def test_few_shot_shows_each_label_as_evenly_as_can_be(shots: int) -> None:
    labels = {"neg": " bad", "pos": " good", "neutral": " fine"}
    task = TextClassification("{text} sentiment", labels=labels)
    available = {"neg": 12, "pos": 4, "neutral": 2}
    rows = [{"text": f"film {n}", "label": name} for name in available for n in range(available[name])]
    text = shown(tiny_backbone(), FewShot(shots=shots, separator="\n"), rows, task=task)
    counts = collections.Counter(line.rpartition(" ")[2] for line in text.splitlines())
    assert sum(counts.values()) == shots
    enough = [counts["bad"], counts["good"], *([counts["fine"]] if shots <= 6 else [])]
    assert max(enough) - min(enough) <= 1
    assert len(set(text.splitlines())) == shots  # none twice


def test_the_seed_of_the_run_draws_the_demonstrations() -> None:
    backbone, method = tiny_backbone(), FewShot(shots=4)
    assert shown(backbone, method, ROWS, seed=1) == shown(backbone, method, ROWS, seed=1)
    assert len({shown(backbone, method, ROWS, seed=seed) for seed in range(5)}) > 1
    one, again = (untrained(backbone, method, seed=5).module.state_dict()["tokens"] for _ in range(2))
    assert torch.equal(one, again)


def test_drawing_demonstrations_looks_at_each_row_once() -> None:
    class Unprintable(EncodedRow):
        """It was once sorted by how all rows of its label read, again for each turn."""

        def __repr__(self) -> str:
            raise AssertionError("a row was written out")

    rows = [Unprintable((i,), ((1,), (2,), (3,)), gold=i % 3) for i in range(9)]
    drawn = _in_turn(rows, torch.Generator().manual_seed(0))
    assert [row.gold for row in drawn] == [0, 1, 2] * 3
    assert {row.context[0] for row in drawn} == set(range(9))


def test_few_shot_of_a_generation_task_shows_references() -> None:
    task = TextGeneration("question {q}\nanswer", target=" {a}")
    rows = [{"q": "film", "a": "good"}, {"q": "dog", "a": "bad"}]
    text = shown(tiny_backbone(), FewShot(shots=2, separator="\n\n"), rows, task=task)
    assert sorted(text.strip().split("\n\n")) == ["question dog\nanswer bad", "question film\nanswer good"]


def test_more_demonstrations_than_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="17 demonstrations need 17 training rows, and there are 16"):
        untrained(tiny_backbone(), FewShot(shots=17))


@pytest.mark.parametrize("method", [ZeroShot(), ManualPrompt(text="a film\n"), FewShot(shots=2)])
def test_a_saved_baseline_predicts_the_same(tmp_path: Path, method: Any) -> None:
    backbone = tiny_backbone()
    tuned = untrained(backbone, method)
    again = load(tuned.save(tmp_path / "prompt"), backbone)
    assert again.method == method
    assert again.predict(TEXTS) == tuned.predict(TEXTS)


def test_settings_of_baselines_are_checked() -> None:
    with pytest.raises(ValueError, match="text"):
        ManualPrompt(text="")
    with pytest.raises(ValueError, match="shots"):
        FewShot(shots=0)
