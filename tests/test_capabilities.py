"""The page of capabilities is what the code says, and what happens: each cell is tried on a tiny model."""

from __future__ import annotations

import functools
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from docs.tools.capabilities import KINDS, capabilities, capability_page, example
from softprompt import SequenceClassification, fit, methods
from softprompt.backbones.base import Backbone
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.prompts import Method
from softprompt.tasks.base import Task
from tests.fitting import test_one_encoder_decoders as seq2seq
from tests.test_heads import ROWS, TASKS
from tests.tiny import dual as tiny_dual
from tests.tiny import image_text as tiny_image_text
from tests.tiny import vision as tiny_vision
from tests.tiny.encoders import encoder_backbone
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer
from tests.tiny.task import TASK, tiny_backbone

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "capabilities.md"
CLOZE = replace(TASK, template="{soft} {text} sentiment {mask}.")
HEARD = SequenceClassification("{soft}{bos} mood", labels=["neg", "pos"], media="audio")
LOOKED = SequenceClassification("{image}{text} mood", labels=["neg", "pos"])
COMPARED = (
    tiny_dual.TASK.with_labels(["red", "blue"]),
    replace(tiny_dual.TASK, soft_template="{soft} {}, a {domain} film.", domains=["good", "bad"]),
)
CELLS = [(method, kind) for method in sorted(methods()) for kind in KINDS]
PREFIXES = ("prefix-tuning", "p-tuning-v2")


@functools.cache
def backbone_of(kind: str) -> Backbone:
    """A tiny float32 backbone of this kind, with biases, which BitFit needs."""
    dtype = torch.float32
    match kind:
        case "prefix LM":
            model = tiny_causal_lm("opt", dtype=dtype).requires_grad_(False)
            return CausalBackbone(model, tiny_tokenizer(), prefix_lm=True)
        case "state-space LM":
            tokenizer = tiny_tokenizer()
            config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4)
            mamba = MambaForCausalLM(config).eval().requires_grad_(False)
            return CausalBackbone(mamba, tokenizer)
        case "images among text":
            return tiny_image_text.tiny_image_text_backbone("llava_onevision", dtype)
        case "encoder-decoder" | "speech":
            return seq2seq.backbone_of("whisper" if kind == "speech" else "bart", dtype=dtype)
        case "masked LM" | "text encoder":
            return encoder_backbone(head=kind == "masked LM", dtype=dtype)
        case "vision transformer":
            return tiny_vision.vision_backbone(dtype=dtype)
        case "dual encoder":
            return tiny_dual.dual_backbone(dtype=dtype)
    return tiny_backbone("opt", dtype=dtype)


def task_of(kind: str, method: type[Method]) -> tuple[Task, list[dict[str, Any]]]:
    if kind in ("vision transformer", "dual encoder"):
        headed = method.head_only or kind == "vision transformer"
        return tiny_vision.TASK if headed else COMPARED[method.name == "dapl"], tiny_vision.ROWS[:4]
    if kind == "images among text":
        task: Task = LOOKED if method.head_only else replace(TASK, template="{image}{soft}{text} sentiment")
        return task, [{**row, "image": tiny_image_text.noise(i)} for i, row in enumerate(ROWS[:4])]
    if kind == "speech":
        return HEARD if method.head_only else seq2seq.HEARD, seq2seq.SOUNDS[:4]
    if method.head_only or kind == "text encoder":
        return TASKS["sequence"], ROWS[:4]
    return CLOZE if kind == "masked LM" else TASK, ROWS[:4]


def settings_of(kind: str, method: type[Method]) -> Method:
    """The defaults, at a size for tiny models; on what has no words of its own to start from, as the page says."""
    names = {field.name for field in fields(cast(Any, method))}
    small = {"length": 2, "hidden": 8, "bottleneck": 2, "top_k": 2, "shots": 2, "domain_length": 2}
    found: dict[str, Any] = {name: value for name, value in small.items() if name in names}
    if kind == "vision transformer" and "init" in names:
        found["init"] = "random" if method.name in PREFIXES else "uniform"
    if kind == "speech" and method.name in PREFIXES:
        found["init"] = "random"
    if kind == "state-space LM" and method.name == "lora":
        found["targets"] = ("in_proj",)
    if method.name == "dual-prompt":
        found |= {"general_layers": 1, "expert_layers": 1}
    return replace(cast(Any, example(method)), **found)


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == capability_page(), (
        "run: python -m docs.tools.capabilities > docs/reference/capabilities.md"
    )


def test_every_method_and_every_kind_is_in_the_table() -> None:
    found = capabilities()
    assert found.keys() == methods().keys()
    assert all(reasons.keys() == KINDS.keys() for reasons in found.values())
    assert found["prefix-tuning"]["state-space LM"]
    assert found["zero-shot"]["text encoder"]
    assert found["linear-probe"] == dict.fromkeys(KINDS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
@pytest.mark.parametrize(("name", "kind"), CELLS)
def test_a_cell_of_the_table_is_what_happens(name: str, kind: str) -> None:
    method = methods()[name]
    task, rows = task_of(kind, method)
    short: dict[str, Any] = {"steps": 1, "batch_size": 4, "progress": False}
    if reason := capabilities()[name][kind]:
        with pytest.raises(ValueError, match=re.escape(reason)):
            fit(backbone_of(kind), task, settings_of(kind, method), rows, **short)
        return
    tuned = fit(backbone_of(kind), task, settings_of(kind, method), rows, **short)
    assert not tuned.trained() or tuned.history[0]["gradient_norm"] > 0
