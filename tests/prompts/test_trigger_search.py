"""Prompts of words that are searched for: TriggerSearch and PEZ, through fit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import (
    PEZ,
    ManualPrompt,
    PromptTuning,
    SoftpromptWarning,
    TextClassification,
    TriggerSearch,
    TunedPrompt,
    ZeroShot,
    fit,
    load,
    load_backbone,
    methods,
    project_prompt,
)
from softprompt.backbones.base import Backbone
from softprompt.prompts.base import Method
from softprompt.search import candidate_losses, searchable_words
from tests.fitting import test_one_encoder_decoders as seq2seq
from tests.naive import triggers
from tests.search.problems import BEHIND, FRONT, check_of, tiny_problem
from tests.tiny.encoders import encoder_backbone
from tests.tiny.language import Architecture, tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tolerances import FLOAT64

GCG = TriggerSearch(length=3, positions="all", top_k=12, candidates=6, accept="best")
METHODS: list[Any] = [TriggerSearch(length=3, top_k=4), GCG, PEZ(length=3)]
NAMES = ["autoprompt", "gcg", "pez"]
pytestmark = pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")


def searched(
    method: Method, task: Any = FRONT, architecture: Architecture = "llama", **recipe: Any
) -> TunedPrompt:
    settings = {"steps": 3, "batch_size": 8, "progress": False, **recipe}
    return fit(tiny_backbone(architecture), task, method, ROWS, **settings)


def loss_of(tuned: TunedPrompt, rows: Any = ROWS) -> float:
    encoded = [tuned.encoder.encode(row) for row in rows]
    return triggers.loss(tuned.backbone, encoded, tuned.module.state_dict()["ids"].tolist()).item()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_what_is_found_is_text_that_any_method_can_use(method: Any, architecture: Architecture) -> None:
    tuned = searched(method, architecture=architecture)
    found = project_prompt(tuned, ROWS)
    assert found.text == tuned.recipe["text"]
    assert list(found.token_ids) == tuned.module.state_dict()["ids"].tolist()
    assert tuned.backbone.spec.tokenize(found.text) == list(found.token_ids)
    assert found.task is not None
    expected = [p.probabilities["pos"] for p in tuned.predict(["film", "dog and cat"])]
    for task, other in ((tuned.task, ManualPrompt(found.text)), (found.task, ZeroShot())):
        again = fit(tuned.backbone, task, other, ROWS, progress=False)
        assert [p.probabilities["pos"] for p in again.predict(["film", "dog and cat"])] == pytest.approx(
            expected, rel=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_the_same_seed_finds_the_same_words(method: Any) -> None:
    one, again = (searched(method, seed=3) for _ in range(2))
    assert one.recipe["text"] == again.recipe["text"]
    assert [h["text"] for h in one.history] == [h["text"] for h in again.history]
    assert [h["loss"] for h in one.history] == [h["loss"] for h in again.history]
    assert searched(method, seed=4).history[0]["text"] != one.history[0]["text"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_the_best_loss_so_far_never_rises(method: Any) -> None:
    short, long = (searched(method, steps=n, evaluate_every=1, warmup=0, schedule="constant") for n in (2, 4))
    seen = [h["eval/loss"] for h in long.history]
    assert [h["text"] for h in short.history] == [h["text"] for h in long.history[:2]]
    assert loss_of(long) <= loss_of(short) + FLOAT64
    assert loss_of(long) == pytest.approx(min(seen), rel=1e-6) or long.recipe["best_step"] == 0
    assert loss_of(long) <= min(seen) + 1e-6


def test_every_step_that_sees_all_rows_takes_only_what_is_better() -> None:
    tuned = searched(TriggerSearch(length=3, top_k=6), steps=4, batch_size=len(ROWS))
    losses = [h["loss"] for h in tuned.history]
    assert all(later <= earlier + FLOAT64 for earlier, later in pairwise(losses))
    assert losses[-1] == pytest.approx(loss_of(tuned), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("task", [FRONT, BEHIND], ids=["front", "behind"])
def test_the_best_single_word_is_found(task: TextClassification) -> None:
    """Every word tried by hand, against a search that may try all of them."""
    problem = tiny_problem(task, length=1)
    words = searchable_words(problem.backbone, without=[" bad", " good"])
    survives = check_of(problem)
    ids = [word for word in words.ids.tolist() if survives([word])][:25]
    with torch.no_grad():
        all_losses = {word: triggers.loss(problem.backbone, problem.rows, [word]).item() for word in ids}

    from softprompt.prompts.trigger_search import TriggerSearch as Search
    from softprompt.search import Vocabulary

    few = torch.tensor(ids)
    vocabulary = Vocabulary(few, problem.backbone.spec.embed(few), problem.backbone.spec.embed)
    method = Search(length=1, top_k=len(ids), candidates_per_pass=32)
    one_batch = replace(problem, recipe=replace(problem.recipe, batch_size=len(problem.data)))
    step = method.step(one_batch, vocabulary, survives, 0, torch.tensor([ids[0]]), torch.Generator())
    best = min(all_losses, key=all_losses.__getitem__)
    assert step.ids.tolist() == [best]
    assert step.loss == pytest.approx(all_losses[best], rel=1e-9)


def test_the_result_is_never_worse_on_validation_than_the_words_it_started_from() -> None:
    text = " good film"
    task = replace(FRONT, template="{soft} {text} sentiment")
    manual = fit(tiny_backbone(), task, ManualPrompt(text), ROWS, ROWS, progress=False)
    tuned = fit(
        tiny_backbone(), task, TriggerSearch(init_text=text, top_k=3), ROWS, ROWS, steps=4, progress=False
    )
    start, end = (t.metrics["validation"]["accuracy"] for t in (manual, tuned))
    assert end >= start
    assert tuned.evaluate(ROWS)["accuracy"] == end
    assert len(tuned.backbone.spec.tokenize(tuned.recipe["text"])) == 2


def test_label_words_are_used_only_where_they_may_be() -> None:
    start: dict[str, Any] = {"init_text": " film", "top_k": 40, "candidates_per_pass": 64}
    backbone = tiny_backbone()
    labels = {backbone.spec.tokenize(word)[0] for word in (" bad", " good")}
    for allowed in (False, True):
        tuned = searched(TriggerSearch(label_words=allowed, **start), FRONT, steps=1)
        assert tuned.recipe["text"]
        words = set(searchable_words(backbone, without=[] if allowed else [" bad", " good"]).ids.tolist())
        assert (labels <= words) == allowed
        assert allowed or tuned.module.state_dict()["ids"].item() not in labels


def test_batches_are_a_function_of_the_seed_and_go_through_all_rows() -> None:
    problem = tiny_problem(batch_size=4)
    epoch = [row for k in range(2) for row in problem.batch(k)]
    assert sorted(row.context for row in epoch) == sorted(row.context for row in problem.rows)
    assert problem.batch(5) == problem.batch(5)
    assert problem.batch(0, 2) == epoch


@pytest.mark.parametrize("method", [TriggerSearch(length=2), PEZ(length=2)], ids=["trigger-search", "pez"])
def test_a_found_prompt_is_saved_and_loaded(tmp_path: Path, method: Any) -> None:
    tuned = searched(method)
    again = load(tuned.save(tmp_path / "p"), tuned.backbone)
    assert again.method == method
    assert again.predict(["film"]) == tuned.predict(["film"])
    assert project_prompt(again).text == tuned.recipe["text"] == again.recipe["text"]
    assert tuned.trained() == {}


def test_the_backbone_and_torchs_generator_stay_as_they_are() -> None:
    backbone = tiny_backbone()
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    state = torch.get_rng_state()
    fit(backbone, FRONT, TriggerSearch(length=2), ROWS, steps=2, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in backbone.model.named_parameters()
    )


def test_patience_ends_a_search() -> None:
    tuned = searched(TriggerSearch(length=1, top_k=1), steps=30, patience=2, evaluate_every=1, batch_size=16)
    assert tuned.recipe["steps_made"] < 30


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "length"),
        ({"top_k": 5, "candidates": 6}, "candidates is 6 and top_k is 5"),
        ({"init_text": ""}, "init_text"),
        ({"positions": "two"}, "'one' or 'all'"),
        ({"lenght": 3}, "lenght"),
    ],
)
def test_settings_that_do_not_fit_are_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at below
        TriggerSearch(**settings)
    assert said in str(caught.value)


def test_a_start_that_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="has 2 tokens and length is 3: leave length out"):
        searched(TriggerSearch(length=3, init_text=" good film"))
    glued = replace(TASK, template="{soft}is {text}")
    with pytest.raises(ValueError, match="is not read as the same tokens: separate the slot"):
        searched(TriggerSearch(init_text="th"), glued)


def test_a_soft_prompt_as_words_is_told_with_what_is_lost() -> None:
    task = replace(FRONT, template="{soft} {text} sentiment")
    tuned = fit(tiny_backbone(), task, PromptTuning(length=3), ROWS, steps=5, progress=False)
    found = project_prompt(tuned, ROWS)
    encoded = [tuned.encoder.encode(row) for row in ROWS]
    assert found.loss == pytest.approx(
        triggers.loss(tuned.backbone, encoded, found.token_ids).item(), rel=1e-6
    )
    tokens = tuned.module.state_dict()["tokens"]
    assert found.soft_loss == pytest.approx(
        triggers.soft_loss(tuned.backbone, encoded, tokens.double()).item(), rel=1e-6
    )
    assert len(found.cosines) == 3
    assert max(found.cosines) <= 1 + 1e-6
    assert project_prompt(tuned).loss is None


def test_words_near_a_prompt_that_started_as_words_are_these_words() -> None:
    task = replace(FRONT, template="{soft} {text} sentiment")
    method = PromptTuning(length=2, init="text", init_text=" good film")
    tuned = fit(tiny_backbone(), task, method, ROWS, steps=1, learning_rate=1e-9, progress=False)
    found = project_prompt(tuned, ROWS)
    assert found.text == " good film"
    assert found.loss == pytest.approx(found.soft_loss, rel=1e-5)


def test_what_has_no_place_among_words_is_not_projected() -> None:
    for name, found in (("prefix-tuning", "none"), ("dept", "more"), ("adept", "more")):
        tuned = fit(tiny_backbone(), TASK, methods()[name](), ROWS, steps=1, progress=False)
        with pytest.raises(
            ValueError, match=f"only virtual tokens can be compared with words, and {name} has {found}"
        ):
            project_prompt(tuned)


def test_a_search_that_only_finds_the_majority_is_warned_of() -> None:
    rows = [row for row in ROWS if row["label"] == "pos"]
    with pytest.warns(SoftpromptWarning, match="no training row has the labels"):
        fit(tiny_backbone(), FRONT, TriggerSearch(length=1), rows, steps=1, progress=False)


CLOZE = TextClassification("{soft} {text} sentiment {mask}.", labels={"neg": " bad", "pos": " good"})


@pytest.mark.slow
@pytest.mark.parametrize("method", [TriggerSearch(length=2, top_k=3), PEZ(length=2)], ids=["trigger", "pez"])
@pytest.mark.parametrize("family", ["masked-lm", "encoder-decoder", "prefix-lm", "speech"])
def test_words_are_found_for_every_family(method: Any, family: str) -> None:
    backbone: Backbone
    rows = ROWS
    inputs: list[Any] = ["film", "dog"]
    if family == "masked-lm":
        backbone, task = encoder_backbone("bert"), CLOZE
    elif family == "prefix-lm":
        model = tiny_causal_lm("llama").requires_grad_(False)
        backbone, task = load_backbone(model, tokenizer=tiny_tokenizer(), prefix_lm=True), FRONT
    elif family == "speech":
        backbone, task, rows = seq2seq.backbone_of("whisper"), seq2seq.HEARD, seq2seq.SOUNDS
        inputs = rows[:2]
    else:
        model = tiny_seq2seq("t5").requires_grad_(False)
        backbone, task = load_backbone(model, tokenizer=tiny_tokenizer(closed=True)), FRONT
    tuned = fit(backbone, task, method, rows, steps=2, batch_size=8, progress=False)
    found = project_prompt(tuned, rows)
    assert found.text == tuned.recipe["text"]
    assert found.task is not None
    again = fit(backbone, found.task, ZeroShot(), rows, progress=False)
    for one, other in zip(tuned.predict(inputs), again.predict(inputs), strict=True):
        assert one.probabilities["pos"] == pytest.approx(other.probabilities["pos"], rel=1e-5)
    problem = [tuned.encoder.encode(row) for row in rows[:4]]
    candidates = torch.randint(10, 300, (3, 2))
    together = candidate_losses(backbone, tuned.encoder, problem, candidates)
    alone = [candidate_losses(backbone, tuned.encoder, problem, ids[None], per_pass=1) for ids in candidates]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=0)
