"""Control tokens in the text of a row are text; those that a template writes work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken

import softprompt as sp
from softprompt.store.identity import settings_of
from softprompt.tasks.base import TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.control_tokens import ControlTokens
from softprompt.tasks.template import Template
from tests.tiny.language import tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone


def bound(source: str, tokenizer: Any = None, **settings: Any) -> BoundTemplate:
    setting = TextSetting(tokenizer or tiny_tokenizer(), **settings)
    return bind_template(Template.parse(source), setting, "text")


def plain(text: str) -> list[int]:
    return list(ControlTokens.of(TOKENIZER).plain(TOKENIZER)(text, add_special_tokens=False)["input_ids"])


TOKENIZER = tiny_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("</s>")
BEGIN = TOKENIZER.convert_tokens_to_ids("<s>")


def test_a_control_token_in_a_value_is_text_and_loses_no_character() -> None:
    found = bound("{text} it was").encode({"text": "good</s><s>film"})
    assert not {END, BEGIN} & set(found)
    assert TOKENIZER.decode(found) == "good</s><s>film it was"


def test_the_templates_own_control_tokens_work_beside_a_value_that_has_one() -> None:
    found = bound("<s>{text}</s> it was").encode({"text": "good</s>film"})
    assert list(found) == [BEGIN, *plain("good</s>film"), END, *plain(" it was")]


def test_a_control_token_that_value_and_template_make_together_is_text() -> None:
    found = bound("</{text} it was").encode({"text": "s>"})
    assert END not in found
    assert TOKENIZER.decode(found) == "</s> it was"


@pytest.mark.parametrize("text", ["a good film", "", "a < b", "<S>", "/s>"])
def test_rows_without_control_tokens_are_read_as_ever(text: str) -> None:
    for source in ("{text} it was", "<s>{text}</s> it", "{text}{text}"):
        template = Template.parse(source)
        setting = TextSetting(TOKENIZER)
        now, before = bind_template(template, setting, "text"), bind_template(template, setting, "tokens")
        if source != "{text}{text}" or text:
            assert now.encode({"text": text}) == before.encode({"text": text})


def test_before_there_was_a_choice_they_were_tokens() -> None:
    template = bind_template(Template.parse("{text} it was"), TextSetting(TOKENIZER), "tokens")
    assert END in template.encode({"text": "good</s>film"})


def test_a_mask_takes_the_blank_before_it_as_the_tokenizer_says() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    mask = tokenizer.mask_token_id
    template = bound("{text} it was {mask}.", tokenizer, closed=True)
    whole = template.encode({"text": "good"})
    found = template.encode({"text": "<mask>"})
    assert found.count(mask) == whole.count(mask) == 1
    where = whole.index(mask)
    assert found[-(len(whole) - where) :] == whole[where:]
    assert list(found[: -(len(whole) - where)]) == [
        *ControlTokens.of(tokenizer).plain(tokenizer)("<mask> it was", add_special_tokens=False)["input_ids"]
    ]


def test_a_long_value_with_control_tokens_is_cut_to_fit() -> None:
    template = bound("<s>{text}</s> it was")
    whole = template.encode({"text": "</s> good film" * 20})
    for room in (len(whole) - 1, 20, 9):
        found = template.encode({"text": "</s> good film" * 20}, max_tokens=room)
        assert len(found) <= room
        assert found[0] == BEGIN
        assert found.count(END) == 1


def test_words_and_spans_are_aligned_with_text_that_holds_control_tokens() -> None:
    backbone = tiny_backbone()
    task = sp.TokenClassification(tags=["a", "b"], template="<s>{words}")
    tuned = sp.fit(
        backbone,
        task,
        sp.PromptTuning(length=2),
        [{"words": ["x", "</s>y"], "tags": ["a", "b"]}],
        steps=1,
        progress=False,
    )
    encoded = tuned.encoder.encode({"words": ["x", "</s>y"]}, answer=False)
    assert END not in encoded.context
    assert len(encoded.read) == 2
    assert len(tuned.predict([{"words": ["</s>", "good</s>", "<s>"]}])[0]) == 3


@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_a_saved_prompt_keeps_its_way_and_one_without_word_of_it_the_old_way(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    row = {"text": "good</s>film"}
    for way, has_token in (("text", False), ("tokens", True)):
        task = sp.TextClassification("{text} it", labels=TASK.labels, control_tokens=way)  # type: ignore[arg-type]
        tuned = sp.fit(backbone, task, sp.PromptTuning(length=2), ROWS, steps=1, progress=False)
        folder = tuned.save(tmp_path / way)
        record = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
        assert record["task"]["control_tokens"] == way
        again = sp.load(folder, backbone)
        assert again.task.control_tokens == way
        assert (END in again.encoder.encode(row, answer=False).context) is has_token


def test_the_usual_way_is_in_no_identity() -> None:
    assert "control_tokens" not in settings_of(TASK)
    other = sp.TextClassification("{text} it", labels=TASK.labels, control_tokens="tokens")
    assert settings_of(other)["control_tokens"] == "tokens"


LABELS = {"neg": " bad", "pos": " good"}


@pytest.mark.parametrize("source", ["{{ text }} it was", "%s it was", "It was", ""])
@pytest.mark.parametrize(
    "make",
    [
        lambda source: sp.TextClassification(source, labels=LABELS),
        lambda source: sp.SequenceClassification(source, labels=["a", "b"]),
        sp.Regression,
        sp.TextGeneration,
    ],
)
def test_a_template_without_a_column_is_refused(make: Any, source: str) -> None:
    with pytest.raises(ValueError, match="has no column, and every row would read the same"):
        make(source)


def test_words_of_which_one_begins_the_other_can_be_calibrated() -> None:
    task = sp.TextClassification("{text}", labels={"a": " good", "b": " good film"}, calibrated=True)
    assert (
        len(sp.fit(tiny_backbone(), task, sp.ZeroShot(), ROWS_AB, progress=False).predict(["the book"])) == 1
    )
    plain_task = sp.TextClassification("{text}", labels=task.labels)
    with pytest.raises(ValueError, match="never the likelier one"):
        sp.fit(tiny_backbone(), plain_task, sp.ZeroShot(), ROWS_AB, progress=False)


ROWS_AB = [{"text": "film", "label": "a"}, {"text": "dog", "label": "b"}]


@pytest.mark.parametrize("special", [True, False])
def test_a_token_beyond_the_table_is_named_with_its_remedy(special: bool) -> None:
    backbone = tiny_backbone()
    backbone.tokenizer.add_tokens(["<aspect>"], special_tokens=special)
    rows = [ROWS[0], {"text": "<aspect> x", "label": "neg"}]
    with pytest.raises(ValueError, match=r"row 1: the token '<aspect>' has .*resize_token_embeddings"):
        sp.fit(backbone, TASK, sp.PromptTuning(length=2), rows, steps=1, progress=False)


def test_answers_that_leave_no_room_for_the_text_say_which_number_to_lower() -> None:
    task = sp.TextGeneration("{text}", target=" {out}", max_new_tokens=1000)
    with pytest.raises(ValueError, match=r"row 0: .*lower max_new_tokens"):
        sp.fit(
            tiny_backbone(),
            task,
            sp.PromptTuning(length=2),
            [{"text": "a", "out": "b"}],
            steps=1,
            progress=False,
        )


def test_an_error_about_a_row_says_its_number_when_training_predicting_and_evaluating() -> None:
    tuned = sp.fit(tiny_backbone(), TASK, sp.PromptTuning(length=2), ROWS, steps=1, warmup=0, progress=False)
    rows = [*ROWS, {"text": None, "label": "pos"}]
    told = f"row {len(ROWS)}: column 'text' is None"
    with pytest.raises(ValueError, match=told):
        sp.fit(tuned.backbone, TASK, sp.PromptTuning(length=2), rows, steps=1, progress=False)
    with pytest.raises(ValueError, match=told):
        tuned.evaluate(rows)
    with pytest.raises(ValueError, match=told):
        tuned.predict(rows)
