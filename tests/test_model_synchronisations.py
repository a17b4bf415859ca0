"""A training step asks a device for no value: it would wait until all that was queued is computed.

The model and the prompt are moved to the device "meta", which holds no values, so that asking for one is an error: `item`,
`tolist`, a truth value, `nonzero`, an index of truth values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import softprompt as sp
from softprompt.model import PromptedModel
from softprompt.tasks.reading import encode_rows
from tests.tiny.task import ROWS, TASK, tiny_backbone


def step(backbone: Any, task: Any, method: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Loss and gradient of a step, on the device without values."""
    tuned = sp.fit(backbone, task, method, rows, steps=1, progress=False)
    encoded = encode_rows(tuned.encoder, rows)
    module = (tuned.module if tuned.unbaked is None else tuned.unbaked).to("meta")
    head = None if tuned.head is None else tuned.head.to("meta")
    model = PromptedModel(backbone.with_model(backbone.model.to("meta")), [module], [head])
    trained = [*module.parameters(), *([] if head is None else head.parameters())]
    for parameter in trained:
        parameter.requires_grad_(True)
    outputs = model.score(encoded) if head is None else model.outputs(encoded)
    tuned.encoder.loss(outputs, encoded).mean().backward()
    assert all(parameter.grad is not None for parameter in trained)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
@pytest.mark.parametrize(
    "method",
    [
        sp.PromptTuning(length=2), sp.PrefixTuning(length=2), sp.PTuning(length=2), sp.PTuningV2(length=2), sp.DePT(length=2),
        sp.ADePT(length=2), sp.LowRankPromptTuning(length=4, rank=2),
    ],
    ids=lambda method: method.name,
)  # fmt: skip
def test_a_step_of_a_decoder_waits_for_nothing(method: Any) -> None:
    step(tiny_backbone(), TASK, method, ROWS)
