"""Initial values of virtual tokens, at the scale of the embedding table.

Every function takes the facts of the backbone and returns (P, d) float32. Lester et al. 2021 (arXiv 2104.08691, section 3.2)
find that tokens drawn from the vocabulary or made of the class labels beat uniform noise, except on the largest models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from softprompt.backbones.base import BackboneSpec
from softprompt.concerns import warn_of
from softprompt.prompts.base import BuildContext
from softprompt.surroundings import own_generators

Init = Literal["auto", "vocab", "uniform", "text", "labels", "prompt"]
"""auto: the class labels if the task has any, else common words. vocab: common words. uniform: noise of the table's scale.
text: a text. labels: the class labels. prompt: another prompt."""

COMMON_TOKENS = (
    5000  # the most common pieces of the vocabulary, as in the paper; ids are in order of frequency
)


def start(
    context: BuildContext, length: int, init: Init, init_text: str | None, init_prompt: Path | None
) -> Tensor:
    """Return the initial virtual tokens by the settings of a method, which `check_start` has checked.

    Arguments:
        context: the facts of the backbone, the labels and the source of randomness
        length: P, the number of virtual tokens
        init: how they begin
        init_text: the text of init="text"
        init_prompt: the folder of init="prompt"
    """
    spec, generator = context.spec, context.generator
    match init:
        case "auto" if context.labels:
            return from_labels(spec, length, context.labels, generator)
        case "auto" | "vocab":
            return sampled_vocabulary(spec, length, generator)
        case "uniform":
            return uniform(spec, length, generator)
        case "text":
            assert init_text is not None
            return from_text(spec, length, init_text)
        case "labels":
            return from_labels(spec, length, context.labels, generator)
        case "prompt":
            from softprompt.store import load_tokens

            assert init_prompt is not None
            return from_tokens(spec, length, load_tokens(init_prompt))


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Draw the weights of modules that are built within this block from `generator`; torch's own is restored afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with own_generators():
        torch.default_generator.manual_seed(seed)
        yield


def uniform(spec: BackboneSpec, length: int, generator: torch.Generator) -> Tensor:
    """Return uniform noise with the standard deviation s of the embedding table: U[-s*sqrt(3), s*sqrt(3)].

    The paper's U[-0.5, 0.5] suits the scale of T5; on a table of standard deviation 0.02 it would begin far outside.
    """
    bound = spec.embedding_std * math.sqrt(3)
    return (torch.rand(length, spec.width, generator=generator) * 2 - 1) * bound


def common_words(spec: BackboneSpec) -> list[int]:
    """Return ids of the most common pieces of the vocabulary, without special ones; if it is small, its alphabet too."""
    words = [i for i in range(spec.vocabulary) if i not in spec.special_ids]
    words.sort(key=lambda i: i in spec.alphabet)  # a stable sort: the rest keeps its order
    return words[:COMMON_TOKENS]


def sampled_ids(spec: BackboneSpec, length: int, generator: torch.Generator) -> Tensor:
    """Return ids of distinct common tokens without special ones, (P,).

    Raises ValueError if the vocabulary has fewer words than `length`.
    """
    words = common_words(spec)
    if length > len(words):
        raise ValueError(
            f"{length} virtual tokens cannot start as distinct words: the vocabulary offers {len(words)}"
        )
    chosen = torch.randperm(len(words), generator=generator)[:length]
    return torch.tensor(words, dtype=torch.long)[chosen]


def sampled_vocabulary(spec: BackboneSpec, length: int, generator: torch.Generator) -> Tensor:
    """Return embeddings of distinct common tokens without special ones ("sampled vocabulary").

    Raises ValueError if the vocabulary has fewer words than `length`.
    """
    return spec.embed(sampled_ids(spec, length, generator))


def text_ids(spec: BackboneSpec, length: int, text: str) -> Tensor:
    """Return the ids of a text, (P,), repeated from its beginning or cut to `length`; no special tokens are added.

    Raises ValueError for a text without tokens; warns when it is cut.
    """
    ids = spec.tokenize(text)
    if not ids:
        raise ValueError(f"the initial text {text!r} has no tokens")
    if len(ids) > length:
        warn_of([f"the initial text has {len(ids)} tokens, the prompt {length}: the rest is left out"])
    return torch.tensor([ids[i % len(ids)] for i in range(length)])


def from_text(spec: BackboneSpec, length: int, text: str) -> Tensor:
    """Return the embeddings of a text's tokens, repeated from its beginning or cut to `length`, without special tokens.

    Raises ValueError for a text without tokens; warns when it is cut.
    """
    return spec.embed(text_ids(spec, length, text))


def from_labels(
    spec: BackboneSpec, length: int, labels: Mapping[str, Sequence[str]], generator: torch.Generator
) -> Tensor:
    """Return one virtual token per label word, the mean over its pieces, and sampled vocabulary for the rest ("class label").

    Raises ValueError if the task has no labels.
    """
    words = [word for words in labels.values() for word in words]
    if not words:
        raise ValueError("the task has no labels to start from: choose another init")
    rows = [spec.embed(torch.tensor(spec.tokenize(word))).mean(dim=0) for word in words[:length]]
    return torch.cat([torch.stack(rows), sampled_vocabulary(spec, length - len(rows), generator)])


def from_tokens(spec: BackboneSpec, length: int, tokens: Tensor) -> Tensor:
    """Return the virtual tokens of another prompt, (n, d), repeated from the beginning or cut to `length`.

    Raises ValueError if its width is not the backbone's.
    """
    if tokens.ndim != 2 or tokens.shape[1] != spec.width:
        raise ValueError(
            f"the initial prompt has shape {tuple(tokens.shape)}, this backbone needs (n, {spec.width})"
        )
    return tokens.float()[torch.arange(length) % len(tokens)].clone()


def check_start(init: str, init_text: str | None, init_prompt: Path | None) -> None:
    """Raise ValueError unless a text comes with init="text" and a folder with init="prompt", and the other way round."""
    given = (("init_text", "text", init_text), ("init_prompt", "prompt", init_prompt))
    for field, needed, value in given:
        if (value is not None) != (init == needed):
            raise ValueError(f'{field} and init="{needed}" go together; got init="{init}", {field}={value!r}')
