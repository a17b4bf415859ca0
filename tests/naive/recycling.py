"""Linear recyclers by the normal equations."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_map(source_words: Tensor, target_words: Tensor, tokens: Tensor) -> Tensor:
    """(n, s), (n, t), (P, s) -> (P, t), for n >= s words that span the source's width."""
    gram = source_words.T @ source_words
    return tokens @ torch.linalg.inv(gram) @ source_words.T @ target_words


def linear_combination(source_words: Tensor, target_words: Tensor, tokens: Tensor) -> Tensor:
    """The same arguments; the shortest combinations of words that give the tokens exactly."""
    found = torch.zeros(len(tokens), target_words.shape[1], dtype=tokens.dtype)
    for i, token in enumerate(tokens):
        weights = source_words @ torch.linalg.inv(source_words.T @ source_words) @ token  # (n,)
        for weight, word in zip(weights, target_words, strict=True):
            found[i] += weight * word
    return found
