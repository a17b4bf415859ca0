"""Base-to-new: which averages there are, and among which labels each half is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.data import few_shot
from softprompt.protocols import base_and_new, harmonic_mean, harmonic_means
from softprompt.protocols.base_to_new import BaseToNew
from tests.tiny.dual import dual_backbone
from tests.tiny.vision import picture
from tests.tolerances import assert_equal_up_to_rounding

COLOURS = {"red": (200, 60, 60), "blue": (60, 60, 200), "green": (60, 200, 60), "grey": (128, 128, 128)}
ROWS = [
    {"image": picture(*rgb, seed=seed), "label": name} for seed in range(4) for name, rgb in COLOURS.items()
]
pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

TASK = sp.ImageTextClassification(labels=list(COLOURS), template="a picture of a {}.")
QUICK = sp.Recipe(steps=2, batch_size=4)


def test_the_two_averages_of_h_are_those_of_a_hand_computation() -> None:
    assert harmonic_mean(0.8, 0.4) == pytest.approx(0.64 / 1.2)
    assert harmonic_mean(0.0, 0.0) == 0.0
    found = harmonic_means([(1.0, 0.5), (0.5, 0.0)])
    assert found["mean_of_harmonic_means"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["harmonic_mean_of_means"] == pytest.approx(2 * 0.75 * 0.25 / 1.0)
    records: Any = tuple(
        {"base": base, "new": new, "harmonic_mean": harmonic_mean(base, new)}
        for base, new in ((1.0, 0.5), (0.5, 0.0))
    )
    runs = BaseToNew(("a", "b"), ("c", "d"), records)
    assert (runs.base, runs.new) == (0.75, 0.25)
    assert runs.mean_of_harmonic_means == pytest.approx(1 / 3)
    assert runs.harmonic_mean_of_means == pytest.approx(0.375)
    with pytest.raises(ValueError, match="none below 0"):
        harmonic_mean(-0.1, 0.5)
    with pytest.raises(ValueError, match="no pairs"):
        harmonic_means([])


def test_of_an_odd_number_the_middle_class_is_a_base_class() -> None:
    assert base_and_new("abcde") == (("a", "b", "c"), ("d", "e"))
    with pytest.raises(ValueError, match="four are needed"):
        base_and_new("abc")


def test_each_half_is_judged_among_its_own_classes_by_a_prompt_of_the_base_classes(tmp_path: Path) -> None:
    backbone = dual_backbone()
    settings: Any = {"shots": 2, "seeds": (0, 1), "recipe": QUICK, "file": tmp_path / "runs.json"}
    found = sp.base_to_new_runs(backbone, TASK, sp.CoOp(length=2), ROWS, ROWS[:8], **settings)
    assert (found.base_labels, found.new_labels) == (("red", "blue"), ("green", "grey"))
    base = TASK.with_labels(["red", "blue"])
    mine = [row for row in ROWS if row["label"] in base.labels]
    for seed, record in enumerate(found.records):
        drawn = few_shot(mine, 2, "label", seed)
        tuned = sp.fit(
            backbone, base, sp.CoOp(length=2), drawn, recipe=replace(QUICK, seed=seed), progress=False
        )
        assert record["base"] == tuned.evaluate([r for r in ROWS[:8] if r in mine])["accuracy"]
        other = tuned.with_labels(["green", "grey"])
        assert record["new"] == other.evaluate([r for r in ROWS[:8] if r not in mine])["accuracy"]
        assert record["harmonic_mean"] == harmonic_mean(record["base"], record["new"])
    again = sp.base_to_new_runs(backbone, TASK, sp.CoOp(length=2), ROWS, ROWS[:8], **settings)
    assert again == found


def test_what_cannot_serve_new_classes_is_refused() -> None:
    backbone = dual_backbone()
    head: Any = sp.ImageClassification(labels=list(COLOURS))
    with pytest.raises(ValueError, match="base-to-new takes ImageTextClassification"):
        sp.base_to_new_runs(backbone, head, sp.LinearProbe(), ROWS, ROWS)
    specific = sp.CoOp(length=2, class_specific=True)
    with pytest.raises(ValueError, match="a context of each base class serves no new ones"):
        sp.base_to_new_runs(backbone, TASK, specific, ROWS, ROWS, shots=None, recipe=QUICK)
    with pytest.raises(ValueError, match="no new rows"):
        sp.base_to_new_runs(backbone, TASK, sp.CoOp(length=2), ROWS, ROWS[:2], recipe=QUICK)


def test_a_saved_prompt_is_judged_on_data_sets_with_other_classes(tmp_path: Path) -> None:
    backbone = dual_backbone()
    task, rows = TASK.with_labels(["red", "blue"]), [r for r in ROWS if r["label"] in ("red", "blue")]
    folder = sp.fit(backbone, task, sp.CoOp(length=2), rows, steps=2, warmup=0, progress=False).save(
        tmp_path / "prompt"
    )
    tuned = sp.load(folder, backbone)
    others = [r for r in ROWS if r["label"] not in ("red", "blue")]
    abroad = sp.Domain("others", others, task=replace(TASK.with_labels(["green", "grey"]), template="{}"))
    shift = sp.evaluate_domains(tuned, sp.Domain("home", rows), [abroad, sp.Domain("few", rows[:3])])
    [scores, few] = shift.out_of_domain
    assert_equal_up_to_rounding(scores.metrics, tuned.with_labels(["green", "grey"]).evaluate(others))
    assert_equal_up_to_rounding(few.metrics, tuned.evaluate(rows[:3]))
    assert scores.zero_shot is not None
    wrong = replace(task, soft_template="{} {soft}")
    with pytest.raises(ValueError, match="differs from the prompt's in soft_template"):
        sp.evaluate_domains(tuned, sp.Domain("home", rows), [sp.Domain("x", rows, task=wrong)])


def test_a_curve_over_shots_is_drawn_for_images_that_are_compared_with_texts() -> None:
    task, rows = TASK.with_labels(["red", "blue"]), [r for r in ROWS if r["label"] in ("red", "blue")]
    records = sp.few_shot_runs(
        dual_backbone(), task, sp.CoOp(length=2), rows, rows[:4], shots=(1, 2), seeds=(0,), recipes=[QUICK]
    )
    assert [record["shots"] for record in records] == [1, 2]
