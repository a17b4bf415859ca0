"""The plain path: every row with its prompt and one target, padded on the right. For models that cannot be packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits


def embed_atoms(model: PreTrainedModel, atoms: Sequence[int], prompt: PromptOutput, which: int) -> Tensor:
    """Input embeddings of one sequence of atoms carrying prompt `which`, (T, d)."""
    ids = torch.tensor([max(atom, 0) for atom in atoms], device=model.device)
    embeds = model.get_input_embeddings()(ids)
    if prompt.offset is not None:
        number = torch.tensor([a >= 0 for a in atoms], device=model.device).long().cumsum(0) - 1
        offset = prompt.offset[which]  # (s, d)
        inside = (
            (number >= 0)
            & (number < offset.shape[0])
            & torch.tensor([a >= 0 for a in atoms], device=number.device)
        )
        shift = offset[number.clamp(0, offset.shape[0] - 1)]
        embeds = embeds + torch.where(inside[:, None], shift, torch.zeros_like(shift)).to(embeds.dtype)
    soft = [i for i, atom in enumerate(atoms) if atom < 0]
    if soft and prompt.tokens is not None:
        slots = torch.tensor([-1 - atoms[i] for i in soft], device=model.device)
        virtual = prompt.tokens[which].index_select(0, slots).to(embeds.dtype)
        embeds = embeds.index_copy(0, torch.tensor(soft, device=model.device), virtual)
    return embeds


def padded_logits(model: PreTrainedModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> TargetLogits:
    """As CausalBackbone.score, by plain concatenation and right padding."""
    sequences: list[Tensor] = []
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
            number += 1
    logits = model(**_right_padded(sequences), use_cache=False).logits
    where = torch.tensor(places, device=model.device)

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=model.device)

    return TargetLogits(
        logits[where[:, 0], where[:, 1]],
        tensor(position),
        tensor(token),
        tensor(target),
        tuple(len(r.targets) for r in rows),
    )


def padded_states(model: PreTrainedModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
    """As CausalBackbone.states, by plain concatenation and right padding."""
    sequences = [embed_atoms(model, row.context, prompt, row.prompt) for row in rows]
    states = model.base_model(**_right_padded(sequences), use_cache=False).last_hidden_state
    places = [(b, i) for b, row in enumerate(rows) for i in row.read]
    where = torch.tensor(places, dtype=torch.long, device=model.device).view(-1, 2)
    return states[where[:, 0], where[:, 1]]  # (B, T, d) -> (n, d)


def _right_padded(sequences: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sequences (T, d) as one batch with its mask."""
    lengths = torch.tensor([len(s) for s in sequences], device=sequences[0].device)
    embeds = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)  # (B, T, d)
    mask = torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None]
    return {"inputs_embeds": embeds, "attention_mask": mask.long()}
