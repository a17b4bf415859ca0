"""TunedPrompt: predictions that do not depend on the batch, saving and loading, PEFT's format both ways."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import (
    PromptTuning,
    TextClassification,
    TunedPrompt,
    WrongBackboneError,
    fit,
    from_peft,
    load,
    store,
)
from softprompt.backbones.base import Backbone
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.cli._options import open_prompt
from softprompt.model import carrying
from softprompt.outputs import EncodedRow
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.store import PromptFileError
from tests.naive.causal import target_log_likelihood
from tests.tiny.language import ARCHITECTURES, Architecture, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone

# PEFT 0.21.2 reads this property of transformers 5.23; nothing of ours does.
with_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXTS = [row["text"] for row in ROWS]


def untrained(backbone: CausalBackbone, task: TextClassification = TASK, length: int = 5) -> TunedPrompt:
    """A prompt as it starts."""
    tokens = torch.randn(length, backbone.spec.width, generator=torch.Generator().manual_seed(1))
    return TunedPrompt(
        backbone, task, PromptTuning(length=length), VirtualTokens(tokens).requires_grad_(False)
    )


def probabilities(tuned: TunedPrompt, texts: list[str], **settings: Any) -> Tensor:
    """(B, K)"""
    found = tuned.predict(texts, **settings)
    return torch.tensor([list(p.probabilities.values()) for p in found], dtype=torch.float64)


# --- the batch does not matter ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prediction_is_the_same_alone_and_in_any_batch(architecture: Architecture) -> None:
    tuned = untrained(tiny_backbone(architecture))
    together = probabilities(tuned, TEXTS)
    for size in (1, 3):
        assert_close(probabilities(tuned, TEXTS, batch_size=size), together, rtol=0, atol=1e-10)
    assert_close(probabilities(tuned, TEXTS), together, rtol=0, atol=1e-10)
    fresh = [probabilities(untrained(tuned.backbone), [text]) for text in TEXTS[:4]]
    assert_close(torch.cat(fresh), together[:4], rtol=0, atol=1e-10)
    assert_close(probabilities(tuned, TEXTS[::-1]).flip(0), together, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
def test_a_calibrated_prediction_is_the_same_alone_and_in_any_batch(bos: bool) -> None:
    task = TextClassification(TASK.template, labels=TASK.labels, calibrated=True)
    tuned = untrained(tiny_backbone(bos=bos), task)
    together = probabilities(tuned, TEXTS)
    assert_close(probabilities(tuned, TEXTS, batch_size=1), together, rtol=0, atol=1e-10)
    assert not torch.allclose(together, probabilities(untrained(tuned.backbone), TEXTS), atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_a_prediction_is_that_of_plain_concatenation(architecture: Architecture) -> None:
    tuned = untrained(tiny_backbone(architecture))
    tokens = tuned.module().tokens
    assert tokens is not None
    expected = []
    for text in TEXTS[:4]:
        row = tuned.encoder.encode({"text": text}, answer=False)
        scores = [
            target_log_likelihood(tuned.backbone.model, row, target, tokens[0].double(), None).sum()
            for target in row.targets
        ]
        expected.append(torch.stack(scores).softmax(dim=0))
    assert_close(probabilities(tuned, TEXTS[:4]), torch.stack(expected), rtol=0, atol=1e-10)


def test_the_tokenizers_padding_side_changes_nothing() -> None:
    left, right = (tiny_backbone(padding_side=side) for side in ("left", "right"))
    assert torch.equal(probabilities(untrained(left), TEXTS), probabilities(untrained(right), TEXTS))
    trained = [
        fit(backbone, TASK, PromptTuning(length=3), ROWS, steps=2, batch_size=8, progress=False)
        for backbone in (left, right)
    ]
    assert torch.equal(*(tuned.module.state_dict()["tokens"] for tuned in trained))


def test_evaluating_twice_gives_the_same() -> None:
    tuned = untrained(tiny_backbone())
    assert tuned.evaluate(ROWS) == tuned.evaluate(ROWS)
    assert tuned.evaluate(ROWS, batch_size=1)["accuracy"] == tuned.evaluate(ROWS)["accuracy"]


def test_several_prompts_in_one_batch_predict_as_each_alone() -> None:
    from softprompt.model import PromptedModel

    backbone = tiny_backbone()
    short, long = untrained(backbone, length=2), untrained(backbone, length=5)
    model = PromptedModel(backbone, [short.module, long.module])
    rows: list[EncodedRow] = []
    for number, tuned in enumerate((short, long)):
        rows += carrying([tuned.encoder.encode({"text": t}, answer=False) for t in TEXTS], number)
    found = short.encoder.predict(model, rows[::2] + rows[1::2], batch_size=5)
    order = [*range(0, len(rows), 2), *range(1, len(rows), 2)]
    alone = short.predict(TEXTS) + long.predict(TEXTS)
    for place, prediction in zip(order, found, strict=True):
        assert prediction.probabilities == pytest.approx(alone[place].probabilities, abs=1e-10)


def test_text_is_a_string_or_a_row() -> None:
    tuned = untrained(tiny_backbone())
    assert tuned.predict(["film"]) == tuned.predict([{"text": "film"}])
    assert tuned.predict([]) == []
    renamed = TextClassification(TASK.template, labels=TASK.labels, columns={"text": "sentence"})
    assert untrained(tuned.backbone, renamed).predict(["film"]) == tuned.predict(["film"])
    pairs = TextClassification("{a} {b}", labels=TASK.labels)
    with pytest.raises(ValueError, match=r"needs the columns \['a', 'b'\]: pass a dictionary"):
        untrained(tuned.backbone, pairs).predict(["film"])


# --- saved and loaded ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loaded_prompt_predicts_what_the_saved_one_did(tmp_path: Path, architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    tuned = fit(
        backbone, TASK, PromptTuning(length=4), ROWS, steps=3, batch_size=8, progress=False, max_tokens=40
    )
    again = load(tuned.save(tmp_path / "prompt"), tiny_backbone(architecture))
    assert torch.equal(again.module.state_dict()["tokens"], tuned.module.state_dict()["tokens"])
    assert again.predict(TEXTS) == tuned.predict(TEXTS)
    assert (again.task, again.method, again.max_tokens) == (TASK, PromptTuning(length=4), 40)
    assert again.recipe == {**tuned.recipe}
    assert not any(p.requires_grad for p in again.module.parameters())
    twice = load(again.save(tmp_path / "copy"), backbone)
    assert twice.predict(TEXTS) == tuned.predict(TEXTS)


def test_a_hub_model_is_loaded_again_from_the_commit_that_the_prompt_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone()
    monkeypatch.setattr(backbone.model.config, "_commit_hash", "a3f0", raising=False)
    folder = untrained(backbone).save(tmp_path / "prompt")
    asked: list[str | None] = []

    def opened(name: str, *, revision: str | None, **_: Any) -> Backbone:
        asked.append(revision)
        return tiny_backbone()

    monkeypatch.setattr("softprompt.tuned.loading.load_backbone", opened)
    monkeypatch.setattr("softprompt.cli._options.open_backbone", lambda name, *_, **kw: opened(name, **kw))
    assert load(folder).predict(["film"]) == open_prompt(folder, None, None, None).predict(["film"])
    open_prompt(folder, "another copy", None, None)
    assert asked == ["a3f0", "a3f0", None]


def test_a_prompt_trained_in_one_precision_serves_in_another(tmp_path: Path) -> None:
    bfloat16 = tiny_backbone(dtype=torch.bfloat16)
    folder = untrained(bfloat16).save(tmp_path / "prompt")
    assert load(folder, tiny_backbone(dtype=torch.float32)).predict(["film"])


def test_what_was_trained_is_given_by_name() -> None:
    tuned = fit(tiny_backbone(), TASK, PromptTuning(length=4), ROWS, steps=1, progress=False)
    assert {name: tuple(t.shape) for name, t in tuned.trained().items()} == {"prompt.tokens": (4, 48)}


def test_a_prompt_is_refused_by_another_backbone(tmp_path: Path) -> None:
    folder = untrained(tiny_backbone()).save(tmp_path / "prompt")
    with pytest.raises(WrongBackboneError, match="other weights in the embedding table"):
        load(folder, tiny_backbone(seed=1))
    with pytest.raises(WrongBackboneError, match="another config"):
        load(folder, tiny_backbone("mistral"))
    narrow = tiny_backbone()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(narrow.tokenizer), hidden_size=32, num_attention_heads=4, num_hidden_layers=2,
        num_key_value_heads=2, intermediate_size=64,
    )  # fmt: skip
    other = CausalBackbone(
        LlamaForCausalLM(config).eval().requires_grad_(False), narrow.tokenizer, name="narrow"
    )
    with pytest.raises(WrongBackboneError, match=r"(?s)width 32, trained on 48.*Load 'tiny/llama' instead"):
        load(folder, other)


def test_an_existing_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    tuned = untrained(tiny_backbone())
    folder = tuned.save(tmp_path / "prompt")
    with pytest.raises(FileExistsError, match="pass overwrite=True to replace it"):
        tuned.save(folder)
    assert tuned.save(folder, overwrite=True) == folder


def test_a_saved_method_or_task_of_another_version_is_an_error(tmp_path: Path) -> None:
    from softprompt import store

    backbone = tiny_backbone()
    saved = store.load(untrained(backbone).save(tmp_path / "prompt"))
    for change, said in (
        ({"method": {"name": "prompt-tunin"}}, "unknown method 'prompt-tunin'; .* knows .*prompt-tuning"),
        ({"method": {**saved.method, "length": "long"}}, "settings of method 'prompt-tuning' are not valid"),
        ({"task": {"name": "telepathy"}}, "unknown task 'telepathy'"),
        ({"tensors": {"prompt.words": torch.zeros(2, 48)}}, "'tokens' is missing; .*'prompt.words'"),
    ):  # fmt: skip
        store.save(tmp_path / "other", dataclasses.replace(saved, **change), overwrite=True)
        with pytest.raises(PromptFileError, match=said):
            load(tmp_path / "other", backbone)


# --- PEFT ---------------------------------------------------------------------------------------------------


def peft_scores(model: Any, context: list[int], targets: tuple[tuple[int, ...], ...]) -> Tensor:
    """Log-likelihoods of whole targets after a context, (W,), by a plain pass of a model each."""
    scores = []
    for target in targets:
        ids = torch.tensor([context + list(target)])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        log_probabilities = logits[-len(target) - 1 : -1].double().log_softmax(dim=-1)
        scores.append(log_probabilities[range(len(target)), list(target)].sum())
    return torch.stack(scores)


@with_peft
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_an_exported_prompt_gives_the_same_logits_in_peft(tmp_path: Path, architecture: Architecture) -> None:
    peft = pytest.importorskip("peft")
    tuned = untrained(tiny_backbone(architecture))
    folder = tuned.export_peft(tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(tiny_backbone(architecture).model, folder).eval()
    for text in TEXTS[:3]:
        row = tuned.encoder.encode({"text": text}, answer=False)
        ids = [atom for atom in row.context if atom >= 0]
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([ids])).logits[0, -1]
            ours = tuned.backbone.next_token_logits([row], tuned.model.prompt())[0]
        assert_close(ours, expected, rtol=0, atol=1e-10)


@with_peft
@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("template", ["{text} sentiment", "{soft}{text} sentiment"])
def test_a_prompt_that_peft_wrote_gives_its_label_likelihoods(
    tmp_path: Path, template: str, bos: bool
) -> None:
    peft = pytest.importorskip("peft")
    backbone = tiny_backbone(bos=bos)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, prompt_tuning_init="RANDOM")
    theirs = peft.get_peft_model(tiny_backbone().model, config).eval()
    theirs.save_pretrained(tmp_path)
    if bos and "{soft}" in template:
        template = "{soft}{bos}{text} sentiment"
    tuned = from_peft(tmp_path, backbone, TextClassification(template, labels=TASK.labels))
    for text, found in zip(TEXTS[:4], probabilities(tuned, TEXTS[:4]), strict=True):
        # As people use PEFT: the tokenizer's own ids, a BOS among them, and the virtual tokens before them.
        ids = backbone.tokenizer(f"{text} sentiment")["input_ids"]
        targets = tuned.encoder.encode({"text": text}, answer=False).targets
        assert_close(found, peft_scores(theirs, ids, targets).softmax(dim=0), rtol=0, atol=1e-10)
    assert not any(p.requires_grad for p in tuned.module.parameters())


@with_peft
def test_a_prompt_goes_to_peft_and_back(tmp_path: Path) -> None:
    tuned = untrained(tiny_backbone())
    again = from_peft(tuned.export_peft(tmp_path / "peft"), tuned.backbone, TASK)
    assert again.predict(TEXTS) == tuned.predict(TEXTS)


def test_a_peft_prompt_of_another_width_is_an_error_that_names_its_model(tmp_path: Path) -> None:
    from softprompt.exchange import write_peft

    write_peft(
        tmp_path / "p", torch.randn(3, 32), base_model_name="big/one", num_layers=2, num_attention_heads=4
    )
    with pytest.raises(ValueError, match=r"width 32, tiny/llama has 48: load .*big/one"):
        from_peft(tmp_path / "p", tiny_backbone(), TASK)


@pytest.mark.parametrize(
    "template", ["{text}{soft} sentiment", "{text} sentiment{soft}", "{soft:2}{text}{soft:3}"]
)
def test_a_prompt_that_is_not_in_front_cannot_be_exported(tmp_path: Path, template: str) -> None:
    tuned = untrained(tiny_backbone(), TextClassification(template, labels=TASK.labels))
    with pytest.raises(ValueError, match=r"PEFT puts virtual tokens before everything.*begins with \{soft\}"):
        tuned.export_peft(tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


@with_peft
def test_a_prompt_behind_an_automatic_bos_is_refused_with_the_remedy_that_helps(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    backbone = tiny_backbone(bos=True)
    with pytest.raises(ValueError, match=r"begins with \{soft\}, and writes \{bos\} after it"):
        untrained(backbone).export_peft(tmp_path / "peft")
    tuned = untrained(backbone, TextClassification("{soft}{bos}{text} sentiment", labels=TASK.labels))
    theirs = peft.PeftModel.from_pretrained(
        tiny_backbone().model, tuned.export_peft(tmp_path / "peft")
    ).eval()
    [found] = probabilities(tuned, ["film"])
    targets = tuned.encoder.encode({"text": "film"}, answer=False).targets
    ids = tiny_tokenizer(bos=True)("film sentiment")["input_ids"]
    assert_close(found, peft_scores(theirs, ids, targets).softmax(dim=0), rtol=0, atol=1e-10)


def test_a_method_with_more_than_virtual_tokens_cannot_be_exported(tmp_path: Path) -> None:
    from softprompt import FullTuning

    backbone = tiny_backbone()
    tuned = fit(backbone, TASK, FullTuning(), ROWS, steps=1, progress=False)
    with pytest.raises(ValueError, match="full-tuning"):
        tuned.export_peft(tmp_path / "peft")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda t: torch.full_like(t, torch.nan), r"240 of the 240 numbers of prompt\.tokens are NaN or inf"),
        (lambda t: t.index_fill(0, torch.tensor([2]), torch.inf), r"48 of the 240 numbers of prompt\.tokens"),
        (
            lambda t: torch.cat([t, t]),
            r"prompt\.tokens is float32 \(10, 48\), and prompt-tuning .* \(5, 48\)",
        ),
        (lambda t: t[:, :40], r"prompt\.tokens is float32 \(5, 40\).*needs float32 \(5, 48\)"),
        (lambda t: t.flatten(), r"prompt\.tokens is float32 \(240,\)"),
        (lambda t: t.to(torch.int32), r"prompt\.tokens is int32 \(5, 48\)"),
    ],
)
def test_a_saved_prompt_whose_tensors_cannot_be_right_is_refused_by_name(
    tmp_path: Path, changed: Any, message: str
) -> None:
    backbone = tiny_backbone()
    saved = store.load(untrained(backbone).save(tmp_path / "good"))
    store.save(
        tmp_path / "bad",
        dataclasses.replace(saved, tensors={"prompt.tokens": changed(saved.tensors["prompt.tokens"])}),
    )
    with pytest.raises(PromptFileError, match=message):
        load(tmp_path / "bad", backbone)


@pytest.mark.parametrize("found", ["64", 0, -3, 6.5, True])
def test_a_saved_prompt_with_a_senseless_max_tokens_is_refused(tmp_path: Path, found: Any) -> None:
    backbone = tiny_backbone()
    saved = store.load(untrained(backbone).save(tmp_path / "good"))
    store.save(tmp_path / "bad", dataclasses.replace(saved, notes={**saved.notes, "max_tokens": found}))
    with pytest.raises(PromptFileError, match=f"max_tokens is {found!r}, expected a number of tokens"):
        load(tmp_path / "bad", backbone)


def test_tensors_that_another_method_has_are_refused_by_name(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    saved = store.load(untrained(backbone).save(tmp_path / "good"))
    for name, tensors, message in (
        ("more", {**saved.tensors, "prompt.gain": torch.ones(3)}, r"prompt\.gain is float32 \(3,\).*missing"),
        ("less", {}, "'tokens' is missing"),
    ):
        store.save(tmp_path / name, dataclasses.replace(saved, tensors=tensors))
        with pytest.raises(PromptFileError, match=message):
            load(tmp_path / name, backbone)


def test_what_an_interrupted_overwrite_put_aside_is_found_through_every_door(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    task = dataclasses.replace(TASK, template="{soft}{text} sentiment")
    tuned = untrained(backbone, task)
    tuned.save(tmp_path / "run" / "prompt")
    tuned.export_peft(tmp_path / "peft")
    (tmp_path / "run" / "prompt").rename(tmp_path / "run" / ".prompt.previous")
    (tmp_path / "peft").rename(tmp_path / ".peft.previous")
    assert torch.equal(store.load_tokens(tmp_path / "peft"), tuned.module.state_dict()["tokens"])
    assert len(store.load_tokens(tmp_path / "run" / "prompt")) == 5
    for folder in (tmp_path / "run", tmp_path / "run" / "prompt"):
        with pytest.raises(FileNotFoundError, match="no-such-backbone"):  # it came as far as the backbone
            open_prompt(folder, "./no-such-backbone", "float32", "cpu")
