"""A method's module against a naive implementation, through a backbone, in float64: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.outputs import EncodedRow, TokenOffset
from softprompt.prompts import BuildContext, Method, PromptModule
from tests.naive import causal as naive
from tests.tiny.task import TASK, tiny_backbone

Parts = tuple[Tensor, Tensor | None, TokenOffset | None]
"""tokens (P, d), offset (s, d), what is added to one word."""

WORDS = ((20, 21, 30), (20, 21, 31, 32, 33, 34, 35), (20, 21, 31))
TARGETS = ((40,), (41, 42), (41, 42, 43))


def rows_in_front(length: int, prompt: int = 0) -> list[EncodedRow]:
    """Texts of unequal length behind the whole prompt, each with three labels."""
    virtual = tuple(-1 - k for k in range(length))
    return [EncodedRow(virtual + words, TARGETS, prompt=prompt) for words in WORDS]


def rows_around(length: int) -> list[EncodedRow]:
    """The first virtual token in front, the others between the words."""
    rest = tuple(-1 - k for k in range(1, length))
    return [EncodedRow((-1, *words[:2], *rest, *words[2:]), TARGETS) for words in WORDS]


def built(method: Method, backbone: CausalBackbone | None = None, seed: int = 0) -> PromptModule:
    """The module that a method builds for the tiny task."""
    backbone = backbone or tiny_backbone()
    rows = [EncodedRow(words, TARGETS) for words in WORDS]
    generator = torch.Generator().manual_seed(seed)
    return method.build(BuildContext(backbone.spec, TASK.label_words, lambda: rows, generator))


def moved(module: PromptModule) -> PromptModule:
    """The module in float64 with every parameter away from its start, so that none is zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return module.double()


def assert_equals_naive(
    module: PromptModule,
    parts: Callable[[Mapping[str, Tensor]], Parts],
    rows: list[EncodedRow],
    idle: str = "none",
) -> None:
    """Log-likelihoods of every target token, and the gradient of every parameter, to 1e-10.

    Every parameter must have a gradient but those with `idle` in their name.
    """
    backbone = tiny_backbone()
    leaves = dict(module.named_parameters())
    found = backbone.score(rows, module()).token_log_likelihoods()
    tokens, offset, token_offset = parts(dict(module.named_buffers()) | leaves)
    expected = torch.cat([
        naive.target_log_likelihood(backbone.model, row, target, tokens, offset, token_offset)
        for row in rows for target in row.targets
    ])  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weights).sum(), list(leaves.values())) for x in (found, expected)]
    for name, ours, theirs in zip(leaves, *gradients, strict=True):
        assert idle in name or theirs.abs().max() > 0, name
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * scale, msg=name)
