"""CoOp, CoCoOp and DAPL on a CLIP ViT-B/16-shaped random model: shared texts against whole texts of 77 tokens.

Letters: C classes, M context tokens, B images, d width of the text tower, e width of an embedding.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from benchmarks import harness, sides
from benchmarks.harness import Row
from benchmarks.sides import Outcome
from softprompt.backbones.dual.backbone import DualBackbone
from softprompt.backbones.precision import resolve_dtype
from softprompt.images import ImageRule
from softprompt.outputs import EncodedRow, PromptOutput

NAME = "clip_prompts"
COOP = ((24, 16), (24, 4), (100, 16), (100, 4), (1000, 4))
SLOW_COOP = ((1000, 16),)  # a step of the peer takes more than a minute on two cores
COCOOP = ((24, 4), (100, 4))
DAPL = ((12, 16), (65, 16))  # classes of VisDA and of Office-Home; as many tokens for all domains as of each
MEMORY = (24, 100, 1000)
AT_ONCE = 100
"""Classes that the peer runs at a time: a thousand whole texts do not fit into most memories."""
Steps = dict[str, Callable[[], Outcome]]
BEGIN, STOP, END = 49_406, 269, 49_407
TEXT: dict[str, Any] = {
    "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
    "vocab_size": 49_408, "max_position_embeddings": 77, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Setting(harness.DeviceSetting):
    """With the batches and classes of this benchmark."""

    def repetitions_of(self, classes: int) -> int:
        """Two with --quick, where the peer's steps are long; of a thousand classes one."""
        return self.repetitions if not self.quick or self.tiny else 2 if classes < 1000 else 1

    @property
    def coop(self) -> tuple[tuple[int, int], ...]:
        """C and M of CoOp's steps."""
        return COOP if self.quick or self.tiny else COOP + SLOW_COOP

    @property
    def batch(self) -> int:
        """B: the peer of CoCoOp runs all classes for each image."""
        return 2 if self.tiny or self.quick else 8

    def classes(self, count: int) -> int:
        return min(count, 12) if self.tiny else count


@cache
def backbone(setting: Setting) -> DualBackbone:
    text, vision = (part | SMALL if setting.tiny else part for part in (TEXT, VISION))
    if setting.tiny:
        vision = vision | {"image_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))
    model = model.to(setting.device, setting.dtype).eval().requires_grad_(False)
    rule = ImageRule((vision["image_size"],) * 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return DualBackbone(model, sides.word_tokenizer(), rule)


def texts(count: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Texts of a context and a name of one to four tokens, as those of ImageNet's classes are in CLIP's tokenizer."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        size = int(torch.randint(1, 5, (), generator=generator))
        name = torch.randint(300, 49_000, (size,), generator=generator).tolist()
        made.append((BEGIN, *range(-1, -1 - length, -1), *name, STOP, END))
    return tuple(made)


def images(setting: Setting, targets: tuple[tuple[int, ...], ...], count: int) -> list[EncodedRow]:
    """Images of noise beside these texts."""
    height, width = backbone(setting).vision.rule.size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)
    return [EncodedRow((), targets, media=image) for image in pixels]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_texts(setting: Setting, targets: Sequence[Sequence[int]], context: Tensor) -> Tensor:
    """(C, e) of length 1, by the model's own forward over 77 tokens for each. context (M, d)."""
    model: Any = backbone(setting).model
    ids = torch.zeros(len(targets), 77, dtype=torch.long, device=setting.device)
    for row, text in zip(ids, targets, strict=True):
        row[: len(text)] = torch.tensor([max(atom, 0) for atom in text])
    table = model.text_model.get_input_embeddings()
    embeds = table(ids)
    soft = context.to(embeds.dtype).expand(len(targets), -1, -1)
    embeds = torch.cat([embeds[:, :1], soft, embeds[:, 1 + len(context) :]], dim=1)  # (C, 77, d)
    handle = table.register_forward_hook(lambda *_: embeds)
    try:
        features = model.get_text_features(input_ids=ids).pooler_output
    finally:
        handle.remove()
    return functional.normalize(features.float(), dim=-1)


def coop_steps(setting: Setting, classes: int, length: int) -> Steps:
    """Forward and backward of all texts, behind one context."""
    width = backbone(setting).spec.width
    targets, start = texts(classes, length), (0.02 * noise(length, width, seed=1)).to(setting.device)
    direction = noise(classes, 512, seed=2).to(setting.device)
    rows = images(setting, targets, 1)

    def ours() -> Outcome:
        context = start.clone().requires_grad_()
        embedded = backbone(setting).score(rows, PromptOutput(tokens=context[None])).texts[0]
        loss = (embedded * direction).sum()
        loss.backward()
        assert context.grad is not None
        return Outcome(loss.item(), context.grad)

    def peer() -> Outcome:
        context, total = start.clone().requires_grad_(), 0.0
        for i in range(0, classes, AT_ONCE):
            part = slice(i, i + AT_ONCE)
            loss = (whole_texts(setting, targets[part], context) * direction[part]).sum()
            loss.backward()
            total += loss.item()
        assert context.grad is not None
        return Outcome(total, context.grad)

    return {"ours": ours, "whole texts": peer}


def cocoop_steps(setting: Setting, classes: int, length: int) -> Steps:
    """Forward and backward of all texts behind the context of each image."""
    width, count = backbone(setting).spec.width, setting.batch
    targets = texts(classes, length)
    start = (0.02 * noise(count, length, width, seed=1)).to(setting.device)
    direction = noise(count, classes, 512, seed=2).to(setting.device)
    rows = images(setting, targets, count)

    def ours() -> Outcome:
        contexts = start.clone().requires_grad_()
        prompt = PromptOutput(tokens=contexts, rows=torch.arange(count, device=setting.device))
        embedded = backbone(setting).score(rows, prompt)
        loss = (torch.stack([embedded.texts[n] for n in embedded.which]) * direction).sum()
        loss.backward()
        assert contexts.grad is not None
        return Outcome(loss.item(), contexts.grad)

    def peer() -> Outcome:
        contexts, total = start.clone().requires_grad_(), 0.0
        for context, own in zip(contexts, direction, strict=True):
            loss = (whole_texts(setting, targets, context) * own).sum()
            loss.backward()
            total += loss.item()
        assert contexts.grad is not None
        return Outcome(total, contexts.grad)

    return {"ours": ours, "one image at a time": peer}


def dapl_steps(setting: Setting, classes: int, length: int) -> Steps:
    """Forward and backward of all texts of both domains: M tokens that the domains share, then M of the domain."""
    width = backbone(setting).spec.width
    targets = texts(classes, 2 * length)
    start = (0.02 * noise(3, length, width, seed=1)).to(setting.device)  # shared, source, target
    direction = noise(2, classes, 512, seed=2).to(setting.device)
    rows = images(setting, 2 * targets, 1)

    def contexts(parts: Tensor) -> list[Tensor]:
        shared, *own = parts
        return [torch.cat([shared, domain]) for domain in own]

    def ours() -> Outcome:
        parts = start.clone().requires_grad_()
        prompt = PromptOutput(tokens=torch.stack(contexts(parts)), groups=2)
        embedded = backbone(setting).score(rows, prompt).texts[0]
        loss = (embedded.view(2, classes, -1) * direction).sum()
        loss.backward()
        assert parts.grad is not None
        return Outcome(loss.item(), parts.grad)

    def peer() -> Outcome:
        parts, total = start.clone().requires_grad_(), 0.0
        for n in range(2):
            loss = (whole_texts(setting, targets, contexts(parts)[n]) * direction[n]).sum()
            loss.backward()
            total += loss.item()
        assert parts.grad is not None
        return Outcome(total, parts.grad)

    return {"ours": ours, "whole texts": peer}


def evaluation_steps(setting: Setting, classes: int) -> Steps:
    """Two batches of images: texts kept, or run again for each batch as the released code does."""
    batch = 2 * setting.batch
    tower, width = backbone(setting), backbone(setting).spec.width
    targets = texts(classes, 4)
    context = (0.02 * noise(4, width, seed=1)).to(setting.device)

    def batches() -> list[list[EncodedRow]]:
        rows = images(
            setting, targets, 2 * batch
        )  # new each time: what is kept of an image is not asked for again
        return [rows[:batch], rows[batch:]]

    @torch.no_grad()
    def ours() -> Outcome:
        prompt = tower.compile([], PromptOutput(tokens=context[None]))
        scores = torch.cat([tower.score(part, prompt).scores() for part in batches()])
        return Outcome(scores.square().mean().item(), scores)

    @torch.no_grad()
    def peer() -> Outcome:
        scale: Any = tower.model.logit_scale
        found = []
        for part in batches():
            parts = [targets[i : i + AT_ONCE] for i in range(0, classes, AT_ONCE)]
            embedded = torch.cat([whole_texts(setting, some, context) for some in parts])
            found.append(tower.images(part) @ embedded.T * scale.float().exp())
        scores = torch.cat(found)
        return Outcome(scores.square().mean().item(), scores)

    return {"ours": ours, "whole texts": peer}


def step_memory(setting: Setting, classes: int, side: str) -> int | None:
    """Bytes that a step takes above what stands there."""
    coop_steps(setting, 2, 4)[side]()  # weights and code are touched
    return harness.peak_extra_bytes(coop_steps(setting, classes, 4)[side], setting.device)


def memory(setting: Setting, classes: int) -> Row:
    def peak(side: str) -> int | None:
        return harness.in_fresh_process(step_memory, setting, setting.classes(classes), side)

    # The peer's parts of a hundred would hide what more classes take.
    peer = peak("whole texts") if classes <= AT_ONCE else None
    return harness.row_of_memory(f"memory C={classes} M=4", peak("ours"), peer)


def measured(setting: Setting) -> list[Row]:
    made: list[Row] = []

    def measure(case: str, make: Callable[[Setting, int], Steps], count: int, **facts: Any) -> None:
        if setting.wants(case):
            classes = setting.classes(count)
            # Warmed up with a hundred where the peer's step of a thousand takes minutes.
            warm_ups = make(setting, AT_ONCE) if classes > AT_ONCE else None
            facts = {"classes": classes, **facts, **setting.facts}
            steps, repetitions = make(setting, classes), setting.repetitions_of(count)
            made.append(sides.timed_pair(case, steps, repetitions, facts, warm_ups))

    for count, m in setting.coop:
        measure(f"CoOp C={count} M={m}", partial(coop_steps, length=m), count)
    for count, m in COCOOP:
        step = partial(cocoop_steps, length=m)
        measure(f"CoCoOp C={count} M={m}", step, count, batch=setting.batch)
    for count, m in DAPL:
        measure(f"DAPL C={count} M={m}+{m}", partial(dapl_steps, length=m), count)
    measure("evaluation C=1000 M=4", evaluation_steps, 1000, images=4 * setting.batch)
    if harness.measures_memory(setting.device):
        made += [memory(setting, count) for count in MEMORY if setting.wants(f"memory C={count} M=4")]
    return made


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = harness.parser(
        NAME, "CoOp, CoCoOp and DAPL on a CLIP ViT-B/16-shaped random model: shared texts against whole ones."
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or auto")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    setting = Setting(options.quick, options.tiny, options.only, device, resolve_dtype(options.dtype, device))
    start = time.perf_counter()
    harness.report(NAME, measured(setting), argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
