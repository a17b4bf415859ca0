"""Visual prompts on a ViT-B/16-shaped random model and a real ViT-S/14: prompts as keys and values against concatenation;
L2P's queries kept against computed in every step; all methods.

Letters: B images, P prompt rows, L layers, d width.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from benchmarks import harness, sides, vision_methods
from benchmarks.harness import Row
from benchmarks.sides import Outcome
from softprompt import load_backbone
from softprompt.backbones.precision import resolve_dtype
from softprompt.backbones.row_features import RowFeatures
from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.images import POOLINGS, ImagePooling, ImageRule
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts import L2P, BuildContext

NAME = "vision_prompts"
LENGTHS = (50, 100, 200)
REAL = "vit-s14-saliency"
VIT_B16: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Setting(harness.DeviceSetting):
    """With the model, images and batches of this benchmark. pretrained: weights instead of random ones of ViT-B/16's shape."""

    pretrained: str = ""

    @property
    def of(self) -> str:
        """What the names of its cases end with."""
        return f", {self.pretrained}" if self.pretrained else ""

    @property
    def batch(self) -> int:
        """B: on a CPU few images already keep it busy."""
        if self.tiny:
            return 2
        return 64 if self.device.type == "cuda" else 4 if self.quick else 16


@cache
def backbone(setting: Setting, packed: bool) -> VisionBackbone:
    """The model behind one of the two paths; both share its weights."""
    model, rule = parts(setting)
    return VisionBackbone(model, rule, packed=packed)


@cache
def parts(setting: Setting) -> tuple[Any, ImageRule]:
    if setting.pretrained:
        found = load_backbone(setting.pretrained, dtype=setting.dtype, device=setting.device)
        assert isinstance(found, VisionBackbone)
        return found.model, found.rule
    shape = TINY if setting.tiny else VIT_B16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Any = ViTModel(ViTConfig(**shape), add_pooling_layer=False)
    made = made.to(setting.device, setting.dtype).eval().requires_grad_(False)
    return made, ImageRule((shape["image_size"],) * 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def images(setting: Setting, pooling: ImagePooling = "class") -> list[EncodedRow]:
    """B images of noise."""
    height, width = backbone(setting, True).rule.size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (setting.batch, 3, height, width), generator=generator).to(torch.uint8)
    return [EncodedRow((), read=(POOLINGS.index(pooling),), media=image) for image in pixels]


def step(setting: Setting, prompts: Tensor, *, packed: bool) -> Callable[[], Outcome]:
    """Forward and backward of one batch behind deep prompts, (L, P, d)."""
    tower, rows = backbone(setting, packed), images(setting)
    direction = torch.randn(prompts.shape[-1], generator=torch.Generator().manual_seed(2)).to(setting.device)

    def run() -> Outcome:
        own = prompts.clone().requires_grad_()
        layers = tuple(own[i : i + 1] for i in range(len(own)))
        # Not their mean square: behind a norm that is always 1.
        loss = (tower.states(rows, PromptOutput(layers=layers)).float() @ direction).square().mean()
        loss.backward()
        assert own.grad is not None
        return Outcome(loss.item(), own.grad)

    return run


def deep(setting: Setting) -> list[Row]:
    """Seconds a step of VPT-Deep, and on a GPU its memory, by prompt length."""
    made = []
    for length in LENGTHS:
        case = f"VPT-Deep p={length}{setting.of}"
        if not setting.wants(case):
            continue
        sizes = parts(setting)[0].config
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randn(sizes.num_hidden_layers, length, sizes.hidden_size, generator=generator)
        prompts = (0.04 * prompts).to(setting.device)  # the spread that VPT starts with
        steps = {
            "ours": step(setting, prompts, packed=True),
            "concatenation": step(setting, prompts, packed=False),
        }
        facts = {"batch": setting.batch, **setting.facts}
        made.append(sides.timed_pair(case, steps, setting.repetitions, facts))
        if setting.device.type == "cuda":
            peak = {name: harness.peak_extra_bytes(run, setting.device) for name, run in steps.items()}
            made.append(harness.row_of_memory(f"{case}, memory", peak["ours"], peak["concatenation"]))
    return made


class Recomputed(RowFeatures):
    """Queries the way L2P was released: the whole batch goes through all layers of the frozen model, in every step."""

    @torch.no_grad()
    def __call__(self, rows: Sequence[EncodedRow], pooling: ImagePooling) -> Tensor:
        read = (POOLINGS.index(pooling),)
        plain = [EncodedRow((), read=read, media=row.media) for row in rows]
        return self.backbone.states(plain, PromptOutput()).float()


def pool_model(setting: Setting, features: RowFeatures) -> PromptedModel:
    """L2P with the paper's sizes: ten prompts of five rows, of which an image carries five."""
    tower = backbone(setting, True)
    generator = torch.Generator().manual_seed(1)
    module = L2P(bound=0.1).build(BuildContext(tower.spec, generator=generator)).to(setting.device)
    return PromptedModel(tower, [module], features=features)


def pool_run(setting: Setting, features: RowFeatures, *, training: bool) -> Callable[[], Outcome]:
    """One batch of L2P: forward and backward, or in use the states alone."""
    model, rows = pool_model(setting, features), images(setting, "prompts")
    [module] = model.modules
    width = model.backbone.spec.width
    direction = torch.randn(width, generator=torch.Generator().manual_seed(2)).to(setting.device)

    def run() -> Outcome:
        module.zero_grad()
        with torch.set_grad_enabled(training):
            prompt = model.prompt(rows)
            states = model.backbone.states(rows, prompt).float()
            loss = (states @ direction).square().mean()
            if prompt.penalty is not None:
                loss = loss + prompt.penalty.mean()
        if training:
            loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        gradient = torch.cat([g.flatten() for g in gradients]) if gradients else states.flatten()
        return Outcome(loss.item(), gradient)

    return run


def pool(setting: Setting) -> list[Row]:
    """Seconds of a batch of L2P whose images were seen before, training and in use."""
    made = []
    for what, training in (("L2P train", True), ("L2P eval", False)):
        if not setting.wants(case := what + setting.of):
            continue
        runs = {
            "ours": pool_run(setting, RowFeatures(backbone(setting, True)), training=training),
            "recomputed": pool_run(setting, Recomputed(backbone(setting, False)), training=training),
        }
        facts = {"batch": setting.batch, **setting.facts}
        made.append(sides.timed_pair(case, runs, setting.repetitions, facts))
    return made


def extra_memory(setting: Setting, method: str) -> int | None:
    return vision_methods.extra_memory(backbone(setting, True), images(setting), method)


def methods(setting: Setting) -> list[Row]:
    """The cases of `vision_methods`."""

    def memory(method: str) -> int | None:
        return harness.in_fresh_process(extra_memory, setting, method)

    measures = memory if harness.measures_memory(setting.device) else None
    return vision_methods.cases(
        backbone(setting, True), images(setting), setting.repetitions, setting.only, measures
    )


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = harness.parser(
        NAME,
        "A ViT-B/16-shaped random model and a real ViT-S/14: VPT-Deep as keys and values against concatenation, L2P against"
        " queries that are computed in every step.",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or auto")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    setting = Setting(options.quick, options.tiny, options.only, device, resolve_dtype(options.dtype, device))
    start = time.perf_counter()
    rows = deep(setting) + pool(setting)
    if not setting.tiny:
        real = replace(setting, pretrained=REAL)
        rows += deep(real) + pool(real)
    rows += methods(setting)
    harness.report(NAME, rows, argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
