"""Projection of a tuned prompt onto text: the words nearest to its virtual tokens, and the loss that this costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.binding import bind
from softprompt.data import Row, Rows, by_length, read_rows
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.search import nearest_surviving, searchable_words, survival_check, written_task
from softprompt.search.written import decode
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.tasks.room import Room
from softprompt.tuned import TunedPrompt


@dataclass(frozen=True)
class FoundPrompt:
    """A prompt of words.

    text       the text, as `ManualPrompt(text)` takes it
    token_ids  its tokens for the backbone's tokenizer, both alone and inside the template
    task       the task with the text in its template, without soft slots, for `ZeroShot()` or any other method; None if the
               task has no template
    cosines    the cosine of each word with the virtual token that it replaces
    loss       the mean loss with the text over the given rows, in nats; None if no rows were given
    soft_loss  the mean loss with the virtual tokens over the same rows
    """

    text: str
    token_ids: tuple[int, ...]
    task: Task | None
    cosines: tuple[float, ...]
    loss: float | None
    soft_loss: float | None


def project_prompt(
    tuned: TunedPrompt,
    rows: Rows | None = None,
    *,
    split: str | None = None,
    ascii_only: bool = True,
    batch_size: int = 16,
) -> FoundPrompt:
    """Return the words nearest to the virtual tokens by cosine, chosen so that the text is read as the same words again.

    A prompt that was searched for is its own projection. For a trained soft prompt the words are a hint at its meaning and
    seldom a prompt that works: compare `loss` with `soft_loss`.

    Arguments:
        tuned: the prompt
        rows: rows with their answers, on which both losses are measured. They also fill the template in the check that the
            words survive there; without rows a placeholder fills it
        split: the split of `rows`, if they have splits
        ascii_only: whether only words of printable ASCII are used
        batch_size: the number of rows in a batch

    Raises:
        ValueError: for a prompt that is more than virtual tokens, and if no near words survive
    """
    with torch.no_grad():
        output = tuned.module.bake()()
    if output.tokens is None or output.beside_tokens:
        raise ValueError(
            f"only virtual tokens can be compared with words, and {tuned.method.name} has "
            f"{'none' if output.tokens is None else 'more than these'}"
        )
    if tuned.head is not None:
        raise ValueError(
            f"{tuned.task.name} is answered by a head that was trained with the prompt: without it the words mean nothing"
        )
    backbone, task = tuned.backbone, tuned.task
    vectors = output.tokens[0].float()  # (1, P, d) -> (P, d)
    data: Sequence[Row] = [] if rows is None else read_rows(rows, split)
    probes = data or [{task.columns.get(name, name): "text" for name in task.fields}]

    def rebind(task: Task, virtual_tokens: int) -> TaskEncoder:
        return bind(backbone, task, Room(tuned.max_tokens, virtual_tokens))

    survives = survival_check(task, backbone.tokenizer, rebind, tuned.encoder, probes)
    known = getattr(tuned.module, "ids", None)
    if isinstance(known, Tensor):
        ids = known.cpu()
    else:
        ids = nearest_surviving(vectors, searchable_words(backbone, ascii_only=ascii_only), survives)
    words = backbone.spec.embed(ids)
    encoded = [tuned.encoder.encode(row) for row in data]
    return FoundPrompt(
        text=decode(backbone.tokenizer, ids.tolist()),
        token_ids=tuple(ids.tolist()),
        task=written_task(task, ids.tolist(), backbone.tokenizer),
        cosines=tuple(functional.cosine_similarity(words, vectors.cpu(), dim=-1).tolist()),
        loss=_mean_loss(tuned, encoded, words, batch_size) if data else None,
        soft_loss=_mean_loss(tuned, encoded, vectors, batch_size) if data else None,
    )


@torch.no_grad()
def _mean_loss(tuned: TunedPrompt, rows: Sequence[EncodedRow], tokens: Tensor, batch_size: int) -> float:
    prompt = PromptOutput(tokens=tokens[None].to(tuned.backbone.device))  # (P, d) -> (1, P, d)
    total = 0.0
    for batch in by_length([len(row.context) for row in rows], batch_size):
        share = [rows[i] for i in batch]
        total += tuned.encoder.loss(tuned.backbone.score(share, prompt), share).sum().item()
    return total / len(rows)
