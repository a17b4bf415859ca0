"""The best probe among optima: each is the minimum that Newton's method finds, and C is chosen by validation rows."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import TextClassification, load
from softprompt.outputs import PromptOutput
from softprompt.protocols import probe_search
from softprompt.protocols.probe_search import _halve
from tests.features.test_cache import passes
from tests.naive import logistic as naive
from tests.tiny.encoders import encoder_backbone
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.vision import ROWS, TASK, vision_backbone

pytestmark = pytest.mark.filterwarnings("ignore:every validation:softprompt.SoftpromptWarning")


@pytest.mark.slow
@pytest.mark.parametrize("c", [1e-4, 0.3, 50.0])
def test_each_probe_is_the_optimum(c: float) -> None:
    backbone = vision_backbone()
    found = probe_search(backbone, TASK, ROWS, ROWS[:5], inverse_strengths=[c], halvings=0)
    [score] = found.scores
    assert score.c == c
    # Where a step changes the loss by less than float64 tells apart, the search ends: with a curvature of 1 / (C n) = 600
    # that is at a gradient of sqrt(2 * 600 * 2e-16), about 5e-7.
    assert score.gradient < 1e-6
    rows = [found.best.encoder.encode(row) for row in ROWS]
    states = torch.stack([backbone.states([row], PromptOutput())[0] for row in rows]).double()
    labels = [list(TASK.labels).index(row["label"]) for row in ROWS]
    weight, bias = naive.optimum(states, labels, len(TASK.labels), c)
    trained = found.best.trained()
    assert weight.abs().max() > 1e-6
    # The minimum curves by at least 1 / (C n): so far from it may such a gradient be.
    near = score.gradient * c * len(ROWS) + 1e-6
    torch.testing.assert_close(trained["head.weight"].double(), weight, rtol=2e-5, atol=near)
    # Nothing but the rows holds the bias.
    torch.testing.assert_close(trained["head.bias"].double(), bias, rtol=2e-5, atol=1e-4)


def test_c_is_chosen_by_the_validation_rows_and_the_backbone_runs_once(tmp_path: Path) -> None:
    backbone = vision_backbone()
    before = copy.deepcopy(backbone.model.state_dict())
    grid: dict[str, Any] = {"inverse_strengths": [100.0, 1e-6, 1.0], "halvings": 2, "iterations": 60}
    with passes(backbone) as seen:
        found = probe_search(backbone, TASK, ROWS[:8], ROWS[8:], **grid)
    assert sum(seen) == len(ROWS)
    best = max(score.score for score in found.scores)
    assert found.best.recipe["c"] == min(score.c for score in found.scores if score.score == best)
    assert (
        found.best.recipe["searched"] == len(found.scores) == 3 + 2
    )  # the second halving's ends were tried before
    assert found.best.evaluate(ROWS[8:])["accuracy"] == found.best.metrics["validation"]["accuracy"] == best
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = probe_search(backbone, TASK, ROWS[:8], ROWS[8:], **grid)
    assert again.scores == found.scores
    found.best.save(tmp_path / "probe")
    pictures = [row["image"] for row in ROWS]
    assert load(tmp_path / "probe", backbone).predict(pictures) == found.best.predict(pictures)


def test_a_range_about_the_best_is_halved_in_its_logarithm() -> None:
    tried: list[float] = []

    def nearness(c: float) -> float:
        return -abs(math.log10(c) - 2.6)

    def score(c: float) -> float:
        tried.append(c)
        return nearness(c)

    _halve(score, 100.0, 8)
    assert min(tried) == pytest.approx(10.0)
    assert max(tried) == pytest.approx(1000.0)
    assert math.log10(max(tried, key=nearness)) == pytest.approx(2.6, abs=2 / 2**7)


def test_mistakes_are_named() -> None:
    backbone = vision_backbone()
    for settings, message in (
        ({"inverse_strengths": []}, "expected one or more finite numbers above 0"),
        ({"inverse_strengths": [1.0, 0.0]}, "expected one or more finite numbers above 0"),
        ({"halvings": -1}, "halvings is -1"),
        ({"iterations": 0}, "iterations 0"),
    ):
        with pytest.raises(ValueError, match=message):
            probe_search(backbone, TASK, ROWS, ROWS, **settings)  # type: ignore[arg-type]
    words = TextClassification("{text}", labels={"a": "a", "b": "b"})
    with pytest.raises(ValueError, match="head"):
        probe_search(encoder_backbone(), words, TEXTS, TEXTS)
    with torch.no_grad():
        next(backbone.model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite for some training rows: load it with dtype"):
        probe_search(backbone, TASK, ROWS, ROWS)
