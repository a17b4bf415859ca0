"""Every method that is trained runs on every encoder-decoder on which it is defined, and the prompt comes back from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import softprompt as sp
from docs.tools.capabilities import capabilities
from tests.fitting.test_one_encoder_decoders import HEARD, SOUNDS, backbone_of
from tests.tiny.language import SEQ2SEQ, Seq2Seq
from tests.tiny.task import ROWS, TASK

METHODS = sorted(
    name
    for name, method in sp.methods().items()
    if method.__module__.startswith("softprompt.prompts.")
    and capabilities()[name]["encoder-decoder"] is None  # the same on speech models
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_method_trains_and_comes_back_from_a_file(architecture: Seq2Seq, name: str, tmp_path: Path) -> None:
    backbone = backbone_of(architecture, dtype=torch.float32)
    task, rows = (HEARD, SOUNDS) if architecture == "whisper" else (TASK, ROWS)
    prefix = name in ("prefix-tuning", "p-tuning-v2")
    # A speech model tells no keys and values of a text: they would depend on the sound.
    method = sp.methods()[name](**({"init": "random"} if prefix and architecture == "whisper" else {}))
    tuned = sp.fit(backbone, task, method, rows, steps=2, batch_size=4, progress=False)
    assert all(record["gradient_norm"] > 0 for record in tuned.history)
    tuned.save(tmp_path / "prompt")
    found = sp.load(tmp_path / "prompt", backbone).predict(rows[:3])
    for one, other in zip(found, tuned.predict(rows[:3]), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-5)
