"""The page of capabilities is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt import fit, methods
from softprompt.capabilities import KINDS, capabilities, capability_page, example
from tests.test_heads import ROWS, TASKS
from tests.tiny_encoders import encoder_backbone

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "capabilities.md"


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == capability_page(), (
        "run: python -m softprompt.capabilities > docs/reference/capabilities.md"
    )


def test_every_method_and_every_kind_is_in_the_table() -> None:
    found = capabilities()
    assert found.keys() == methods().keys()
    assert all(reasons.keys() == KINDS.keys() for reasons in found.values())
    assert found["prefix-tuning"]["state-space LM"]
    assert found["zero-shot"]["text encoder"]
    assert found["linear-probe"] == dict.fromkeys(KINDS)


def test_a_method_that_is_not_defined_says_why_when_it_is_used() -> None:
    method = example(methods()["zero-shot"])
    with pytest.raises(ValueError, match="no words to answer with"):
        fit(encoder_backbone(head=False), TASKS["sequence"], method, ROWS, progress=False)
