"""Backbone and prompts put together: what a task scores rows with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from softprompt.backbones.base import Backbone
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput, TargetLogits, TokenOffset
from softprompt.prompts.base import PromptModule


class PromptedModel:
    """A backbone behind one prompt, or behind several: then `row.prompt` says which one a row carries.

    While gradients are recorded the prompts are run in every call. Without gradients what all rows share is computed
    once and kept, until `forget` is called: do so whenever the prompts were trained on.
    """

    def __init__(
        self,
        backbone: Backbone,
        modules: Sequence[PromptModule],
        heads: Sequence[nn.Module | None] | None = None,
    ) -> None:
        """heads: of each prompt the head that its task is answered with, None where words answer."""
        self.backbone = backbone
        self.modules = list(modules)
        self.heads = [None] * len(self.modules) if heads is None else list(heads)
        self._kept: Any = None

    def prompt(self) -> PromptOutput:
        """All prompts as one output, on the backbone's device."""
        return stack_prompts([module() for module in self.modules])

    def score(self, rows: Sequence[EncodedRow]) -> TargetLogits:
        """Logits of the target tokens of each row."""
        if torch.is_grad_enabled():
            return self.backbone.score(rows, self.prompt())
        return self.backbone.score(rows, self._compiled(rows))

    def outputs(self, rows: Sequence[EncodedRow]) -> Tensor:
        """What the heads say at the rows' `read` positions, (n, outputs); a pooled row has one output.

        All rows must carry prompts whose heads have equally many outputs; rows of others by `states` and `apply_heads`.
        """
        return self.apply_heads(rows, self.states(rows))

    def states(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Last hidden states at the rows' `read` positions, (sum of len(row.read), d)."""
        if torch.is_grad_enabled():
            return self.backbone.states(rows, self.prompt())
        return self.backbone.states(rows, self._compiled(rows))

    def apply_heads(self, rows: Sequence[EncodedRow], states: Tensor) -> Tensor:
        """`outputs` of rows whose states are known. Raises ValueError for a prompt without a head."""
        states, owners = pool(rows, states)
        number = torch.tensor([rows[owner].prompt for owner in owners], device=states.device)
        found: list[tuple[Tensor, Tensor]] = []
        for prompt in sorted({row.prompt for row in rows}):
            head = self.heads[prompt]
            if head is None:
                raise ValueError(
                    f"prompt {prompt} was trained for words, and has no head that could answer this task"
                )
            mine = (number == prompt).nonzero()[:, 0]
            dtype = next(head.parameters()).dtype  # float32, whatever the backbone's precision
            found.append((mine, head(states[mine].to(dtype))))
        order = torch.cat([mine for mine, _ in found]).argsort()
        return torch.cat([outputs for _, outputs in found])[order]

    def generate(self, rows: Sequence[EncodedRow], **options: Any) -> list[list[int]]:
        """New token ids for each row."""
        with torch.no_grad():
            return self.backbone.generate(rows, self._compiled(rows), **options)

    def forget(self) -> None:
        """Drop what was kept of the prompts: they have changed."""
        self._kept = None

    def _compiled(self, rows: Sequence[EncodedRow]) -> Any:
        if self._kept is None or not _fits(self._kept, rows):
            self._kept = self.backbone.compile(rows, self.prompt())
        return self._kept


def _fits(compiled: Any, rows: Sequence[EncodedRow]) -> bool:
    """Whether each row begins with its prompt's compiled head, and that head is not empty for want of rows."""
    if not compiled.heads:  # a backbone that keeps nothing of the rows
        return True
    for row in rows:
        head = compiled.heads[row.prompt]
        if (
            (row.context[0] < 0 and not head)
            or min(row.read, default=len(row.context) - 1) < len(head)
            or row.context[: len(head)] != head
        ):
            return False
    return True


@dataclass(frozen=True)
class HeadModel:
    """A prompted model as training sees it where a head answers."""

    model: PromptedModel

    def score(self, rows: Sequence[EncodedRow]) -> Tensor:
        return self.model.outputs(rows)


def pool(rows: Sequence[EncodedRow], states: Tensor) -> tuple[Tensor, list[int]]:
    """States with those of each pooled row replaced by their mean, and the row that each belongs to."""
    owners = [b for b, row in enumerate(rows) for _ in row.read]
    if not any(row.pooled for row in rows):
        return states, owners
    groups: list[int] = []  # number of the output that each state goes into
    kept: list[int] = []
    for b, row in enumerate(rows):
        for i in range(len(row.read)):
            if i == 0 or not row.pooled:
                kept.append(b)
            groups.append(len(kept) - 1)
    where = torch.tensor(groups, dtype=torch.long, device=states.device)
    sums = states.new_zeros(len(kept), states.shape[1]).index_add(0, where, states)
    return sums / torch.bincount(where, minlength=len(kept))[:, None].to(states.dtype), kept


def stack_prompts(outputs: Sequence[PromptOutput]) -> PromptOutput:
    """Single prompts (G = 1 each) as one output with G = len(outputs), padded to the longest.

    Virtual tokens and key-value prefixes may share a batch: to the one the other is of length 0.
    Raises ValueError where prompts cannot stand in one batch: hidden-state prompts beside others.
    """
    if len(outputs) == 1:
        return outputs[0]
    if any(output.layers is not None or output.entry for output in outputs):
        raise ValueError("hidden-state prompts of layers cannot share a batch: split it by prompt")
    tokens = _stack_tokens(outputs)
    offset = _stack_offsets(outputs)
    prefix, lengths = None, None
    if any(output.prefix is not None for output in outputs):
        prefix, lengths = _stack_prefixes(outputs)
    elif tokens is not None:
        lengths = torch.tensor(
            [0 if o.tokens is None else o.tokens.shape[1] for o in outputs], device=tokens.device
        )
    return PromptOutput(
        tokens=tokens, prefix=prefix, offset=offset, lengths=lengths, token_offset=_token_offsets(outputs)
    )


def _stack_tokens(outputs: Sequence[PromptOutput]) -> Tensor | None:
    known = [o.tokens for o in outputs if o.tokens is not None]
    if not known:
        return None
    none = known[0].new_zeros(0, known[0].shape[-1])
    return pad_sequence(
        [none if o.tokens is None else o.tokens[0] for o in outputs], batch_first=True
    )  # (G, P, d)


def _stack_offsets(outputs: Sequence[PromptOutput]) -> Tensor | None:
    known = [o.offset for o in outputs if o.offset is not None]
    if not known:
        return None
    none = known[0].new_zeros(0, known[0].shape[-1])
    return pad_sequence(
        [none if o.offset is None else o.offset[0] for o in outputs], batch_first=True
    )  # (G, s, d)


def _token_offsets(outputs: Sequence[PromptOutput]) -> tuple[TokenOffset | None, ...] | None:
    if all(o.token_offset is None for o in outputs):
        return None
    return tuple(None if o.token_offset is None else o.token_offset[0] for o in outputs)


def _stack_prefixes(outputs: Sequence[PromptOutput]) -> tuple[tuple[KeyValue, ...], Tensor]:
    like = next(output.prefix for output in outputs if output.prefix is not None)
    none = tuple((key[:, :, :0], value[:, :, :0]) for key, value in like)
    prefixes = [none if output.prefix is None else output.prefix for output in outputs]

    def stack(layer: int, part: int) -> Tensor:
        sequences = [
            prefix[layer][part][0].transpose(0, 1) for prefix in prefixes
        ]  # (1, Hkv, P, D) -> (P, Hkv, D)
        return pad_sequence(sequences, batch_first=True).transpose(1, 2)  # (G, Hkv, P, D)

    lengths = torch.tensor([prefix[0][0].shape[2] for prefix in prefixes], device=like[0][0].device)
    return tuple((stack(i, 0), stack(i, 1)) for i in range(len(like))), lengths


def carrying(rows: Sequence[EncodedRow], prompt: int) -> list[EncodedRow]:
    """The rows with prompt number `prompt`."""
    return [replace(row, prompt=prompt) for row in rows]
