"""The loss of prompts made of words: its gradient, the change that it predicts for other words, and many prompts at once.

P words of a prompt, C candidate prompts, R rows, A words that may be used, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.search.words import Vocabulary
from softprompt.tasks.base import TaskEncoder


def prompt_gradient(
    backbone: Backbone,
    encoder: TaskEncoder,
    rows: Sequence[EncodedRow],
    ids: Tensor,
    *,
    accumulation: int = 1,
) -> tuple[float, Tensor]:
    """Return the mean loss over rows with some words as prompt, and its gradient in their embeddings, (P, d) float32.

    Arguments:
        backbone: the frozen model
        encoder: the encoder of the task
        rows: rows encoded with their answers
        ids: (P,) the words of the prompt
        accumulation: the number of micro-batches; more of them need less memory and give the same gradient
    """
    tokens = backbone.spec.embed(ids).to(backbone.device).requires_grad_()
    total = 0.0
    with torch.enable_grad():
        for start in range(min(accumulation, len(rows))):
            share = rows[start::accumulation]
            losses = encoder.loss(backbone.score(share, PromptOutput(tokens=tokens[None])), share)  # (R,)
            loss = losses.sum() / len(rows)
            loss.backward()
            total += loss.item()
    assert tokens.grad is not None
    return total, tokens.grad


def linearised_changes(gradient: Tensor, ids: Tensor, words: Vocabulary) -> Tensor:
    """Return a first-order estimate of how the loss changes if the word at one position is replaced, (P, A).

    The estimate is (e_w - e_ids[p]) . gradient[p]. AutoPrompt ranks words by it (Shin et al. 2020, equation 2), and so does
    GCG, which writes it as the gradient in the one-hot vectors (Zou et al. 2023, algorithm 1). gradient (P, d), ids (P,).
    """
    own = (words.embed(ids).to(gradient) * gradient).sum(-1, keepdim=True)  # (P, 1)
    return words.dot(gradient) - own


@torch.no_grad()
def candidate_losses(
    backbone: Backbone,
    encoder: TaskEncoder,
    rows: Sequence[EncodedRow],
    candidates: Tensor,
    *,
    per_pass: int = 8,
) -> Tensor:
    """Return the mean loss over the rows with each candidate in the slots, (C,), float64.

    What passes share is run once. If the slots stand in front, a candidate is run once for all its rows; if each row's own
    text stands before the first slot, that text is run once for all candidates.

    Arguments:
        backbone: the frozen model
        encoder: the encoder of the task
        rows: R rows, encoded with their answers
        candidates: (C, P), the words of each candidate prompt
        per_pass: the number of candidates that are scored in one pass, which has per_pass * R rows
    """
    before = {row.context[: _first_slot(row)] for row in rows}
    found = []
    for chunk in candidates.split(per_pass):
        scored, prompt = (
            _in_front(backbone, rows, chunk) if len(before) == 1 else _behind(backbone, rows, chunk)
        )
        losses = encoder.loss(backbone.score(scored, prompt), scored)  # (C * R,)
        found.append(losses.double().view(len(chunk), len(rows)).mean(dim=1).cpu())
    return torch.cat(found)


def _first_slot(row: EncodedRow) -> int:
    return next((i for i, atom in enumerate(row.context) if atom < 0), len(row.context))


def _in_front(
    backbone: Backbone, rows: Sequence[EncodedRow], candidates: Tensor
) -> tuple[list[EncodedRow], PromptOutput]:
    """Make each candidate a prompt, so that it is run once for all rows."""
    count, length = candidates.shape
    tokens = backbone.spec.embed(candidates.flatten()).view(count, length, -1)  # (C * P, d) -> (C, P, d)
    scored = [replace(row, prompt=c) for c in range(count) for row in rows]
    return scored, PromptOutput(tokens=tokens.to(backbone.device))


def _behind(
    backbone: Backbone, rows: Sequence[EncodedRow], candidates: Tensor
) -> tuple[list[EncodedRow], PromptOutput]:
    """Make each row a prompt without virtual tokens, so that the text before its slots is run once for all candidates."""
    scored = [
        replace(row, context=substituted(row.context, ids), prompt=r)
        for ids in candidates.tolist()
        for r, row in enumerate(rows)
    ]
    # One row of zeros, which no row refers to, says how many prompts there are.
    return scored, PromptOutput(tokens=torch.zeros(len(rows), 1, backbone.spec.width, device=backbone.device))


def substituted(context: Sequence[int], ids: Sequence[int]) -> tuple[int, ...]:
    """Return the context of a row with words in place of its virtual tokens."""
    return tuple(atom if atom >= 0 else ids[-1 - atom] for atom in context)
