"""All methods on images, one training step each, and what a cache of frozen features saves of it; see vision_prompts.

A step is what `fit` does with one batch: scores, loss, gradients, and one move of AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from benchmarks import harness, sides
from benchmarks.harness import Row
from benchmarks.sides import Outcome
from softprompt import (
    VPT,
    Adapter,
    BitFit,
    FullTuning,
    LinearProbe,
    LoRA,
    MLPProbe,
    PartialTuning,
    SideTuning,
)
from softprompt.backbones.vision import VisionBackbone
from softprompt.binding import trained_tensors
from softprompt.feature_cache import FeatureCache, with_features
from softprompt.model import HeadModel, PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.prompts import BuildContext, Method

CLASSES = 10

METHODS: Mapping[str, Method] = {
    "Linear": LinearProbe(),
    "MLP-3": MLPProbe(layers=2),
    "Partial-1": PartialTuning(),
    "Side": SideTuning(),
    "Bias": BitFit(),
    "Adapter": Adapter(),
    "LoRA": LoRA(targets=("q_proj", "v_proj")),
    "VPT-Shallow p=50": VPT(length=50, deep=False),
    "VPT-Deep p=50": VPT(length=50),
    "Full": FullTuning(),
}
"""The name of each in the table."""

CACHED = ("Linear", "Partial-1")


def training_step(
    backbone: VisionBackbone, rows: list[EncodedRow], method: Method, *, cached: bool = False
) -> Callable[[], Outcome]:
    """A step of a method over these images. cached: what is frozen was computed before, without being timed."""
    generator = torch.Generator().manual_seed(0)
    own = method.prepare(backbone, generator)
    head = method.head(own.spec.width, CLASSES, generator).to(own.device)
    module = method.build(BuildContext(own.spec, generator=generator)).to(own.device)
    parameters = list(trained_tensors(module, own.model, head).values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0)  # so that every step is the same
    labels = torch.arange(len(rows), device=own.device) % CLASSES
    model = HeadModel(PromptedModel(own, [module], [head]))
    if cached:
        rows = with_features(backbone, rows, method.frozen_layers(own.spec), FeatureCache())

    def run() -> Outcome:
        optimizer.zero_grad()
        outputs: Any = model.score(rows)
        loss = functional.cross_entropy(outputs.float(), labels)
        loss.backward()
        optimizer.step()
        first = next(parameter.grad for parameter in head.parameters() if parameter.grad is not None)
        return Outcome(loss.item(), first.detach().clone())

    return run


def cases(
    backbone: VisionBackbone, rows: list[EncodedRow], repetitions: int, only: str, *, memory: bool
) -> list[Row]:
    """Seconds of a cached step against the same without, VPT-Deep against full tuning, and a line for each method.

    memory: measure it too, of each method; on a CPU it is that of the whole process.
    """
    facts = {"batch": len(rows), "dtype": str(backbone.dtype).removeprefix("torch.")}
    made = []
    for name in CACHED:
        case = f"{name} cached"
        if only in case:
            steps = {
                side: training_step(backbone, rows, METHODS[name], cached=side == "ours")
                for side in ("ours", "peer")
            }
            made.append(sides.timed_pair(case, steps, repetitions, **facts))
    case = "VPT-Deep step against full fine-tuning"
    if only in case:
        steps = {name: training_step(backbone, rows, METHODS[name]) for name in ("VPT-Deep p=50", "Full")}
        seconds = harness.interleaved(steps, repetitions)
        made.append(harness.row_of_times(case, seconds["VPT-Deep p=50"], seconds["Full"], **facts))
    for name, method in METHODS.items():
        case = f"method {name}"
        if only in case:
            made += _line(
                case, training_step(backbone, rows, method), len(rows), repetitions, backbone, memory
            )
    return made


def _line(
    case: str,
    step: Callable[[], Outcome],
    batch: int,
    repetitions: int,
    backbone: VisionBackbone,
    memory: bool,
) -> list[Row]:
    seconds = harness.interleaved({"ours": step}, repetitions)["ours"]
    made = [harness.row_of_rates(case, batch, "images/s", seconds, [], batch=batch)]
    if memory:
        peak = harness.peak_extra_bytes(step, backbone.device)
        made.append(harness.row_of_memory(f"{case}, memory", peak, None))
    return made
