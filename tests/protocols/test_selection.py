"""Settings that are chosen on held-out training rows, and test rows that are read once per final run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.protocols import selection
from softprompt.protocols.selection import Candidate, candidates, divided, select_and_test
from tests.tiny.vision import ROWS, TASK, picture, vision_backbone

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

TEST = [
    {"image": picture(170, 70, 80, seed=50), "label": "red"},
    {"image": picture(70, 80, 170, seed=51), "label": "blue"},
]
QUICK = sp.Recipe(steps=2, batch_size=4, warmup=0)
STILL = Candidate(sp.LinearProbe(), sp.Recipe(steps=1, learning_rate=1e-9))
LEARNING = Candidate(sp.LinearProbe(), sp.Recipe(steps=40, batch_size=4, learning_rate=0.1))


def select(tried: list[Candidate], file: Path | None = None, **settings: Any) -> sp.Selection:
    settings = {"seeds": (0, 1), **settings}
    return select_and_test(vision_backbone(), TASK, tried, ROWS, TEST, held_out=0.25, file=file, **settings)


def test_a_grid_is_every_method_with_every_combination() -> None:
    methods = [sp.VPT(length=n) for n in (1, 5)]
    found = candidates(methods, QUICK, {"learning_rate": (0.1, 0.01), "weight_decay": (0.0, 0.1)})
    assert [(c.method.length, c.recipe.learning_rate, c.recipe.weight_decay) for c in found] == [  # type: ignore[attr-defined]
        (n, rate, decay) for n in (1, 5) for rate in (0.1, 0.01) for decay in (0.0, 0.1)
    ]
    assert candidates(methods[:1], QUICK) == [Candidate(methods[0], QUICK)]
    with pytest.raises(ValueError, match=r"a recipe has no settings \['length'\]"):
        candidates(methods, QUICK, {"length": (1, 2)})


def test_rows_are_divided_without_a_row_on_both_sides() -> None:
    rows = [{"n": n} for n in range(1000)]
    train, chosen_by = divided(rows, 0.2, seed=0)
    assert (len(train), len(chosen_by)) == (800, 200)
    assert sorted(row["n"] for row in (*train, *chosen_by)) == list(range(1000))
    assert divided(rows, 0.2, seed=0) == (train, chosen_by) != divided(rows, 0.2, seed=1)
    for share in (0.0, 1.0, 1e-4):
        with pytest.raises(ValueError, match="leaves rows on both sides"):
            divided(rows, share, seed=0)


def test_candidates_see_no_test_row_and_the_chosen_one_reads_them_once_per_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate, read, trained = sp.TunedPrompt.evaluate, [], []

    def noted(self: sp.TunedPrompt, rows: Any, **options: Any) -> Any:
        read.append([id(row["image"]) for row in rows])
        return evaluate(self, rows, **options)

    def fitted(backbone: Any, task: Any, method: Any, train: Any, **settings: Any) -> sp.TunedPrompt:
        trained.append((len(train), settings["recipe"].seed))
        return sp.fit(backbone, task, method, train, **settings)

    monkeypatch.setattr(sp.TunedPrompt, "evaluate", noted)
    monkeypatch.setattr(selection, "fit", fitted)
    found = select([STILL, LEARNING])
    held_out = [id(row["image"]) for row in divided(ROWS, 0.25, 0)[1]]
    test = [id(row["image"]) for row in TEST]
    assert read == [held_out, held_out, test, test]
    assert trained == [(12, 0), (12, 0), (16, 0), (16, 1)]
    assert found.chosen == 1
    assert [c["learning_rate"] for c in found.choices] == [1e-9, 0.1]
    assert [f["seed"] for f in found.finals] == [0, 1]
    assert all(f["test"] == f["test_accuracy"] and f["majority"] == 0.5 for f in found.finals)
    assert found.mean == sum(f["test"] for f in found.finals) / 2
    for record in (*found.choices, *found.finals):
        assert not any(isinstance(value, dict | list) for value in record.values())


def test_of_equal_candidates_the_smaller_learning_rate_is_chosen_then_the_earlier() -> None:
    recipes = [sp.Recipe(steps=1, learning_rate=rate) for rate in (1e-8, 1e-9, 1e-9)]
    recipes[2] = sp.Recipe(steps=1, learning_rate=1e-9, weight_decay=1e-9)
    found = select([Candidate(sp.LinearProbe(), recipe) for recipe in recipes], seeds=(0,))
    assert len({c["validation"] for c in found.choices}) == 1
    assert found.chosen == 1
    assert found.spread == 0


@pytest.mark.slow
def test_a_killed_study_resumes_and_a_larger_grid_adds_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, made = tmp_path / "runs.json", 0

    def counted(*arguments: Any, **settings: Any) -> sp.TunedPrompt:
        nonlocal made
        if made == 2:
            raise KeyboardInterrupt
        made += 1
        return sp.fit(*arguments, **settings)

    monkeypatch.setattr(selection, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        select([STILL, LEARNING], file)
    assert len(json.loads(file.read_text())) == 2
    made = -10
    found = select([STILL, LEARNING], file)
    assert made == -8
    assert select([STILL, LEARNING], file) == found
    assert made == -8
    more = select([Candidate(sp.VPT(length=1), QUICK), STILL, LEARNING], file)
    assert made in (-7, -5)  # the new candidate, and where it wins its final runs
    assert more.choices[1:] == found.choices
    with pytest.raises(ValueError, match=r"with other settings \(train rows, judged rows\)"):
        select([STILL, LEARNING], file, split_seed=1)


def test_only_so_many_rows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(backbone: Any, task: Any, method: Any, train: Any, **settings: Any) -> sp.TunedPrompt:
        counts.append(len(train))
        return sp.fit(backbone, task, method, train, **settings)

    monkeypatch.setattr(selection, "fit", counted)
    select([STILL], rows=8, seeds=(0,))
    assert counts == [6, 8]


@pytest.mark.parametrize(("tried", "seeds"), [([], (0,)), ([STILL], ())])
def test_no_candidates_and_no_seeds_are_refused(tried: list[Candidate], seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one of each at least"):
        select(tried, seeds=seeds)
