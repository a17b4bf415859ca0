"""DAPL's loss the obvious way: one image and one whole text at a time, target rows without a sure pseudo-label masked out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.naive import dual

Texts = Sequence[tuple[int, ...]]


def loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Callable[[int, int], Tensor],
    texts: Sequence[Sequence[Texts]],
    plain: Sequence[Texts],
    source: Sequence[tuple[Tensor, int]],
    target: Sequence[Tensor],
    threshold: float,
    weight: float,
    everywhere: bool,
) -> Tensor:
    """L_s + weight L_u, ().

    contexts    domain and class -> (M1 + M2, d)
    texts       of each domain, source first, those of each class; plain: those of each class of the zero-shot model
    source      embeddings of images with their labels; target: embeddings of images
    everywhere  normalise over the texts of both domains
    """
    classes = range(len(plain))
    embedded = [
        [
            [dual.text_embedding(model, tokenizer, text, contexts(d, k)) for text in texts[d][k]]
            for k in classes
        ]
        for d in range(len(texts))
    ]
    untrained = [[dual.text_embedding(model, tokenizer, text, None) for text in own] for own in plain]

    def cross_entropy(image: Tensor, domain: int, label: int) -> Tensor:
        scores = [dual.scores(model, image, row).exp() for row in embedded]
        total = torch.cat(scores).sum() if everywhere else scores[domain].sum()
        return -(scores[domain][label] / total).log()

    of_source = [cross_entropy(image, 0, label) for image, label in source]
    masked, passed = torch.zeros((), dtype=torch.float64), 0
    for image in target:
        probabilities = dual.scores(model, image, untrained).softmax(0)
        if probabilities.max() >= threshold:
            masked = masked + cross_entropy(image, len(texts) - 1, int(probabilities.argmax()))
            passed += 1
    return sum(of_source, torch.zeros(())) / len(of_source) + weight * masked / max(1, passed)
