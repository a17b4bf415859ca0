"""What prompt parametrizations compute, the obvious way: one number, row or position at a time, from named tensors.

Each takes a module's `state_dict()` in float64 and gives the prompt's tokens (P, d), or an offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def dept_offset(state: State) -> Tensor:
    """Row i is c times the sum over k of A_ik B_k, with c = 8 / sqrt(r): (s, d)."""
    a, b = state["offset_a"], state["offset_b"]
    scale = 8 / math.sqrt(a.shape[1])
    rows = []
    for position in a:
        row = torch.zeros_like(b[0])
        for weight, direction in zip(position, b, strict=True):
            row = row + scale * weight * direction
        rows.append(row)
    return torch.stack(rows)


def adept_offset(state: State, word: Tensor) -> Tensor:
    """ReLU(E(x) A + a) B + b of one word, (d,)."""
    total = state["up_bias"]
    for k in range(state["down"].shape[1]):
        activation = torch.dot(word, state["down"][:, k]) + state["down_bias"][k]
        if activation > 0:
            total = total + activation * state["up"][k]
    return total


def p_tuning_tokens(state: State) -> Tensor:
    """Both directions of each LSTM layer step by step, then the MLP, then the constant."""
    states = list(state["embedding"])
    layer = 0
    while f"lstm.weight_ih_l{layer}" in state:
        ahead = _lstm(states, state, f"l{layer}")
        back = _lstm(states[::-1], state, f"l{layer}_reverse")[::-1]
        states = [torch.cat(pair) for pair in zip(ahead, back, strict=True)]
        layer += 1
    tokens = []
    for x in states:
        hidden = torch.relu(state["mlp.0.weight"] @ x + state["mlp.0.bias"])
        tokens.append(state["scale"] * (state["mlp.2.weight"] @ hidden + state["mlp.2.bias"]))
    return torch.stack(tokens)


def _lstm(inputs: list[Tensor], state: State, layer: str) -> list[Tensor]:
    size = len(state[f"lstm.bias_hh_{layer}"]) // 4
    h = c = torch.zeros(size, dtype=inputs[0].dtype)
    outputs = []
    for x in inputs:
        gates = state[f"lstm.weight_ih_{layer}"] @ x + state[f"lstm.bias_ih_{layer}"]
        gates = gates + state[f"lstm.weight_hh_{layer}"] @ h + state[f"lstm.bias_hh_{layer}"]
        put, forget, candidate, out = gates.split(size)
        c = forget.sigmoid() * c + put.sigmoid() * candidate.tanh()
        h = out.sigmoid() * c.tanh()
        outputs.append(h)
    return outputs


def residual_tokens(state: State) -> Tensor:
    """P + LN(W_up ReLU(W_down P)), token by token; the norm by its definition, with an eps of 1e-12."""
    tokens = []
    for i, token in enumerate(state["tokens"]):
        down = state["down"][min(i, len(state["down"]) - 1)]
        up = state["up"][min(i, len(state["up"]) - 1)]
        change = torch.relu(token @ down) @ up
        centred = change - change.mean()
        normed = centred / (centred.square().mean() + 1e-12).sqrt()
        tokens.append(token + normed * state["gain"] + state["bias"])
    return torch.stack(tokens)


def low_rank_tokens(state: State) -> Tensor:
    """Token i is the sum over k of A_ik B_k."""
    return torch.stack([
        torch.stack([weight * row for weight, row in zip(weights, state["right"], strict=True)]).sum(0)
        for weights in state["left"]
    ])  # fmt: skip


def ulpt_tokens(state: State, projection: Tensor) -> Tensor:
    """e_ij = (sum over k of z_ik p_kj) s_j + b_j, number by number."""
    rows = []
    for z in state["low"]:
        rows.append(
            torch.stack([
                torch.dot(z, projection[:, j]) * state["scale"][j] + state["shift"][j]
                for j in range(projection.shape[1])
            ])
        )  # fmt: skip
    return torch.stack(rows)
