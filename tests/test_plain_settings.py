"""Settings that do not fit, in Python: ValueErrors of the library, without pydantic's words for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pydantic
import pydantic.dataclasses
import pytest

import softprompt as sp
from softprompt.protocols import FewShotProtocol
from softprompt.serving.settings import Settings


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: sp.PromptTuning(length=0), "PromptTuning: length: Input should be greater than 0; found 0"),
        (lambda: sp.PromptTuning(lenght=8), "PromptTuning has no setting 'lenght'; did you mean 'length'?"),  # type: ignore[call-arg]
        (lambda: sp.VPT(depth=3, nonsense=1), "no setting"),  # type: ignore[call-arg]
        (lambda: sp.Recipe(steps="many"), "Recipe: steps: Input should be a valid integer"),  # type: ignore[arg-type]
        (lambda: sp.Recipe(steps=0, batch_size=0), "steps: Input should be greater than or equal to 1; found 0\nbatch"),
        (lambda: sp.TextClassification(labels={"a": " a", "b": " b"}), "TextClassification: template: Field required"),  # type: ignore[call-arg]
        (lambda: sp.TextClassification("{text}", labels={"a": " a"}), "TextClassification: "),
        (lambda: FewShotProtocol(shots=0), "FewShotProtocol: shots: "),
        (lambda: Settings(max_rows=0), "Settings: max_rows: "),
        (lambda: dataclasses.replace(sp.PromptTuning(), length=0), "PromptTuning: length: "),
    ],
)  # fmt: skip
def test_wrong_settings_are_said_in_the_words_of_python(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^[A-Z]\w+") as raised:
        build()
    told = str(raised.value)
    assert said in told
    assert not any(word in told for word in ("pydantic", "validation error", "type=", "https://"))
    assert raised.value.__suppress_context__  # and no traceback shows them


def test_a_method_of_the_users_own_gets_the_same_errors() -> None:
    @pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
    class Wider(sp.PromptTuning):
        width: int = pydantic.Field(default=4, ge=1)

    with pytest.raises(ValueError, match="Wider has no setting 'widht'; did you mean 'width'"):
        Wider(widht=8)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"^Wider: width: Input should be greater"):
        Wider(width=0)
