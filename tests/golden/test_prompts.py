"""Prompts that were saved at commit 3cfa151 load and give the same answers."""

from __future__ import annotations

import json

import pytest
import torch

import softprompt as sp
from tests.golden import runs
from tests.golden.cases import CASES, HERE
from tests.golden.models import backbone

FLOAT32 = ("decoder-dept", "dual-cocoop")  # products in float32 beside a backbone in float64


@pytest.mark.parametrize("name", CASES)
def test_a_saved_prompt_answers_as_it_did(name: str) -> None:
    case = CASES[name]
    tuned = sp.load(HERE / "prompts" / name, backbone(case.backbone))
    assert tuned.method == case.method
    assert tuned.task == case.task
    found = runs.predictions(tuned, case)
    expected = json.loads((HERE / "prompts" / f"{name}.json").read_text(encoding="utf-8"))
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    # Heads, offsets that a product of two matrices gives, and networks that read the image are float32 whatever the
    # backbone's precision.
    exact = tuned.backbone.dtype == torch.float64 and tuned.head is None and name not in FLOAT32
    for answer, known in zip(found, expected, strict=True):
        largest = max(known["probabilities"].values())
        tolerance = {"rel": 0, "abs": 1e-9 if exact else 1e-5 * largest}
        assert answer["probabilities"] == pytest.approx(known["probabilities"], **tolerance)
