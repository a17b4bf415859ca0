"""The plain path for models that cannot be packed: each row with its prompt and one target, padded on the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.backbones.causal.key_values import prefix_cache
from softprompt.backbones.engine import shifted, trunk_of
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits


def embed_atoms(model: PreTrainedModel, atoms: Sequence[int], prompt: PromptOutput, which: int) -> Tensor:
    """Input embeddings of one sequence of atoms, (T, d).

    model   that embeds them
    atoms   token ids, and -1 - k for virtual token k
    prompt  with the virtual tokens
    which   number of the prompt that the sequence carries
    """
    ids = torch.tensor([max(atom, 0) for atom in atoms], device=model.device)
    embeds = model.get_input_embeddings()(ids)
    is_text = torch.tensor([atom >= 0 for atom in atoms], device=model.device).long()
    number = is_text.cumsum(0) - is_text
    embeds = shifted(embeds, number, torch.full_like(number, which), prompt)
    soft = [i for i, atom in enumerate(atoms) if atom < 0]
    if soft and prompt.tokens is not None:
        slots = torch.tensor([-1 - atoms[i] for i in soft], device=model.device)
        virtual = prompt.tokens[which].index_select(0, slots).to(embeds.dtype)
        embeds = embeds.index_copy(0, torch.tensor(soft, device=model.device), virtual)
    return embeds


def padded_logits(model: PreTrainedModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> TargetLogits:
    """CausalBackbone.score by plain concatenation and padding on the right."""
    sequences: list[Tensor] = []
    carried: list[int] = []
    places: list[tuple[int, int]] = []
    position, token, target = [], [], []
    number = 0
    for row in rows:
        for tail in row.targets:
            atoms = row.context + tail[:-1]
            for j, word in enumerate(tail):
                position.append(len(places))
                places.append((len(sequences), len(row.context) - 1 + j))
                token.append(word)
                target.append(number)
            sequences.append(embed_atoms(model, atoms, prompt, row.prompt))
            carried.append(row.prompt)
            number += 1

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=model.device)

    return TargetLogits(
        logits=_at(model, _logits, sequences, carried, places, prompt),
        position=tensor(position),
        token=tensor(token),
        target=tensor(target),
        counts=tuple(len(row.targets) for row in rows),
    )


def padded_states(model: PreTrainedModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
    """CausalBackbone.states by plain concatenation and padding on the right."""
    sequences = [embed_atoms(model, row.context, prompt, row.prompt) for row in rows]
    places = [(b, i) for b, row in enumerate(rows) for i in row.read]
    return _at(model, _states, sequences, [row.prompt for row in rows], places, prompt)


def _logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    logits: Tensor = model(**inputs).logits
    return logits


def _states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    states: Tensor = trunk_of(model)(**inputs).last_hidden_state
    return states


def _at(
    model: PreTrainedModel,
    forward: Callable[..., Tensor],
    sequences: Sequence[Tensor],
    carried: Sequence[int],
    places: Sequence[tuple[int, int]],
    prompt: PromptOutput,
) -> Tensor:
    """The results of `forward` at some places, (B, T, n) -> (len(places), n).

    sequences  input embeddings
    carried    number of the prompt of each sequence
    places     (sequence, token) of each result
    prompt     with the key-value prefixes

    Sequences behind the same prefix run together: behind another one their text would begin at another position.
    """
    found: dict[int, Tensor] = {}
    for which in sorted(set(carried)) if prompt.prefix is not None else [None]:
        members = [i for i, owner in enumerate(carried) if which is None or owner == which]
        cache = None if which is None else prefix_cache(model, prompt, which, len(members))
        before = 0 if cache is None else cache.get_seq_length()
        lengths = torch.tensor([before + len(sequences[i]) for i in members], device=model.device)
        embeds = torch.nn.utils.rnn.pad_sequence([sequences[i] for i in members], batch_first=True)
        mask = torch.arange(before + embeds.shape[1], device=model.device) < lengths[:, None]  # (B, P + T)
        output = forward(
            model,
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        row = {sequence: b for b, sequence in enumerate(members)}
        mine = [(i, row[sequence], t) for i, (sequence, t) in enumerate(places) if sequence in row]
        number, b, t = torch.tensor(mine, dtype=torch.long, device=model.device).view(-1, 3).T
        found |= zip(number.tolist(), output[b, t], strict=True)
    return torch.stack([found[i] for i in range(len(places))]) if places else output[:0, 0]
