"""Cloze templates: {mask} as tokens, label words in it, learning by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt import PromptTuning, TextClassification, TextGeneration, ZeroShot, fit, load
from softprompt.backbones.masked.backbone import MaskedBackbone
from softprompt.mixed import MixedPrompts
from softprompt.tasks import TextSetting
from softprompt.tasks.bound_template import bind_template
from softprompt.tasks.template import Literal, Mask, Template, parse_template
from tests.naive import masked as naive
from tests.tiny.encoders import CLS, SEP, Encoder, encoder_backbone, encoder_tokenizer
from tests.tiny.language import tiny_tokenizer
from tests.tiny.task import ROWS, tiny_backbone

MASK = int(encoder_tokenizer().mask_token_id)
TASK = TextClassification("{text} sentiment {mask}.", labels={"neg": " bad", "pos": " good"})


def ids(text: str) -> list[int]:
    return list(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


def encode(template: str, P: int = 0, **options: Any) -> list[int]:
    setting = TextSetting(encoder_tokenizer(), P, closed=True)
    return list(
        bind_template(Template.parse(template), setting).encode({"text": "the film", "b": "a dog"}, **options)
    )


def test_a_mask_is_parsed_and_counted() -> None:
    assert parse_template("is {mask}.") == (Literal("is "), Mask(), Literal("."))
    assert Template.parse("{mask}{text}{mask}").masks == 2
    assert Template.parse("{text}").masks == 0
    with pytest.raises(ValueError, match="unknown mark 'cut'"):
        parse_template("{mask:cut}")


@pytest.mark.parametrize(
    ("template", "P", "expected"),
    [
        # The tokenizer drops the space before its mask, as RoBERTa's does: so it is in running text.
        ("{text} is {mask}.", 0, [CLS, *ids("the film is"), MASK, *ids("."), SEP]),
        ("{text} is {mask} {mask}", 2, [CLS, -1, -2, *ids("the film is"), MASK, MASK, SEP]),
        ("{soft:1}{text}{soft:1}{mask}{soft:1}", 3, [CLS, -1, *ids("the film"), -2, MASK, -3, SEP]),
        ("{soft:2} {mask}{text}", 2, [CLS, -1, -2, MASK, *ids("the film"), SEP]),
        ("{text}</s>{mask}{b}", 0, [CLS, *ids("the film"), SEP, MASK, *ids("a dog"), SEP]),
    ],
)
def test_masks_stand_where_the_template_says(template: str, P: int, expected: list[int]) -> None:
    assert encode(template, P) == expected


def test_a_cut_row_leaves_room_for_a_mask_that_is_widened() -> None:
    whole = encode("{text} is {mask}.")
    assert encode("{text} is {mask}.", max_tokens=len(whole), reserved=1) == whole
    assert len(encode("{text} is {mask}.", max_tokens=len(whole), reserved=2)) == len(whole) - 1
    two = encode("{text} is {mask}{mask}.")
    assert encode("{text} is {mask}{mask}.", max_tokens=len(two), reserved=2) == two


def test_a_mask_that_nobody_fills_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"a causal language model predicts what follows a text.*drop \{mask\}"
    ):
        bind_template(Template.parse("{text} {mask}"), TextSetting(encoder_tokenizer()))
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        bind_template(Template.parse("{text} {mask}"), TextSetting(tiny_tokenizer(), closed=True))
    with pytest.raises(ValueError, match="a causal language model"):
        fit(tiny_backbone(), TASK, PromptTuning(length=2), ROWS, steps=1, progress=False)


def test_a_cloze_task_without_a_mask_is_told_to_write_one() -> None:
    task = TextClassification("{text} sentiment", labels=dict(TASK.labels))
    with pytest.raises(ValueError, match=r"no mask.*write \{mask\} in the template"):
        fit(encoder_backbone(), task, PromptTuning(length=2), ROWS, steps=1, progress=False)


def test_a_word_that_begins_another_is_no_error_where_masks_stand() -> None:
    labels = {"a": " good", "b": " good film"}
    encoder = TextClassification("{text} {mask}", labels=labels).bind(
        TextSetting(encoder_tokenizer(), closed=True)
    )
    assert [len(word) for word in encoder.verbalizer.words] == [1, 2]
    with pytest.raises(ValueError, match="begins with the tokens of"):
        TextClassification("{text}", labels=labels).bind(TextSetting(encoder_tokenizer(), closed=True))


def test_the_row_as_text_has_its_word_in_the_gap() -> None:
    assert TASK.render({"text": "a film", "label": "pos"}) == "a film sentiment good."
    assert TASK.render({"text": "a film"}, answer=False) == "a film sentiment {mask}."


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_probabilities_are_the_masks_own(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    task = TextClassification(TASK.template, labels={"neg": [" bad", " very bad"], "pos": " good"})
    tuned = fit(backbone, task, ZeroShot(), ROWS, progress=False)
    found = tuned.predict(["the film"])[0].probabilities
    row = tuned.encoder.encode({"text": "the film"}, answer=False)
    types = [0] * len(row.context) if architecture == "bert" else None
    bad, very_bad, good = (
        naive.target_log_likelihood(backbone.model, row, word, MASK, torch.zeros(0), types=types).sum().exp()
        for word in row.targets
    )
    assert_close(torch.tensor(found["pos"]).double(), good / (bad + very_bad + good), rtol=1e-6, atol=1e-6)


def test_calibration_leaves_out_the_content_free_mask() -> None:
    task = TextClassification(TASK.template, labels=dict(TASK.labels), calibrated=True)
    backbone = MaskedBackbone(encoder_backbone().model, encoder_tokenizer(mask="[MASK]"))  # as BERT writes it
    tuned = fit(backbone, task, ZeroShot(), ROWS[:2], progress=False)
    assert len(tuned.predict(["the film"])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_a_prompt_learns_a_cloze_task_and_the_model_stays_bit_identical(
    architecture: Encoder, tmp_path: Path
) -> None:
    backbone = encoder_backbone(architecture, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    method = PromptTuning(length=4)
    tuned = fit(
        backbone, TASK, method, ROWS, ROWS, steps=100, batch_size=8, learning_rate=0.1, progress=False
    )
    assert tuned.metrics["validation"]["accuracy"] == 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    again = load(tuned.save(tmp_path / "p"), backbone=backbone)
    texts = [row["text"] for row in ROWS]
    assert again.predict(texts) == tuned.predict(texts)


@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_rows_of_several_cloze_prompts_share_a_batch() -> None:
    backbone = encoder_backbone()
    other = TextClassification("{mask}: {text}", labels={"no": " no", "yes": " yes indeed"})
    rows = [{"text": "a film", "label": "yes"}, {"text": "a dog", "label": "no"}]
    first = fit(backbone, TASK, PromptTuning(length=4), ROWS, steps=2, progress=False)
    second = fit(backbone, other, PromptTuning(length=1), rows, steps=2, progress=False)
    texts = ["film now", "the dog", "a cat and a dog", "no"]
    found = MixedPrompts([first, second]).predict(texts, [0, 1, 1, 0])
    alone = [
        tuned.predict([text])[0] for tuned, text in zip((first, second, second, first), texts, strict=True)
    ]
    for ours, theirs in zip(found, alone, strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)


def test_free_text_from_an_encoder_is_an_error() -> None:
    task = TextGeneration("{text} {mask}", target=" {label}", end="newline")
    tuned = fit(encoder_backbone(), task, ZeroShot(), ROWS[:1], progress=False)
    with pytest.raises(ValueError, match="cannot continue it"):
        tuned.predict(["the film"])
