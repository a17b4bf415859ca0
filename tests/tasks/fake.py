"""A scorer whose next-token logits are a fixed random function of the tokens before: obvious, and slow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt.outputs import EncodedRow, TargetLogits


class FakeScorer:
    """Logits over `vocabulary` tokens. Remembers what it was asked; generates `answers` by context."""

    def __init__(self, vocabulary: int, answers: dict[tuple[int, ...], list[int]] | None = None) -> None:
        self.vocabulary = vocabulary
        self.answers = answers or {}
        self.batches: list[list[EncodedRow]] = []
        self.options: dict[str, Any] = {}
        self.grad_enabled: list[bool] = []

    def next_logits(self, before: Sequence[int], prompt: int = 0) -> Tensor:
        seed = random.Random(repr((tuple(before), prompt))).getrandbits(62)
        return torch.randn(
            self.vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )

    def log_likelihood(self, row: EncodedRow, target: Sequence[int]) -> Tensor:
        """log p(target | context), token by token."""
        before = list(row.context)
        total = torch.zeros((), dtype=torch.float64)
        for token in target:
            total = total + self.next_logits(before, row.prompt).log_softmax(0)[token]
            before.append(token)
        return total

    def score(self, rows: Sequence[EncodedRow]) -> TargetLogits:
        self.batches.append(list(rows))
        self.grad_enabled.append(torch.is_grad_enabled())
        logits, token, target, number = [], [], [], 0
        for row in rows:
            for ids in row.targets:
                for i, one in enumerate(ids):
                    logits.append(self.next_logits((*row.context, *ids[:i]), row.prompt))
                    token.append(one)
                    target.append(number)
                number += 1
        return TargetLogits(
            torch.stack(logits),
            torch.arange(len(logits)),
            torch.tensor(token),
            torch.tensor(target),
            tuple(len(row.targets) for row in rows),
        )

    def generate(self, rows: Sequence[EncodedRow], **options: Any) -> list[list[int]]:
        self.batches.append(list(rows))
        self.grad_enabled.append(torch.is_grad_enabled())
        self.options = options
        return [self.answers[row.context] for row in rows]
