"""A prompt on its own data set and on others of its task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import softprompt as sp
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

FOREIGN = [{"body": "film and dog", "stars": 5}, {"body": "dog", "stars": 1}, {"body": "film", "stars": 5}]
READER = replace(TASK, columns={"text": "body"}, label_column="stars", label_values={"1": "neg", "5": "pos"})


def tuned(method: Any = None, **recipe: Any) -> sp.TunedPrompt:
    settings = {"steps": 3, "learning_rate": 0.1, "warmup": 0, "progress": False} | recipe
    return sp.fit(tiny_backbone(), TASK, method or sp.PromptTuning(length=3), ROWS, **settings)


def test_each_domain_has_its_metrics_with_majority_and_zero_shot_beside() -> None:
    prompt = tuned()
    shift = sp.evaluate_domains(
        prompt,
        sp.Domain("home", ROWS),
        [sp.Domain("abroad", FOREIGN, task=READER), sp.Domain("few", ROWS[:3])],
    )
    assert_equal_up_to_rounding(shift.in_domain.metrics, prompt.evaluate(ROWS))
    renamed = [{"text": row["body"], "label": {1: "neg", 5: "pos"}[row["stars"]]} for row in FOREIGN]  # type: ignore[index]
    abroad, few = shift.out_of_domain
    assert_equal_up_to_rounding(abroad.metrics, prompt.evaluate(renamed))
    assert [abroad.majority, few.majority] == pytest.approx([2 / 3, 2 / 3])
    plain = sp.fit(prompt.backbone, TASK, sp.ZeroShot(), ROWS, progress=False)
    assert_equal_up_to_rounding(abroad.zero_shot, plain.evaluate(renamed))
    outside = (abroad.metrics["accuracy"] + few.metrics["accuracy"]) / 2
    assert shift.drop == pytest.approx(shift.in_domain.metrics["accuracy"] - outside)
    assert [(r["domain"], r["in_domain"], r["score"], r["rows"]) for r in shift.records()] == [
        ("home", True, shift.in_domain.metrics["accuracy"], 16),
        ("abroad", False, abroad.metrics["accuracy"], 3),
        ("few", False, few.metrics["accuracy"], 3),
    ]


def test_zero_shot_can_be_left_out_and_heads_have_none() -> None:
    domains: Any = (sp.Domain("home", ROWS), [sp.Domain("abroad", ROWS[:4])])
    shift = sp.evaluate_domains(tuned(), *domains, zero_shot=False)
    assert [record["zero_shot"] for record in shift.records()] == [None, None]
    task = sp.SequenceClassification("{text}", labels=["neg", "pos"])
    head = sp.fit(tiny_backbone(), task, sp.PromptTuning(length=2), ROWS, steps=1, progress=False)
    assert sp.evaluate_domains(head, *domains).in_domain.zero_shot is None


def test_zero_shot_beside_full_tuning_needs_the_frozen_backbone() -> None:
    prompt = tuned(sp.FullTuning(), learning_rate=1e-3)
    domains: Any = (sp.Domain("home", ROWS), [sp.Domain("abroad", ROWS[:4])])
    with pytest.raises(ValueError, match=r"full-tuning changed its copy of the backbone.*backbone="):
        sp.evaluate_domains(prompt, *domains)
    frozen = tiny_backbone()
    shift = sp.evaluate_domains(prompt, *domains, backbone=frozen)
    assert shift.in_domain.zero_shot == sp.fit(frozen, TASK, sp.ZeroShot(), ROWS, progress=False).evaluate(
        ROWS
    )


def test_a_domain_with_another_task_is_refused() -> None:
    other = replace(TASK, template="{text} is", columns={})
    with pytest.raises(ValueError, match="task of domain 'abroad' differs from the prompt's in template"):
        sp.evaluate_domains(tuned(), sp.Domain("home", ROWS), [sp.Domain("abroad", ROWS, task=other)])


def test_domains_need_names_of_their_own_and_a_target() -> None:
    with pytest.raises(ValueError, match=r"domains are \['home', 'home'\]"):
        sp.evaluate_domains(tuned(), sp.Domain("home", ROWS), [sp.Domain("home", ROWS)])
    with pytest.raises(ValueError, match="give one target or more"):
        sp.evaluate_domains(tuned(), sp.Domain("home", ROWS), [])


def test_without_a_prompt_the_slots_of_a_template_are_empty() -> None:
    task = replace(TASK, template="{soft:2} {text} sentiment")
    prompt = sp.fit(tiny_backbone(), task, sp.PromptTuning(length=2), ROWS, steps=1, progress=False)
    shift = sp.evaluate_domains(prompt, sp.Domain("home", ROWS), [sp.Domain("abroad", ROWS[:4])])
    bare = sp.fit(
        prompt.backbone, replace(TASK, template=" {text} sentiment"), sp.ZeroShot(), ROWS, progress=False
    )
    assert_equal_up_to_rounding(shift.in_domain.zero_shot, bare.evaluate(ROWS))
