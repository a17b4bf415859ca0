"""A field that is added to a method, a task, a recipe and so on is left out of identities while it has its default."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

import softprompt as sp
from softprompt.later import LATER, later_fields
from softprompt.store.identity import settings_of
from tests.golden import runs
from tests.golden.cases import CASES, HERE, Case
from tests.golden.test_checkpoints import ends_alike, goes_on

FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=FORBID)
class LaterMethod(sp.PromptTuning):
    more: Annotated[int, LATER] = Field(default=1, gt=0)


@dataclass(frozen=True, config=FORBID)
class LaterTask(sp.TextClassification):
    more: Annotated[dict[str, int], LATER] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=FORBID)
class LaterRecipe(sp.Recipe):
    more: Annotated[float, LATER] = 0.5


@dataclasses.dataclass(frozen=True)
class LaterCase(Case):
    def recipe(self, **changes: Any) -> sp.Recipe:
        return LaterRecipe(**settings_of(super().recipe(**changes)))


def plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def test_a_later_field_is_in_an_identity_only_with_another_value() -> None:
    method = sp.PromptTuning(length=4)
    assert settings_of(LaterMethod(length=4)) == settings_of(method)
    assert settings_of(LaterMethod(length=4, more=2)) == {**settings_of(method), "more": 2}
    task = CASES["decoder-prompt-tuning"].task
    assert settings_of(LaterTask(**plain(task))) == settings_of(task)
    assert settings_of(LaterTask(**plain(task), more={"a": 1})) == {**settings_of(task), "more": {"a": 1}}
    assert settings_of(LaterRecipe(steps=5)) == settings_of(sp.Recipe(steps=5))
    assert settings_of(LaterRecipe(more=1)) == {**settings_of(sp.Recipe()), "more": 1}


@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_a_checkpoint_without_the_field_is_gone_on_with(tmp_path: Path) -> None:
    case = CASES["decoder-prompt-tuning"]
    later = LaterCase(
        case.backbone, LaterTask(**plain(case.task)), LaterMethod(**plain(case.method)), case.data
    )
    folder = shutil.copytree(HERE / "checkpoints" / "decoder-prompt-tuning", tmp_path / "checkpoint")
    seen = runs.Seen()
    tuned = runs.trained(later, folder, seen)
    goes_on(seen, 5)
    ends_alike(tuned, folder)

    other = dataclasses.replace(later, method=LaterMethod(**plain(case.method), more=2))
    with pytest.raises(sp.CheckpointError, match=r"method\.more is None in it and 2 now"):
        runs.trained(other, folder)


def test_fields_that_came_later_are_marked() -> None:
    """An unmarked one would give every run, checkpoint and study of before another identity."""
    known = json.loads((HERE / "fields.json").read_text(encoding="utf-8"))
    for kind in runs.kinds():
        if kind.__name__ in known:
            names, later = [field.name for field in dataclasses.fields(kind)], later_fields(kind)
            unmarked = [name for name in names if name not in known[kind.__name__] and name not in later]
            assert not unmarked, f"mark {kind.__name__}'s {unmarked} as softprompt.later says"
            assert set(known[kind.__name__]) <= set(names), kind.__name__


def test_a_later_field_needs_a_default() -> None:
    @dataclasses.dataclass
    class Wrong:
        more: Annotated[int, LATER]

    with pytest.raises(TypeError, match=r"Wrong\.more came later and has no default"):
        later_fields(Wrong)
