"""Models that no prompt can be trained through are refused before the first step, with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import softprompt as sp
from softprompt.backbones.spread import check_trainable, missing_gradient
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone


class Severed(nn.Module):
    """A layer whose kernel has no backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.inner(hidden)
        return found


class Shard(nn.Parameter):
    """A weight that says of itself what a DTensor says."""

    device_mesh = "a mesh of 2 processes"


def test_a_whole_model_is_trained_in_any_number_of_processes() -> None:
    model = tiny_causal_lm("llama")
    check_trainable(model, "tiny", 1)
    check_trainable(model, "tiny", 4)
    assert missing_gradient(model) is None


def test_kernels_without_backward_serve_and_are_not_trained_through(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_causal_lm("llama")
    model.lm_head = Severed(model.lm_head)
    assert "does not require grad" in str(missing_gradient(model))
    model.is_quantized = True
    with pytest.raises(ValueError, match="it can serve prompts, not be trained"):
        check_trainable(model, "tiny", 1)


def test_offloaded_layers_serve_a_prompt_and_are_refused_by_fit(tmp_path: Path) -> None:
    tuned = sp.fit(tiny_backbone(), TASK, sp.PromptTuning(length=2), ROWS, steps=1, warmup=0, progress=False)
    model: Any = tiny_causal_lm("llama")
    cpu_offload(model.model.layers[1], execution_device=torch.device("cpu"))
    backbone = sp.load_backbone(model, tokenizer=tiny_tokenizer())
    again = sp.load(tuned.save(tmp_path / "prompt"), backbone)
    assert again.predict(["film"]) == tuned.predict(["film"])
    with pytest.raises(ValueError, match=r"fetched for each call.*not be trained through. Load it quantised"):
        sp.fit(backbone, TASK, sp.PromptTuning(length=2), ROWS, steps=1, warmup=0, progress=False)


def test_sharded_weights_are_refused_where_processes_would_take_different_rows() -> None:
    model: Any = tiny_causal_lm("llama")
    model.lm_head.weight = Shard(model.lm_head.weight.detach(), requires_grad=False)
    check_trainable(model, "tiny", 1)
    with pytest.raises(ValueError, match=r"sharded over processes .*2 processes would each take their own"):
        check_trainable(model, "tiny", 2)


def test_deepspeed_partitions_are_refused() -> None:
    model: Any = tiny_causal_lm("llama")
    model.lm_head.weight.ds_id = 1
    with pytest.raises(ValueError, match=r"ZeRO-3.*load it without DeepSpeed"):
        check_trainable(model, "tiny", 1)
