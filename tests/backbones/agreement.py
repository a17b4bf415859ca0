"""Whether a causal backbone answers a batch as the plain model answers each row alone, on every path.

The judge is tests/naive: one row, one target at a time, no padding, no cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softprompt.backbones.causal import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import causal as naive
from tests.naive import prefix as naive_prefix

NEAR = 2e-5  # of the largest value: many models compute norms and softmax in float32, whatever their dtype
LABELS = ((40,), (41, 42), (41, 43, 44))
ROWS = [
    EncodedRow((-1, -2, -3, 20, 21, 30), LABELS, read=(5,)),
    EncodedRow((-1, -2, -3, 20, 21, 31, 32, 33, 34, 35, 36, 37), LABELS, read=(4, 11)),
    EncodedRow((-1, -2, -3, 20, 21, 38, 39, 50), LABELS[:1], read=(7,)),
]
NEW = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}


def virtual_tokens(backbone: CausalBackbone) -> Tensor:
    """(1, 3, d), which takes gradients."""
    table = backbone.table
    noise = torch.randn(1, 3, backbone.spec.width, generator=torch.Generator().manual_seed(1))
    return (noise * table.float().std()).to(table.dtype).requires_grad_()


def scores_agree(backbone: CausalBackbone, rows: list[EncodedRow] = ROWS) -> None:
    """Scores and their gradients are those of each row alone."""
    tokens = virtual_tokens(backbone)
    found = backbone.score(rows, PromptOutput(tokens=tokens)).token_log_likelihoods()
    expected = alone(backbone, rows, tokens)
    assert_near(found, expected)
    weights = torch.linspace(-1, 1, len(expected), dtype=expected.dtype)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), tokens)[0] for x in (found, expected))
    assert theirs.abs().max() > 0
    assert_near(ours, theirs)


def alone(backbone: CausalBackbone, rows: list[EncodedRow], tokens: Tensor) -> Tensor:
    """log p of all target tokens by plain passes."""
    found = []
    for row in rows:
        for target in row.targets:
            forget(backbone)
            found.append(naive.target_log_likelihood(backbone.model, row, target, tokens[0]))
    return torch.cat(found)


@torch.no_grad()
def forget(backbone: CausalBackbone) -> None:
    """Run a short text, which makes dynamic NTK forget longer ones."""
    backbone.model(input_ids=torch.tensor([[5]]), use_cache=False)


@torch.no_grad()
def states_agree(backbone: CausalBackbone) -> None:
    tokens = virtual_tokens(backbone)
    found = backbone.states(ROWS, PromptOutput(tokens=tokens))
    trunk = backbone.model.base_model
    trunk = backbone.model.model if trunk is backbone.model else trunk  # Llama 4
    expected = []
    for row in ROWS:
        inputs = naive.embed(backbone.model, row.context, tokens[0])[None]
        expected.append(trunk(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, list(row.read)])
    assert_near(found, torch.cat(expected))


@torch.no_grad()
def compiled_agree(backbone: CausalBackbone, rows: list[EncodedRow] = ROWS) -> None:
    """A prompt that was compiled for a short row serves all rows, one by one and in a batch."""
    tokens = virtual_tokens(backbone)
    compiled = backbone.compile(rows[:1], PromptOutput(tokens=tokens))
    expected = alone(backbone, rows, tokens)
    assert_near(backbone.score(rows, compiled).token_log_likelihoods(), expected)
    apart = [backbone.score([row], compiled).token_log_likelihoods() for row in rows]
    assert_near(torch.cat(apart), expected)


@torch.no_grad()
def prefixes_agree(backbone: CausalBackbone) -> None:
    """Rows behind a key-value prefix, where the model takes one."""
    shapes = backbone.spec.key_values
    if not shapes:
        return
    generator = torch.Generator().manual_seed(2)
    dtype = backbone.dtype
    pairs = [
        (
            torch.randn(1, heads, 3, size, generator=generator).to(dtype),
            torch.randn(1, heads, 3, size, generator=generator).to(dtype),
        )
        for heads, size in shapes
    ]
    rows = [EncodedRow(row.context[3:], row.targets) for row in ROWS]
    found = backbone.score(rows, PromptOutput(prefix=tuple(pairs))).token_log_likelihoods()
    expected = []
    for row in rows:
        for target in row.targets:
            logits = naive_prefix.logits(backbone.model, row.context + target[:-1], pairs).log_softmax(-1)
            start = len(row.context) - 1
            expected += [logits[start + j, word] for j, word in enumerate(target)]
    assert_near(found, torch.stack(expected))


@torch.no_grad()
def generation_agrees(backbone: CausalBackbone) -> None:
    """A batch of rows of different lengths is continued as each row alone, by a plain and by a compiled prompt."""
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    assert prompt.tokens is not None
    expected = [naive.greedy(backbone.model, row.context, prompt.tokens[0], 4) for row in ROWS]
    found = backbone.generate(ROWS, prompt, **NEW)
    assert found == expected, f"generated {found}, alone {expected}"
    found = backbone.generate(ROWS, backbone.compile(ROWS, prompt), **NEW)
    assert found == expected, f"generated behind the compiled prompt {found}, alone {expected}"


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR * max(scale, 1e-30))


CHECKS = {
    "scores": scores_agree,
    "states": states_agree,
    "compiled": compiled_agree,
    "prefixes": prefixes_agree,
    "generation": generation_agrees,
}
