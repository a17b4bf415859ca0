"""Protocols as values: each gives the result of its function, and default settings are not part of a run's id."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.fitting.run_config import SourceConfig
from softprompt.protocols import (
    PROTOCOLS,
    BaseToNewProtocol,
    ClassIncrementalProtocol,
    DomainAdaptationProtocol,
    DomainShiftProtocol,
    FewShotProtocol,
    PlainProtocol,
    Protocol,
)
from softprompt.protocols.catalogue import parse_protocol
from tests.tiny.dual import dual_backbone
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tiny.vision import picture, vision_backbone

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

QUICK = sp.Recipe(steps=3, batch_size=4, warmup=0, seed=1)
PROMPT = sp.PromptTuning(length=2)
COLOURS = {"red": (200, 60, 60), "blue": (60, 60, 200), "green": (60, 200, 60), "grey": (128, 128, 128)}
PICTURES = [
    {"image": picture(*rgb, seed=seed), "label": name} for seed in range(4) for name, rgb in COLOURS.items()
]
NAMED = sp.ImageTextClassification(labels=list(COLOURS), template="a picture of a {}.")


def test_plain_is_a_fit_and_an_evaluation() -> None:
    tuned = sp.fit(tiny_backbone(), TASK, PROMPT, ROWS, ROWS[:8], recipe=QUICK, progress=False)
    found = PlainProtocol().run(tiny_backbone(), TASK, PROMPT, ROWS, ROWS[:6], ROWS[:8], recipe=QUICK)
    assert found.metrics["validation"] == tuned.metrics["validation"]
    assert found.metrics["test"] == tuned.evaluate(ROWS[:6])
    assert found.score == found.metrics["test"]["accuracy"]
    assert [record["loss"] for record in found.history] == [record["loss"] for record in tuned.history]
    assert (found.steps_made, found.trained_parameters) == (3, 2 * 48)
    without = PlainProtocol().run(tiny_backbone(), TASK, PROMPT, ROWS, validation=ROWS[:8], recipe=QUICK)
    assert without.score == found.metrics["validation"]["accuracy"]


@pytest.mark.slow
def test_few_shot_is_one_of_the_few_shot_runs() -> None:
    [record] = sp.few_shot_runs(
        tiny_backbone(), TASK, PROMPT, ROWS, ROWS[:6], shots=(2,), seeds=(1,), recipes=(QUICK,)
    )
    found = FewShotProtocol(2).run(tiny_backbone(), TASK, PROMPT, ROWS, ROWS[:6], recipe=QUICK)
    assert (found.score, found.metrics["validation"]["accuracy"]) == (record["test"], record["validation"])
    assert len(found.rows["train"]) == len(found.rows["validation"]) == 4
    own = FewShotProtocol(2).run(tiny_backbone(), TASK, PROMPT, ROWS, ROWS[:6], ROWS[:3], recipe=QUICK)
    assert own.rows["validation"] == ROWS[:3]


def test_domain_shift_is_an_evaluation_of_domains(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.jsonl"
    elsewhere = [{**row, "text": f"by the river {row['text']}"} for row in ROWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in elsewhere))
    protocol = DomainShiftProtocol(domains={"river": str(file)})  # type: ignore[dict-item]
    found = protocol.run(tiny_backbone(), TASK, PROMPT, ROWS, ROWS[:6], recipe=QUICK)
    assert found.prompt is not None
    shift = sp.evaluate_domains(
        found.prompt, sp.Domain("home", ROWS[:6]), [sp.Domain("river", str(file))], zero_shot=False
    )
    assert found.metrics["test"] == shift.in_domain.metrics
    assert found.metrics["river"] == shift.out_of_domain[0].metrics
    assert protocol.for_choosing() == PlainProtocol()
    few = DomainShiftProtocol(domains=protocol.domains, shots=2)
    assert few.for_choosing() == FewShotProtocol(2)
    assert len(few.run(tiny_backbone(), TASK, PROMPT, ROWS, ROWS[:6], recipe=QUICK).rows["train"]) == 4


def test_base_to_new_is_one_of_the_base_to_new_runs() -> None:
    runs = sp.base_to_new_runs(
        dual_backbone(), NAMED, sp.CoOp(length=2), PICTURES, PICTURES, shots=2, seeds=(1,), recipe=QUICK
    )
    found = BaseToNewProtocol(shots=2).run(
        dual_backbone(), NAMED, sp.CoOp(length=2), PICTURES, PICTURES, recipe=QUICK
    )
    [record], test = runs.records, found.metrics["test"]
    assert [test[name] for name in ("base", "new")] == [record["base"], record["new"]]
    assert found.score == record["harmonic_mean"]
    assert found.details.base_labels == ("red", "blue")


def test_class_incremental_is_a_class_incremental_run() -> None:
    task = sp.ImageClassification(labels=list(COLOURS))
    settings: dict[str, Any] = {"logits": "all", "rehearsal": sp.Rehearsal(size=1)}
    run = sp.class_incremental_run(
        vision_backbone(),
        task,
        sp.LinearProbe(),
        PICTURES,
        PICTURES,
        tasks=2,
        order_seed=1,
        recipe=QUICK,
        **settings,
    )
    protocol = ClassIncrementalProtocol(tasks=2, **settings)
    found = protocol.run(vision_backbone(), task, sp.LinearProbe(), PICTURES, PICTURES, recipe=QUICK)
    assert found.details.accuracy == run.accuracy
    assert found.score == run.metrics["final_average"]
    assert found.metrics["test"]["tasks"] == run.tasks
    assert [record["task"] for record in found.history] == [0] * 3 + [1] * 3
    validated = protocol.run(
        vision_backbone(), task, sp.LinearProbe(), PICTURES, validation=PICTURES, recipe=QUICK
    )
    assert validated.metrics["validation"] == found.metrics["test"]


def test_domain_adaptation_is_adapt(tmp_path: Path) -> None:
    for i, row in enumerate(PICTURES):
        row["image"].save(tmp_path / f"{i}.png")
    file = tmp_path / "target.jsonl"
    rows = [{"image": str(tmp_path / f"{i}.png"), "label": row["label"]} for i, row in enumerate(PICTURES)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapted = sp.adapt(
        dual_backbone(),
        NAMED,
        sp.CoOp(length=2),
        source=PICTURES,
        target=rows,
        test=PICTURES,
        threshold=0.2,
        recipes=(QUICK,),
    )
    protocol = DomainAdaptationProtocol(target=SourceConfig(str(file)), threshold=0.2)
    found = protocol.run(
        dual_backbone(), NAMED, sp.CoOp(length=2), PICTURES, PICTURES, recipe=QUICK, folder=tmp_path / "at"
    )
    assert found.score == adapted.metrics["accuracy"]
    assert found.metrics["test"]["mean_class_accuracy"] == adapted.metrics["mean_class_accuracy"]
    assert found.details.pseudo.counts == adapted.pseudo.counts  # type: ignore[union-attr]


EVERY: list[Protocol] = [
    PlainProtocol(),
    FewShotProtocol(4),
    DomainShiftProtocol(domains={"far": SourceConfig("far.csv", limit=3)}, shots=2),
    BaseToNewProtocol(),
    BaseToNewProtocol(shots=16),
    ClassIncrementalProtocol(tasks=5),
    ClassIncrementalProtocol(tasks=5, order="natural", rehearsal=sp.Rehearsal(size=2)),
    DomainAdaptationProtocol(target=SourceConfig("photos.csv"), threshold=0.7),
]


@pytest.mark.parametrize("protocol", EVERY, ids=repr)
def test_a_protocol_is_a_value_that_its_settings_describe(protocol: Protocol) -> None:
    values = json.loads(json.dumps(protocol.as_dict()))
    assert parse_protocol({"name": protocol.name, **values}) == protocol
    assert PROTOCOLS[protocol.name] is type(protocol)
    with pytest.raises(FrozenInstanceError):
        protocol.shots = 3  # type: ignore[attr-defined]


def test_settings_at_their_default_are_left_out() -> None:
    assert ClassIncrementalProtocol(tasks=5, logits="present").as_dict() == {"tasks": 5}
    assert DomainShiftProtocol(domains={"far": SourceConfig("far.csv")}).as_dict() == {
        "domains": {"far": {"source": "far.csv", "split": None, "limit": None}}
    }


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "protocol.name is missing; known are"),
        ({"name": "few-shots"}, "protocol.name is 'few-shots', which is not known; did you mean 'few-shot'"),
        (
            {"name": "class-incremental", "taks": 5},
            "unknown key 'protocol.taks'; did you mean 'tasks'",
        ),
        ({"name": "few-shot"}, "protocol.shots: "),
        ({"name": "few-shot", "shots": "4"}, "protocol.shots: Input should be a valid integer; found '4'"),
        ({"name": "domain-shift", "domains": {}}, "protocol.domains: "),
        (
            {"name": "domain-adaptation", "target": {"source": "a.csv", "limt": 3}},
            "protocol.target: unknown key 'limt'; did you mean 'limit'",
        ),
    ],
)
def test_what_describes_no_protocol_is_refused_in_the_words_of_the_file(
    values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        parse_protocol(values)


def test_wrong_settings_are_refused_from_python_too() -> None:
    with pytest.raises(ValueError, match="shots"):
        FewShotProtocol(shots=0)
    with pytest.raises(ValueError, match="neither test nor validation rows"):
        ClassIncrementalProtocol(tasks=2).run(
            vision_backbone(), sp.ImageClassification(labels=list(COLOURS)), sp.LinearProbe(), PICTURES
        )
