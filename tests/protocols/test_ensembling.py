"""Several prompts of one task that answer together in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

import softprompt as sp
from softprompt.backbones.base import Backbone
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.protocols.ensembling import RULES, combine
from softprompt.tasks import ClassPrediction
from tests.fitting.test_one_encoder_decoders import HEARD, SOUNDS, backbone_of
from tests.tiny.encoders import ENCODERS, encoder_backbone
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

TEXTS = ["film", "dog again", "the old house is very big", "no", "a good day by the river"]


def answer(**probabilities: float) -> ClassPrediction:
    return ClassPrediction(max(probabilities, key=probabilities.__getitem__), probabilities)


def members(
    backbone: Backbone, task: sp.TextClassification = TASK, rows: Sequence[Any] = ROWS
) -> list[sp.TunedPrompt]:
    """Prompts of different lengths, seeds and methods."""
    methods: tuple[Any, ...] = (
        sp.PromptTuning(length=6),
        sp.PromptTuning(length=2),
        sp.PrefixTuning(length=3, init="vocab" if backbone.spec.key_values_of else "random"),
    )
    return [
        sp.fit(backbone, task, method, rows, steps=2, learning_rate=0.2, warmup=0, seed=seed, progress=False)
        for seed, method in enumerate(methods)
    ]


def test_rules_are_mean_vote_and_geometric_mean() -> None:
    answers = [answer(a=0.5, b=0.3, c=0.2), answer(a=0.1, b=0.5, c=0.4), answer(a=0.3, b=0.1, c=0.6)]
    mean = combine(answers, "probability")
    assert mean.label == "c"
    assert mean.probabilities == pytest.approx({"a": 0.3, "b": 0.3, "c": 0.4})
    geometric = {k: math.prod(a.probabilities[k] for a in answers) ** (1 / 3) for k in "abc"}
    wanted = {k: value / sum(geometric.values()) for k, value in geometric.items()}
    assert combine(answers, "logit").probabilities == pytest.approx(wanted, rel=1e-12)
    two_of_three = [answer(a=0.9, b=0.1), answer(a=0.4, b=0.6), answer(a=0.45, b=0.55)]
    vote = combine(two_of_three, "vote")
    assert vote.label == "b"
    assert vote.probabilities == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert combine(two_of_three).label == "a"


def test_a_tied_vote_goes_to_the_higher_mean_probability_then_to_the_first_label() -> None:
    assert combine([answer(a=0.6, b=0.4), answer(a=0.3, b=0.7)], "vote").label == "b"
    tied = [answer(a=0.5, b=0.2, c=0.3), answer(a=0.2, b=0.5, c=0.3), answer(a=0.3, b=0.1, c=0.6)]
    assert combine(tied, "vote").label == "c"
    assert combine([answer(a=0.75, b=0.25), answer(a=0.25, b=0.75)], "vote").label == "a"


def test_a_label_that_one_member_rules_out_still_has_a_mean_class_score() -> None:
    ruled_out = [ClassPrediction("a", {"a": 1.0, "b": 0.0}), ClassPrediction("b", {"a": 0.0, "b": 1.0})]
    assert combine(ruled_out, "logit").probabilities == pytest.approx({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("rule", RULES)
def test_the_common_answer_does_not_depend_on_the_order_of_members(rule: Any) -> None:
    answers = [answer(a=0.11, b=0.33, c=0.56), answer(a=0.7, b=0.1, c=0.2), answer(a=0.31, b=0.45, c=0.24)]
    assert len({str(combine(order, rule)) for order in permutations(answers)}) == 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_member_answers_as_it_does_alone(architecture: Any) -> None:
    prompts = members(tiny_backbone(architecture))
    together = sp.PromptEnsemble(prompts).member_predictions(TEXTS, batch_size=2)
    for n, prompt in enumerate(prompts):
        for found, alone in zip(together, prompt.predict(TEXTS), strict=True):
            assert_equal_up_to_rounding(found[n], alone)


@pytest.mark.parametrize("rule", RULES)
def test_identical_prompts_answer_as_one(rule: Any) -> None:
    prompt = members(tiny_backbone())[0]
    for found, alone in zip(
        sp.PromptEnsemble([prompt] * 3).predict(TEXTS, rule), prompt.predict(TEXTS), strict=True
    ):
        assert found.label == alone.label
        if rule != "vote":
            assert_equal_up_to_rounding(found, alone)


def test_a_batch_is_one_forward_pass_and_each_prompt_is_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = members(tiny_backbone())[:2]
    calls: list[int] = []
    computed: list[int] = []
    score, compiled = CausalBackbone.score, CausalBackbone.compile

    def counted_score(self: CausalBackbone, rows: Any, prompt: Any) -> Any:
        calls.append(len(rows))
        return score(self, rows, prompt)

    def counted_compile(self: CausalBackbone, rows: Any, prompt: Any) -> Any:
        computed.append(prompt.count)
        return compiled(self, rows, prompt)

    monkeypatch.setattr(CausalBackbone, "score", counted_score)
    monkeypatch.setattr(CausalBackbone, "compile", counted_compile)
    sp.PromptEnsemble(prompts).predict(TEXTS, batch_size=2)
    assert calls == [4, 4, 2]
    assert computed == [2]


def test_evaluation_shows_the_ensemble_beside_its_members() -> None:
    prompts = members(tiny_backbone())
    found = sp.PromptEnsemble(prompts).evaluate(ROWS, batch_size=5)
    alone = [prompt.evaluate(ROWS) for prompt in prompts]
    assert [m["accuracy"] for m in found.members] == [m["accuracy"] for m in alone]
    assert found.mean["accuracy"] == pytest.approx(sum(m["accuracy"] for m in alone) / 3)
    assert alone[found.best]["accuracy"] == max(m["accuracy"] for m in alone)
    for rule in RULES:
        wanted = TASK.evaluate(sp.PromptEnsemble(prompts).predict([row["text"] for row in ROWS], rule), ROWS)
        assert_equal_up_to_rounding(found.ensemble[rule], wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["prefix-lm", "t5", "bart", "whisper", "bert", "roberta", "modernbert"]
)
def test_on_every_other_family_of_words_each_member_answers_as_it_does_alone(architecture: Any) -> None:
    task, rows = TASK, ROWS
    inputs: list[Any] = list(TEXTS)
    backbone: Any
    if architecture in ENCODERS:
        task = sp.TextClassification("{text} sentiment{mask}", labels=TASK.labels)
        backbone = encoder_backbone(architecture)
    elif architecture == "prefix-lm":
        backbone = sp.load_backbone(tiny_causal_lm("llama"), tokenizer=tiny_tokenizer(), prefix_lm=True)
    else:
        backbone = backbone_of(architecture)
    if architecture == "whisper":
        task, rows, inputs = HEARD, SOUNDS, SOUNDS[:5]
    prompts = members(backbone, task, rows)
    alone = [prompt.predict(inputs) for prompt in prompts]
    together = sp.PromptEnsemble(prompts).member_predictions(inputs, batch_size=2)
    order = [0, 2, 1, 1, 2]
    mixed = sp.MixedPrompts(prompts).predict(inputs, order, batch_size=4)
    for i in range(len(inputs)):
        for n, answers in enumerate(alone):
            assert_equal_up_to_rounding(together[i][n], answers[i])
            if order[i] == n:
                assert_equal_up_to_rounding(mixed[i], answers[i])


def test_prompts_with_heads_answer_together_too() -> None:
    backbone = tiny_backbone()
    task = sp.SequenceClassification("{text}", labels=["neg", "pos"])
    prompts = [
        sp.fit(backbone, task, sp.PromptTuning(length=n), ROWS, steps=2, seed=n, progress=False)
        for n in (2, 4)
    ]
    together = sp.PromptEnsemble(prompts).member_predictions(TEXTS, batch_size=3)
    for n, prompt in enumerate(prompts):
        for found, alone in zip(together, prompt.predict(TEXTS), strict=True):
            assert_equal_up_to_rounding(found[n], alone)


def test_prompts_that_cannot_answer_together_are_refused() -> None:
    backbone = tiny_backbone()
    one = members(backbone)[0]
    other = sp.TextClassification("{text} kind", labels={"x": " old", "y": " new"})
    rows = [{"text": "film", "label": "x"}, {"text": "dog", "label": "y"}]
    two = sp.fit(backbone, other, sp.PromptTuning(length=2), rows, steps=1, progress=False)
    with pytest.raises(
        ValueError, match=r"must be of one task, but their labels are \[\['neg', 'pos'\], \['x', 'y'\]\]"
    ):
        sp.PromptEnsemble([one, two])
    story = sp.TextGeneration("{text}:", target=" {label}")
    three = sp.fit(backbone, story, sp.PromptTuning(length=2), rows, steps=1, progress=False)
    with pytest.raises(ValueError, match="text-generation gives no probability of labels"):
        sp.PromptEnsemble([three])
    with pytest.raises(ValueError, match="no prompts were given"):
        sp.PromptEnsemble([])
    with pytest.raises(ValueError, match="unknown rule 'median'"):
        combine([answer(a=0.5, b=0.5)], "median")  # type: ignore[arg-type]
