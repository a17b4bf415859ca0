"""What `predict` is given: a list of texts or rows, a data frame; never a single one, which would be taken apart."""

from __future__ import annotations

from typing import Any

import pandas
import pytest

import softprompt as sp
from tests.tiny.task import ROWS, TASK, tiny_backbone


@pytest.fixture(scope="module")
def tuned() -> sp.TunedPrompt:
    return sp.fit(tiny_backbone(), TASK, sp.ZeroShot(), ROWS, progress=False)


@pytest.mark.parametrize("given", ["a good film", {"text": "a good film"}, b"a good film"])
def test_a_single_input_is_refused_with_the_remedy(tuned: sp.TunedPrompt, given: Any) -> None:
    with pytest.raises(TypeError, match=r"one input was given .*pass \[input\]"):
        tuned.predict(given)


@pytest.mark.parametrize("given", [None, 3])
def test_what_is_no_list_is_said(tuned: sp.TunedPrompt, given: Any) -> None:
    with pytest.raises(TypeError, match=r"inputs are a .*, expected a list of texts, images or rows"):
        tuned.predict(given)


def test_a_data_frame_is_read_row_by_row(tuned: sp.TunedPrompt) -> None:
    texts = ["a good film", "the dog"]
    expected = tuned.predict(texts)
    assert tuned.predict(pandas.DataFrame({"text": texts})) == expected
    assert tuned.predict(iter(texts)) == expected
