"""The memory figures of a run do not depend on earlier runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt.studies.environment import peak_memory, reset_peak

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux starts the peak anew")
def test_a_run_is_charged_with_what_it_adds_and_not_with_what_stood_there() -> None:
    kept = torch.ones(100 * MIB // 4)  # a backbone, say
    torch.ones(200 * MIB // 4)  # an earlier run, gone again
    before = reset_peak(CPU)["host_before"]
    assert before >= 4 * kept.numel()
    torch.ones(50 * MIB // 4)
    rise = peak_memory(CPU)["host"] - before
    assert 45 * MIB < rise < 90 * MIB


def test_where_the_peak_cannot_be_started_anew_no_rise_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, text: str) -> int:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "write_text", refused)
    assert reset_peak(CPU) == {}
