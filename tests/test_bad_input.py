"""What people get wrong, one by one: the error says what was found and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import (
    CheckpointError,
    FewShot,
    ManualPrompt,
    PromptFileError,
    PromptTuning,
    Recipe,
    TextClassification,
    TextGeneration,
    TunedPrompt,
    fit,
    load,
    load_backbone,
)
from softprompt.prompts.prompt_tuning import VirtualTokens
from tests.tiny.architectures import tiny_model
from tests.tiny.language import POSITIONS, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone

METHOD = PromptTuning(length=3)
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 8, "progress": False}


def said(text: str) -> str:
    return f"(?s).*{re.escape(text)}"


def untrained(task: TextClassification = TASK, length: int = 3, **settings: Any) -> TunedPrompt:
    module = VirtualTokens(torch.randn(length, 48)).requires_grad_(False)
    return TunedPrompt(tiny_backbone(), task, PromptTuning(length=length), module, **settings)


# --- data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.csv", b"", "rows.csv is empty (0 bytes), expected rows with named columns: write it again"),
        ("rows.csv", b"text,label\n", "rows.csv has no rows under its header"),
        ("rows.csv", "text,label\nGefühl,pos\n".encode("latin-1"), "is not utf-8: byte 0xfc at position 14"),
        ("rows.csv", b"text,label\nfilm\n", "line 2: 1 cells under 2 columns ['text', 'label']"),
        ("rows.jsonl", b'{"text": "film"\n', "line 1: no valid JSON"),
        ("rows.txt", b"film\n", "suffix '.txt' is not known; known are .csv"),
    ],
    ids=["empty", "header-only", "not-utf-8", "ragged", "broken-json", "unknown-suffix"],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_that_holds_no_rows_is_said(
    tmp_path: Path, name: str, content: bytes, expected: str, as_text: bool
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    source = str(path) if as_text else path
    with pytest.raises(ValueError, match=said(expected)):
        fit(tiny_backbone(), TASK, METHOD, source, **SHORT)
    with pytest.raises(ValueError, match=said(expected)):
        untrained().evaluate(source)


def test_a_file_that_is_not_there_is_said_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nfilm,pos\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*trian.csv; did you mean 'train.csv'"):
        fit(tiny_backbone(), TASK, METHOD, str(tmp_path / "trian.csv"), **SHORT)


@pytest.mark.parametrize("rows", [[], ["film"], [("film", "pos")]], ids=["none", "strings", "tuples"])
def test_rows_that_are_no_rows_are_said(rows: Any) -> None:
    with pytest.raises(
        (ValueError, TypeError), match=r"no rows in the list|expected a dictionary from column"
    ):
        fit(tiny_backbone(), TASK, METHOD, rows, **SHORT)


def test_no_validation_rows_are_an_error_and_not_a_run_without_validation() -> None:
    with pytest.raises(ValueError, match="no rows in the list"):
        fit(tiny_backbone(), TASK, METHOD, ROWS, [], **SHORT)


@pytest.mark.parametrize("place", ["train", "validation"])
def test_a_missing_column_is_said_with_those_there_are(place: str) -> None:
    rows = [{"sentence": "film", "label": "pos"}]
    given = (rows, None) if place == "train" else (ROWS, rows)
    with pytest.raises(
        ValueError, match=said("columns are ['sentence', 'label'], 'text' is needed: pass columns=")
    ):
        fit(tiny_backbone(), TASK, METHOD, *given, **SHORT)
    with pytest.raises(ValueError, match=said("'text' is needed")):
        untrained().predict(rows)


def test_a_missing_label_column_is_said() -> None:
    with pytest.raises(ValueError, match=said("columns are ['text'], 'label' is needed")):
        fit(tiny_backbone(), TASK, METHOD, [{"text": "film"}], **SHORT)
    assert untrained().predict([{"text": "film"}])  # to predict, none is needed


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_value_is_said_with_its_row(value: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'text' is (None|nan) in row .*; fill or drop such rows"):
        fit(tiny_backbone(), TASK, METHOD, [*ROWS, {"text": value, "label": "pos"}], **SHORT)


def test_an_unknown_label_is_said_with_the_known_ones_and_the_remedy() -> None:
    rows = [*ROWS, {"text": "film", "label": 1}]
    with pytest.raises(ValueError, match=said("label '1' is not among the labels ['neg', 'pos']")):
        fit(tiny_backbone(), TASK, METHOD, rows, **SHORT)
    with pytest.raises(ValueError, match="label_values="):
        untrained().evaluate(rows)


# --- task and text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            {"neg": " bad", "pos": " bad"},
            "label word ' bad' stands for 'neg' and for 'pos'; give each its own",
        ),
        ({"neg": " bad"}, "labels are ['neg']: two or more are needed"),
        ({"neg": " bad", "pos": " "}, "each label needs words that are not empty"),
    ],
)
def test_label_words_that_cannot_work_are_said(labels: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=said(expected)):
        TextClassification("{text}", labels=labels)


@pytest.mark.parametrize("method", [METHOD, PromptTuning(length=3, init="uniform")])
@pytest.mark.parametrize(
    "task",
    [
        TextClassification("{text}", labels={"neg": " bad", "pos": " good"}),
        TextGeneration("{text}", target=" good {label}"),
    ],
)
def test_words_that_the_embedding_table_has_no_row_for_are_said(task: Any, method: PromptTuning) -> None:
    """As with the tokenizer of another model. On a GPU such an id would end the process."""
    backbone = load_backbone(tiny_model("llama", dtype=torch.float32), tokenizer=tiny_tokenizer())
    rows = [{"text": "z", "label": "pos"}, {"text": "q", "label": "neg"}]
    with pytest.raises(ValueError, match=r"the token .* has 261 rows: take the model's own tokenizer"):
        fit(backbone, task, method, rows, **SHORT)


def test_a_label_of_bytes_is_the_text_that_they_spell() -> None:
    rows = [{"text": row["text"], "label": row["label"].encode()} for row in ROWS]
    assert untrained().evaluate(rows)["rows"] == len(ROWS)


def test_an_empty_text_is_a_text() -> None:
    tuned = untrained()
    [alone] = tuned.predict([""])
    assert sum(alone.probabilities.values()) == pytest.approx(1)
    assert tuned.predict(["film", "", "dog"])[1].probabilities == pytest.approx(
        alone.probabilities, abs=1e-10
    )
    trained = fit(tiny_backbone(), TASK, METHOD, [*ROWS, {"text": "", "label": "neg"}], **SHORT)
    assert trained.history[-1]["gradient_norm"] > 0


def test_no_token_but_the_prompt_is_a_text() -> None:
    task = TextClassification("{text}", labels=TASK.labels)
    [empty] = untrained(task).predict([""])
    assert sum(empty.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("max_tokens", [None, 40])
def test_a_text_longer_than_the_context_is_cut_and_its_answer_is_whole(max_tokens: int | None) -> None:
    tuned = untrained(max_tokens=max_tokens)
    limit = max_tokens or POSITIONS
    words = " ".join(["film"] * 500)
    row = tuned.encoder.encode({"text": words, "label": "pos"})
    longest = max(map(len, row.targets))
    assert len(row.context) + longest == limit
    assert row.context[:3] == (-1, -2, -3)
    ending = tuple(tuned.backbone.spec.tokenize(" sentiment"))
    assert row.context[-len(ending) :] == ending
    assert row.targets == tuned.encoder.encode(ROWS[0]).targets
    fitting = " ".join(["film"] * (limit - longest - 3 - len(ending)))
    assert tuned.predict([words]) == tuned.predict([fitting])
    rows = [{"text": words, "label": "pos"}, *ROWS]
    trained = fit(tiny_backbone(), TASK, METHOD, rows, max_tokens=max_tokens, **SHORT)
    assert trained.history[-1]["gradient_norm"] > 0


def test_a_long_answer_of_a_generation_task_says_what_does_not_fit() -> None:
    task = TextGeneration("{text} sentiment", target=" {label}")
    rows = [{"text": "film", "label": " ".join(["good"] * 200)}]
    with pytest.raises(ValueError, match=r"max_tokens=128"):
        fit(tiny_backbone(), task, METHOD, rows, **SHORT)


@pytest.mark.parametrize("length", [POSITIONS - 1, POSITIONS, 5 * POSITIONS])
def test_a_prompt_longer_than_the_context_is_said(length: int) -> None:
    with pytest.raises(
        ValueError, match=rf"({length} virtual tokens leave no room for text|fewer virtual tokens)"
    ):
        fit(tiny_backbone(), TASK, PromptTuning(length=length, init="uniform"), ROWS, **SHORT)


def test_max_tokens_below_the_prompt_is_said_with_both_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"3 virtual tokens leave no room .* 2 tokens \(max_tokens=2, .* is 128\)"
    ):
        fit(tiny_backbone(), TASK, METHOD, ROWS, max_tokens=2, **SHORT)


@pytest.mark.parametrize(
    "method", [ManualPrompt(text="film " * 200), FewShot(shots=16, separator=" film" * 20)]
)
def test_a_prompt_of_words_longer_than_the_context_is_said(method: Any) -> None:
    with pytest.raises(ValueError, match=r"virtual tokens leave no room for text: a row may have 128 tokens"):
        fit(tiny_backbone(), TASK, method, ROWS, progress=False)


def test_numbered_slots_that_do_not_fit_the_prompt_are_said() -> None:
    task = TextClassification("{soft:5}{text}", labels=TASK.labels)
    with pytest.raises(ValueError, match=r"take 5 virtual tokens, the method brings 3; make them equal"):
        fit(tiny_backbone(), task, METHOD, ROWS, **SHORT)


# --- settings -----------------------------------------------------------------------------------------------


def test_a_recipe_and_its_fields_cannot_both_be_given() -> None:
    with pytest.raises(
        ValueError, match=said("give either recipe or its fields, not both: ['batch_size', 'steps']")
    ):
        fit(tiny_backbone(), TASK, METHOD, ROWS, recipe=Recipe(), steps=3, batch_size=2)


def test_a_misspelt_setting_is_said_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"learning_rat.*did you mean 'learning_rate'"):
        fit(tiny_backbone(), TASK, METHOD, ROWS, learning_rat=0.1)
    with pytest.raises(ValueError, match=r"momentum.*known are \[.*'steps'"):
        fit(tiny_backbone(), TASK, METHOD, ROWS, momentum=3)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"batch_size": -1}, {"learning_rate": 0}, {"learning_rate": float("nan")}]
)
def test_settings_out_of_range_are_said_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        fit(tiny_backbone(), TASK, METHOD, ROWS, **settings)


# --- disks --------------------------------------------------------------------------------------------------


def fails(code: int) -> Any:
    def replacement(*given: Any, **settings: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return replacement


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EACCES, PermissionError), (errno.EROFS, OSError), (errno.ENOSPC, OSError)]
)
def test_a_prompt_that_cannot_be_saved_says_where_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[OSError]
) -> None:
    tuned = untrained()
    folder = tuned.save(tmp_path / "prompt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "fsync", fails(code))
    for place in (folder, tmp_path / "new"):
        with pytest.raises(
            kind, match=rf"could not write .*{place.name}: {os.strerror(code)}.*Free the disk"
        ):
            tuned.save(place, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert load(folder, tuned.backbone).predict(["film"]) == tuned.predict(["film"])


@pytest.mark.filterwarnings("ignore:every validation row was given:softprompt.SoftpromptWarning")
def test_a_full_disk_in_training_is_reported_and_the_run_resumes_from_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SHORT, "steps": 4, "evaluate_every": 2}
    undisturbed = fit(tiny_backbone(), TASK, METHOD, ROWS, ROWS, **settings)
    calls: list[int] = []
    whole = os.fsync

    def full_after_the_first_checkpoint(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # the file and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_the_first_checkpoint)
    with pytest.raises(
        CheckpointError, match=r"cannot write a checkpoint to .*: No space left.* start again to resume"
    ):
        fit(tiny_backbone(), TASK, METHOD, ROWS, ROWS, folder=tmp_path, **settings)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    resumed = fit(tiny_backbone(), TASK, METHOD, ROWS, ROWS, folder=tmp_path, **settings)
    assert torch.equal(resumed.module.state_dict()["tokens"], undisturbed.module.state_dict()["tokens"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(PermissionError, match=r"could not write .*locked"):
        untrained().save(tmp_path / "locked" / "prompt")


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is a file, where a folder is to be written"):
        untrained().save(tmp_path / "prompt", overwrite=True)
    with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
        fit(tiny_backbone(), TASK, METHOD, ROWS, folder=tmp_path / "prompt", **SHORT)
    assert (tmp_path / "prompt").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_holds_no_prompt_is_said(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="does not exist; expected the folder of a saved prompt"):
        load(tmp_path / "nowhere", tiny_backbone())
    with pytest.raises(PromptFileError, match=r"has no prompt.json"):
        load(tmp_path, tiny_backbone())


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_said_with_what_differs(tmp_path: Path) -> None:
    fit(tiny_backbone(), TASK, METHOD, ROWS, folder=tmp_path, **SHORT)
    with pytest.raises(CheckpointError, match=r"of another run: .*steps is 2 in it and 3 now.*resume=False"):
        fit(tiny_backbone(), TASK, METHOD, ROWS, folder=tmp_path, **{**SHORT, "steps": 3})
    with pytest.raises(CheckpointError, match=r"of another run"):
        fit(tiny_backbone(), TASK, PromptTuning(length=4), ROWS, folder=tmp_path, **SHORT)
    uniform = PromptTuning(length=METHOD.length, init="uniform")
    with pytest.raises(CheckpointError, match=r"of another run: .*method.init is auto in it and uniform now"):
        fit(tiny_backbone(), TASK, uniform, ROWS, folder=tmp_path, **SHORT)
    with pytest.raises(CheckpointError, match=r"of another run: .*task.loss is labels in it and lm now"):
        fit(tiny_backbone(), replace(TASK, loss="lm"), METHOD, ROWS, folder=tmp_path, **SHORT)
    with pytest.raises(CheckpointError, match=r"of another run: .*validation"):
        fit(tiny_backbone(), TASK, METHOD, ROWS, ROWS, folder=tmp_path, **SHORT)
    with pytest.raises(CheckpointError, match=r"of another run: .*backbone.table_digest is"):
        fit(tiny_backbone(seed=1), TASK, METHOD, ROWS, folder=tmp_path, **SHORT, learning_rate=0.01)
    fit(tiny_backbone(), TASK, METHOD, ROWS, folder=tmp_path, resume=False, **{**SHORT, "steps": 3})


def test_a_folder_with_a_null_character_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    place = f"{tmp_path}/a\0b"
    tuned = fit(tiny_backbone(), TASK, METHOD, ROWS, **SHORT)
    for write in (
        lambda: fit(tiny_backbone(), TASK, METHOD, ROWS, folder=place, **SHORT),
        lambda: tuned.save(place),
        lambda: tuned.export_peft(place),
        lambda: load(place, tiny_backbone()),
    ):
        with pytest.raises(ValueError, match="null character in its name: give another name"):
            write()
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_is_said_with_its_own_remedy(tmp_path: Path) -> None:
    tuned = fit(tiny_backbone(), TASK, METHOD, ROWS, **SHORT)
    with pytest.raises(OSError, match="Choose a shorter name"):
        tuned.save(tmp_path / ("n" * 300))
