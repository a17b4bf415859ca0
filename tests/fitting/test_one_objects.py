"""Objects that are nearly what is expected: each error says what is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.data import load_rows
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone

METHOD = sp.PromptTuning(length=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (lambda b: (b.model, TASK, METHOD), r"sp\.load_backbone\(model, tokenizer=tokenizer\)"),
        (lambda b: ("some-model", TASK, METHOD), r"sp\.load_backbone\('some-model'\)"),
        (lambda b: (None, TASK, METHOD), "expected what sp.load_backbone returns"),
        (
            lambda b: (b, TASK, sp.PromptTuning),
            r"is the class PromptTuning, expected its settings: PromptTuning\(",
        ),
        (lambda b: (b, TASK, "prompt-tuning"), r"method is 'prompt-tuning', expected an object"),
        (lambda b: (b, sp.TextClassification, METHOD), r"task is the class TextClassification"),
        (lambda b: (b, {"template": "{text}"}, METHOD), "task is {'template'"),
        (lambda b: (b, METHOD, TASK), "task is PromptTuning"),
    ],
)
def test_fit_says_what_it_expects(arguments: Any, told: str) -> None:
    given = arguments(tiny_backbone())
    with pytest.raises(TypeError, match=told) as error:
        sp.fit(*given, train=ROWS, steps=1)
    assert len(str(error.value)) < 500
    with pytest.raises(TypeError, match=told):
        sp.fit_many(*given[:2], [(given[2], sp.Recipe(steps=1))], ROWS)


def test_a_recipe_is_no_dictionary() -> None:
    with pytest.raises(TypeError, match=r"recipe is \{'steps': 3\}"):
        sp.fit(tiny_backbone(), TASK, METHOD, ROWS, recipe={"steps": 3})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of torch and peft about their own affairs
@pytest.mark.parametrize(
    ("source", "told"),
    [
        (lambda: torch.compile(tiny_causal_lm("llama")), "_orig_mod"),
        ("peft", "merge_and_unload"),
        (tiny_backbone, "is a backbone already"),
        (lambda: 3, "source is a int"),
        (lambda: None, "source is a NoneType"),
        (lambda: torch.nn.Linear(2, 2), "source is a Linear"),
    ],
)
def test_load_backbone_says_what_it_expects(source: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told) as error:
        sp.load_backbone(peft_model() if source == "peft" else source(), tokenizer=tiny_tokenizer())
    assert len(str(error.value)) < 300


def peft_model() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        tiny_causal_lm("llama"), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    )


def test_names_that_cannot_be_hub_ids_are_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softprompt.backbones.loading.get_hf_file_metadata", None)
    monkeypatch.setattr("softprompt.backbones.loading.is_offline_mode", lambda: False)
    for name in ("./model", str(tmp_path / "model"), "a/b/c", "a name", "../x", ""):
        with pytest.raises(FileNotFoundError, match="and it cannot be a hub id"):
            sp.load_backbone(name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="it is a file"):
        sp.load_backbone(tmp_path / "file")
    for source in (str(tmp_path / "rows"), "./rows", "a/b/c", "some rows"):
        with pytest.raises(FileNotFoundError, match="there is no file or folder"):
            load_rows(source)


def test_a_hub_out_of_reach_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fails(url: str, **settings: Any) -> None:
        asked.append(url)
        raise ConnectionError("no route")

    monkeypatch.setattr("softprompt.backbones.loading.get_hf_file_metadata", fails)
    monkeypatch.setattr("softprompt.backbones.loading.is_offline_mode", lambda: False)
    with pytest.raises(FileNotFoundError, match=r"the hub was not reached for it \(no route"):
        sp.load_backbone("owner/no-such-model")
    assert len(asked) == 2


def test_training_does_not_depend_on_the_callers_gradient_mode() -> None:
    settings: dict[str, Any] = {"steps": 2, "warmup": 0, "progress": False}
    expected = sp.fit(tiny_backbone(), TASK, METHOD, ROWS, **settings).trained()["prompt.tokens"]
    with torch.no_grad():
        found = sp.fit(tiny_backbone(), TASK, METHOD, ROWS, **settings).trained()["prompt.tokens"]
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_a_tuned_prompt_says_how_it_reaches_another_process(copied: Any) -> None:
    tuned = sp.fit(tiny_backbone(), TASK, METHOD, ROWS, steps=1, warmup=0, progress=False)
    with pytest.raises(TypeError, match=r"tuned\.save\(folder\).*sp\.load\(folder\)"):
        copied(tuned)


def test_a_tokenizer_with_added_tokens_is_the_one_of_the_training(tmp_path: Path) -> None:
    tuned = sp.fit(tiny_backbone(), TASK, METHOD, ROWS, steps=1, warmup=0, progress=False)
    folder = tuned.save(tmp_path / "prompt")
    backbone = tiny_backbone()
    backbone.tokenizer.add_tokens(["<new>", "<newer>"])
    assert sp.load(folder, backbone).predict(["film"]) == tuned.predict(["film"])
    other = tiny_backbone()
    vocabulary = other.tokenizer.get_vocab()
    other.tokenizer.get_vocab = lambda: vocabulary | {"film": vocabulary["dog"], "dog": vocabulary["film"]}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="another tokenizer vocabulary"):
        sp.load(folder, other)


def test_folders_of_other_kinds_name_their_reader(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    tuned = sp.fit(backbone, TASK, METHOD, ROWS, steps=1, warmup=0, progress=False)
    with pytest.raises(ValueError, match=r"sp\.from_peft"):
        sp.load(tuned.export_peft(tmp_path / "peft"), backbone)
    with pytest.raises(ValueError, match=r"read it with sp\.load"):
        sp.from_peft(tuned.save(tmp_path / "ours"), backbone, TASK)
    tuned.save(tmp_path / "run" / "prompt")
    assert sp.load(tmp_path / "run", backbone).predict(["film"]) == tuned.predict(["film"])


def test_a_backbone_that_moved_is_said_to_be_the_one_that_was_trained_on(tmp_path: Path) -> None:
    tuned = sp.fit(tiny_backbone(), TASK, METHOD, ROWS, steps=1, warmup=0, progress=False)
    folder = tuned.save(tmp_path / "prompt")
    with pytest.raises(
        FileNotFoundError, match=r"was trained on 'tiny/llama', .*sp\.load_backbone.*--backbone"
    ):
        sp.load(folder)
