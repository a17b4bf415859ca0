"""A backbone with its prompts and heads: the model that a task scores rows with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.outputs import EncodedRow, KeyValue, Penalized, PromptOutput, TokenOffset
from softprompt.prompts.base import PromptModule


class PromptedModel:
    """A backbone with one prompt or several; `row.prompt` says which one a row carries.

    While gradients are recorded, the prompts are run in every call. Without gradients, what all rows share is computed
    once and cached until `forget` is called; call it whenever the prompts were trained. Prompts that are functions of
    their rows are run in every call, and the features that they read, the frozen backbone's own states, are cached.
    """

    def __init__(
        self,
        backbone: Backbone,
        modules: Sequence[PromptModule],
        heads: Sequence[nn.Module | None] | None = None,
        features: RowFeatures | None = None,
    ) -> None:
        """Put a backbone and prompts together.

        backbone  the frozen model
        modules   one for each prompt
        heads     for each prompt the head that answers its task, None if words answer; by default no prompt has one
        features  cache of the backbone's features, for several models to share; by default the model has its own
        """
        self.backbone = backbone
        self.modules = list(modules)
        self.heads = [None] * len(self.modules) if heads is None else list(heads)
        self.features = RowFeatures(backbone) if features is None else features
        self._kept: Any = None

    @property
    def reads_rows(self) -> bool:
        """Whether a prompt is a function of its rows."""
        return any(module.reads is not None for module in self.modules)

    def prompt(self, rows: Sequence[EncodedRow] = ()) -> PromptOutput:
        """All prompts as one output, on the backbone's device. Prompts that are functions of their rows are those of `rows`."""
        if not self.reads_rows:
            return stack_prompts([module() for module in self.modules])
        members: dict[int, list[int]] = {}
        for b, row in enumerate(rows):
            members.setdefault(row.prompt, []).append(b)
        outputs = [self._output(self.modules[n], [rows[b] for b in mine]) for n, mine in members.items()]
        return join_prompts(outputs, list(members.values())) if outputs else PromptOutput()

    def _output(self, module: PromptModule, rows: Sequence[EncodedRow]) -> PromptOutput:
        output: PromptOutput = module() if module.reads is None else module(self.features(rows, module.reads))
        return output

    def score(self, rows: Sequence[EncodedRow]) -> Any:
        """The result of the backbone's `score`: TargetLogits, or ImageTextEmbeddings of a dual encoder."""
        if torch.is_grad_enabled():
            return self.backbone.score(rows, self.prompt(rows))
        return self.backbone.score(rows, self._compiled(rows))

    def outputs(self, rows: Sequence[EncodedRow]) -> Tensor:
        """The outputs of the heads at the rows' `read` positions, (n, outputs); a pooled row has one output.

        The heads of all rows' prompts must have equally many outputs; for others call `states` and `apply_heads`.
        """
        return self.apply_heads(rows, self.states(rows))

    def states(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Last hidden states at the rows' `read` positions, (sum of len(row.read), d)."""
        if torch.is_grad_enabled():
            return self.backbone.states(rows, self.prompt(rows))
        return self.backbone.states(rows, self._compiled(rows))

    def apply_heads(self, rows: Sequence[EncodedRow], states: Tensor) -> Tensor:
        """`outputs` of rows from their `states`. Raises ValueError for a prompt without a head."""
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

    def keep(self, compiled: Any) -> None:
        """Use prompts that were compiled elsewhere, in the order of `modules`, for all rows that begin as they do."""
        self._kept = compiled

    def forget(self) -> None:
        """Empty the cache of prompts, because they have changed."""
        self._kept = None

    def _compiled(self, rows: Sequence[EncodedRow]) -> Any:
        if self.reads_rows:
            return self.prompt(rows)
        kept = self._kept  # another thread may replace it by one for its own rows
        if kept is None or not _fits(kept, rows):
            kept = self._kept = self.backbone.compile(rows, self.prompt())
        return kept


def _fits(compiled: Any, rows: Sequence[EncodedRow]) -> bool:
    """Whether each row begins with the compiled head of its prompt, and the head was compiled for rows of this prompt."""
    if not compiled.heads:  # nothing that was compiled depends on the rows
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
    """A prompted model as training sees it if a head answers."""

    model: PromptedModel

    def score(self, rows: Sequence[EncodedRow]) -> Tensor | Penalized:
        prompt = self.model.prompt(rows)
        answers = self.model.apply_heads(rows, self.model.backbone.states(rows, prompt))
        return answers if prompt.penalty is None else Penalized(answers, prompt.penalty)


@dataclass(frozen=True)
class WordModel:
    """A prompted model as training sees it if words answer."""

    model: PromptedModel

    def score(self, rows: Sequence[EncodedRow]) -> Any:
        prompt = self.model.prompt(rows)
        answers = self.model.backbone.score(rows, prompt)
        return answers if prompt.penalty is None else Penalized(answers, prompt.penalty)


def pool(rows: Sequence[EncodedRow], states: Tensor) -> tuple[Tensor, list[int]]:
    """The states that heads read, the mean for each pooled row, and the number of the row that each belongs to."""
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
    counts = Counter(groups)
    sizes = torch.tensor([counts[g] for g in range(len(kept))], dtype=states.dtype, device=states.device)
    return sums / sizes[:, None], kept


def join_prompts(outputs: Sequence[PromptOutput], members: Sequence[Sequence[int]]) -> PromptOutput:
    """Join the outputs of several modules, each for its own rows of a batch. `rows` says which prompt each row carries.

    outputs  one for each module
    members  for each output the numbers of the rows that it is for

    Raises ValueError as `stack_prompts` does.
    """
    joined = stack_prompts(outputs)
    count = sum(len(mine) for mine in members)
    rows, start = torch.zeros(count, dtype=torch.long), 0
    penalty: Tensor | None = None
    for output, mine in zip(outputs, members, strict=True):
        rows[list(mine)] = start + (0 if output.rows is None else output.rows.cpu())
        start += output.count
        if output.penalty is not None:
            own = output.penalty.expand(len(mine))
            penalty = own.new_zeros(count) if penalty is None else penalty
            penalty = penalty.index_put((torch.tensor(mine, device=own.device),), own)
    return replace(joined, rows=rows, penalty=penalty)


def stack_prompts(outputs: Sequence[PromptOutput]) -> PromptOutput:
    """Stack the prompts of several outputs, padded to the longest; G is the sum of theirs. `rows` and `penalty` are dropped.

    Virtual tokens and key-value prefixes may share a batch: a prompt of one kind has length 0 in the other.
    Raises ValueError for prompts that cannot share a batch: hidden-state prompts beside prompts of another kind, or in
    other layers, or of other lengths.
    """
    if len(outputs) == 1:
        return outputs[0]
    if any(o.texts is not None or o.groups > 1 or o.vision is not None for o in outputs):
        raise ValueError(
            "contexts of single classes or domains and prompts of a vision tower cannot share a batch: split it by prompt"
        )
    layers, entry = _stack_layers(outputs)
    each = [one for output in outputs for one in _tokens_of(output)]
    tokens = _padded(each)  # (G, P, d)
    prefix, lengths = None, None
    if any(output.prefix is not None for output in outputs):
        prefix, lengths = _stack_prefixes(outputs)
    elif tokens is not None:
        lengths = torch.tensor([0 if one is None else len(one) for one in each], device=tokens.device)
    offset = _padded([one for output in outputs for one in _each(output.offset, output.count)])  # (G, s, d)
    return PromptOutput(
        tokens=tokens,
        prefix=prefix,
        layers=layers,
        offset=offset,
        lengths=lengths,
        token_offset=_token_offsets(outputs),
        entry=entry,
    )


def _each(tensor: Tensor | None, count: int) -> list[Tensor | None]:
    """The part of each of `count` prompts."""
    return [None] * count if tensor is None else [*tensor.expand(count, *tensor.shape[1:])]


def _tokens_of(output: PromptOutput) -> list[Tensor | None]:
    """The virtual tokens of each prompt, (P, d), without padding."""
    each = _each(output.tokens, output.count)
    if output.lengths is None or output.prefix is not None:
        return each
    return [None if one is None else one[:n] for one, n in zip(each, output.lengths.tolist(), strict=True)]


def _padded(sequences: Sequence[Tensor | None]) -> Tensor | None:
    """Pad sequences (P_g, d) to (G, P, d). None counts as length 0; the result is None if all are."""
    like = next((one for one in sequences if one is not None), None)
    if like is None:
        return None
    return pad_sequence([like[:0] if one is None else one for one in sequences], batch_first=True)


def _token_offsets(outputs: Sequence[PromptOutput]) -> tuple[TokenOffset | None, ...] | None:
    if all(o.token_offset is None for o in outputs):
        return None
    return tuple(f for o in outputs for f in o.token_offset or (None,) * o.count)


def _stack_layers(outputs: Sequence[PromptOutput]) -> tuple[tuple[Tensor, ...] | None, int]:
    """The hidden-state prompts of several outputs, per layer (G, P, d), and the layer whose input their tokens join."""
    shapes = {
        (o.entry, None if o.layers is None else tuple(layer.shape[1] for layer in o.layers)) for o in outputs
    }
    if len(shapes) > 1:
        raise ValueError(
            "hidden-state prompts of layers cannot share a batch with prompts of other lengths or in other layers:"
            " split it by prompt"
        )
    entry = outputs[0].entry
    if outputs[0].layers is None:
        return None, entry
    each = [[one.expand(o.count, -1, -1) for one in o.layers] for o in outputs if o.layers is not None]
    return tuple(torch.cat(layer) for layer in zip(*each, strict=True)), entry


def _stack_prefixes(outputs: Sequence[PromptOutput]) -> tuple[tuple[KeyValue, ...], Tensor]:
    like = next(output.prefix for output in outputs if output.prefix is not None)
    none = tuple((key[:1, :, :0], value[:1, :, :0]) for key, value in like)
    counts = [output.count for output in outputs]
    prefixes = [none if output.prefix is None else output.prefix for output in outputs]

    def stack(layer: int, part: int) -> Tensor:
        sequences = [
            one.transpose(0, 1)  # (Hkv, P, D) -> (P, Hkv, D)
            for prefix, count in zip(prefixes, counts, strict=True)
            for one in prefix[layer][part].expand(count, -1, -1, -1)
        ]
        return pad_sequence(sequences, batch_first=True).transpose(1, 2)  # (G, Hkv, P, D)

    stacked = tuple((stack(i, 0), stack(i, 1)) for i in range(len(like)))
    lengths: list[int] = []
    for output, prefix, count in zip(outputs, prefixes, counts, strict=True):
        length = max(key.shape[2] for key, _ in prefix)
        if any(
            key.shape[2] != min(length, whole.shape[2])
            for (key, _), (whole, _) in zip(prefix, stacked, strict=True)
        ):
            raise ValueError(
                "key-value prefixes whose layers differ in length cannot share a batch with longer prefixes: split it by prompt"
            )
        lengths += [length] * count if output.lengths is None else output.lengths.tolist()
    return stacked, torch.tensor(lengths, device=like[0][0].device)


def carrying(rows: Sequence[EncodedRow], prompt: int) -> list[EncodedRow]:
    """The rows with prompt number `prompt`."""
    return [replace(row, prompt=prompt) for row in rows]
