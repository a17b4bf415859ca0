"""All methods on images, one training step each, and what a cache of frozen features saves of it; see vision_prompts.

A step is what `fit` does with one batch: scores, loss, gradients, and one move of AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from benchmarks import harness, sides
from benchmarks.harness import Row
from benchmarks.sides import Outcome
from softprompt import (
    L2P,
    VPT,
    Adapter,
    BitFit,
    DualPrompt,
    FullTuning,
    LinearProbe,
    LoRA,
    MLPProbe,
    PartialTuning,
    SideTuning,
)
from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.features.cache import FeatureCache, with_features
from softprompt.images import POOLINGS
from softprompt.model import HeadModel, PromptedModel
from softprompt.outputs import EncodedRow, Penalized
from softprompt.prompts import BuildContext, Method
from softprompt.state import trained_tensors

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
    "L2P": L2P(bound=0.1),
    "DualPrompt": DualPrompt(bound=0.1),
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
    if module.pooling is not None:
        rows = [replace(row, read=(POOLINGS.index(module.pooling),)) for row in rows]
    if cached:
        rows = with_features(backbone, rows, method.frozen_layers(own.spec), FeatureCache())

    def run() -> Outcome:
        optimizer.zero_grad()
        outputs: Any = model.score(rows)
        answers, penalty = outputs, torch.zeros((), device=own.device)
        if isinstance(outputs, Penalized):
            answers, penalty = outputs.answers, outputs.penalty.mean()
        loss = functional.cross_entropy(answers.float(), labels) + penalty
        loss.backward()
        optimizer.step()
        first = next(parameter.grad for parameter in head.parameters() if parameter.grad is not None)
        return Outcome(loss.item(), first.detach().clone())

    return run


def extra_memory(backbone: VisionBackbone, rows: list[EncodedRow], name: str) -> int | None:
    """Bytes that a method and its first step take above the frozen model: copies of weights that it trains, gradients,
    AdamW's moments, and what is kept for backward."""
    training_step(backbone, rows, VPT(length=1))()  # weights and code are touched

    def build_and_step() -> Outcome:
        return training_step(backbone, rows, METHODS[name])()

    return harness.peak_extra_bytes(build_and_step, backbone.device)


def cases(
    backbone: VisionBackbone,
    rows: list[EncodedRow],
    repetitions: int,
    only: str,
    memory: Callable[[str], int | None] | None,
) -> list[Row]:
    """Seconds of a cached step against the same without, VPT-Deep against full tuning, and a line for each method.

    memory: what a method's step takes, by its name; none where that cannot be measured
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
            made.append(sides.timed_pair(case, steps, repetitions, facts))
    case = "VPT-Deep step against full fine-tuning"
    if only in case:
        steps = {name: training_step(backbone, rows, METHODS[name]) for name in ("VPT-Deep p=50", "Full")}
        seconds = harness.interleaved(steps, repetitions)
        made.append(harness.row_of_times(case, seconds["VPT-Deep p=50"], seconds["Full"], **facts))
    for name, method in METHODS.items():
        case = f"method {name}"
        if only not in case:
            continue
        step = training_step(backbone, rows, method)
        taken = harness.interleaved({"ours": step}, repetitions)["ours"]
        made.append(harness.row_of_rates(case, len(rows), "images/s", taken, [], **facts))
        if memory is not None:
            made.append(harness.row_of_memory(f"{case}, memory", memory(name), None))
    return made
