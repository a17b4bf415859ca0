"""Domain adaptation: which target rows count, what they weigh, and that no target label is read before the test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import softprompt as sp
from softprompt.protocols import mean_class_accuracy, mixed_rows, pseudo_labels
from softprompt.protocols.domain_adaptation import WEIGHT
from tests.prompts.test_dapl import METHOD, TASK
from tests.tiny.dual import dual_backbone
from tests.tiny.vision import ROWS

pytestmark = pytest.mark.filterwarnings("ignore:every validation row:softprompt.SoftpromptWarning")

QUICK = sp.Recipe(steps=3, batch_size=4, warmup=0)
SOURCE, TARGET, TEST = ROWS[:4], ROWS[4:10], ROWS[10:]


def test_sure_rows_get_the_labels_that_the_frozen_backbone_gives_them() -> None:
    plain = sp.fit(dual_backbone(), TASK, sp.ZeroShot(), SOURCE, progress=False)
    found = [max(p.probabilities.items(), key=lambda i: i[1]) for p in plain.predict(TARGET)]
    threshold = sorted(share for _, share in found)[2]  # a probability of the threshold itself is enough
    pseudo = pseudo_labels(plain, TARGET, threshold=threshold)
    expected = [
        {"image": row["image"], "label": label, "domain": "old_house"}
        for row, (label, share) in zip(TARGET, found, strict=True)
        if share >= threshold
    ]
    assert list(pseudo.rows) == expected
    assert (len(expected), pseudo.asked, pseudo.kept) == (4, 6, pytest.approx(4 / 6))
    assert sum(pseudo.counts.values()) == 4


def test_weights_make_the_mean_over_all_rows_the_sum_of_both_means() -> None:
    rows = mixed_rows(TASK, SOURCE, TARGET, 0.5)
    assert [row["domain"] for row in rows] == ["good"] * 4 + ["old_house"] * 6
    assert [row[WEIGHT] for row in rows] == pytest.approx([10 / 4] * 4 + [0.5 * 10 / 6] * 6)
    assert [row[WEIGHT] for row in mixed_rows(TASK, SOURCE, ())] == [1.0] * 4
    assert mixed_rows(TASK, SOURCE, TARGET, 0) == mixed_rows(TASK, SOURCE, ())
    with pytest.raises(ValueError, match="0 source rows"):
        mixed_rows(TASK, [], TARGET)
    with pytest.raises(ValueError, match="target_weight -1"):
        mixed_rows(TASK, SOURCE, TARGET, -1)


def test_no_label_of_a_target_row_changes_what_is_learned() -> None:
    outcomes = []
    for labels in (["red"] * 6, ["blue"] * 6, [None] * 6, ["no such label"] * 6):
        target = [{**row, "label": label} for row, label in zip(TARGET, labels, strict=True)]
        found = sp.adapt(dual_backbone(), TASK, METHOD, SOURCE, target, TEST, threshold=0.51, recipes=[QUICK])
        outcomes.append(found)
    for other in outcomes[1:]:
        assert other.metrics == outcomes[0].metrics
        for name, tensor in other.prompt.module.state_dict().items():
            assert tensor.equal(outcomes[0].prompt.module.state_dict()[name])
    assert outcomes[0].selected_by == "last step"
    assert outcomes[0].pseudo is not None


def test_source_rows_choose_among_recipes_and_the_test_is_in_the_target_domain() -> None:
    recipes = [QUICK, replace(QUICK, learning_rate=0.1)]
    found = sp.adapt(
        dual_backbone(),
        TASK,
        METHOD,
        SOURCE,
        TARGET,
        TEST,
        validation=SOURCE,
        recipes=recipes,
        threshold=0.51,
    )
    assert found.selected_by == "source validation"
    weighted = replace(TASK, weight_column=WEIGHT)
    own = [{**row, "domain": "good"} for row in SOURCE]
    scores = []
    for recipe in recipes:
        assert found.pseudo is not None
        rows = mixed_rows(weighted, SOURCE, found.pseudo.rows)
        tuned = sp.fit(dual_backbone(), weighted, METHOD, rows, own, recipe=recipe, progress=False)
        scores.append(tuned.metrics["validation"]["accuracy"])
    assert found.recipe == max(range(2), key=scores.__getitem__)
    assert found.metrics["accuracy"] == found.prompt.evaluate(TEST)["accuracy"]
    assert found.metrics["mean_class_accuracy"] == mean_class_accuracy(found.metrics["confusion"])
    plain = sp.fit(dual_backbone(), TASK, sp.ZeroShot(), SOURCE, progress=False)
    assert found.zero_shot["accuracy"] == plain.evaluate(TEST)["accuracy"]


def test_where_no_row_is_sure_the_source_alone_is_trained_on_and_the_loss_is_finite() -> None:
    with pytest.warns(sp.SoftpromptWarning, match="none of 6 target rows"):
        none = sp.adapt(
            dual_backbone(), TASK, METHOD, SOURCE, TARGET, TEST, threshold=1 - 1e-12, recipes=[QUICK]
        )
    alone = sp.adapt(dual_backbone(), TASK, METHOD, SOURCE, TARGET, TEST, target_weight=0, recipes=[QUICK])
    assert alone.pseudo is None
    assert all(record["loss"] == record["loss"] for record in none.prompt.history)
    for name, tensor in none.prompt.module.state_dict().items():
        assert tensor.equal(alone.prompt.module.state_dict()[name])


def test_coop_without_domains_learns_from_the_source_or_from_both() -> None:
    task = sp.ImageTextClassification(labels=["red", "blue"])
    for weight in (0.0, 1.0):
        found = sp.adapt(
            dual_backbone(),
            task,
            sp.CoOp(length=2),
            SOURCE,
            TARGET,
            TEST,
            threshold=0.51,
            target_weight=weight,
            recipes=[QUICK],
        )
        assert found.metrics["rows"] == len(TEST)


def test_visdas_metric_is_the_mean_over_classes() -> None:
    confusion = {"a": {"a": 1, "b": 3, "c": 0}, "b": {"a": 0, "b": 2, "c": 0}, "c": {"a": 0, "b": 0, "c": 0}}
    assert mean_class_accuracy(confusion) == pytest.approx((0.25 + 1) / 2)
    with pytest.raises(ValueError, match="is empty"):
        mean_class_accuracy({})


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 60.0, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    plain = sp.fit(dual_backbone(), TASK, sp.ZeroShot(), SOURCE, progress=False)
    with pytest.raises(ValueError, match="expected a probability between 0 and 1"):
        pseudo_labels(plain, TARGET, threshold=threshold)
    with pytest.raises(ValueError, match="expected a probability between 0 and 1"):
        sp.adapt(dual_backbone(), TASK, METHOD, SOURCE, TARGET, TEST, threshold=threshold)


def test_what_cannot_be_adapted_or_chosen_is_named() -> None:
    backbone = dual_backbone()
    with pytest.raises(ValueError, match="2 recipes were given"):
        sp.adapt(backbone, TASK, METHOD, SOURCE, TARGET, TEST, recipes=[QUICK, QUICK])
    head: Any = sp.ImageClassification(labels=["red", "blue"])
    with pytest.raises(ValueError, match="domain adaptation takes ImageTextClassification"):
        sp.adapt(backbone, head, sp.LinearProbe(), SOURCE, TARGET, TEST)
    probe = sp.fit(backbone, head, sp.LinearProbe(), SOURCE, steps=1, progress=False)
    with pytest.raises(ValueError, match="labeller's task is image-classification"):
        pseudo_labels(probe, TARGET)
    plain = sp.fit(backbone, TASK, sp.ZeroShot(), SOURCE, progress=False)
    with pytest.raises(ValueError, match="no target rows"):
        pseudo_labels(plain, [])
