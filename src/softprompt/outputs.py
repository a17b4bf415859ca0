"""The values that methods, backbones and tasks exchange. They hold data and belong to no side.

Letters: B rows, G prompts, P virtual tokens, T text tokens, d width, L layers, Hkv key-value heads, D head size,
V vocabulary, U scored positions, M target tokens; of images and texts K targets, e width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, (G, Hkv, P, D) each, as a key-value cache holds them (rotary embedding applied)."""

TokenOffset = Callable[[Tensor], Tensor]
"""Maps input embeddings of text tokens, (n, d), to what is added to them, (n, d). It does not depend on a token's place."""


@dataclass(frozen=True)
class PromptOutput:
    """G prompts for the B rows of a batch: all that a method tells a backbone.

    A prompt is run once, however many rows carry it. A method fills the fields that it uses and leaves the others at
    their defaults.

    tokens   (G, P, d)  virtual tokens for the soft slots of the template, padded to the longest prompt
    prefix   per layer, keys and values (G, Hkv, P, D) in front of everything
    layers   per layer (G, P, d), hidden-state prompts (VPT-Deep). Each layer's prompt is dropped behind that layer
    offset   (G, s, d)  row i is added to the input embedding of text token i (DePT); tokens beyond row s get nothing
    lengths  (G,)       number of virtual tokens of each prompt, where prompts differ. If there is a prefix: the number of
                        its positions, 0 for a prompt without one. None: all prompts have P
    rows     (B,)       number of the prompt that each row carries; None: `EncodedRow.prompt` says it. If it is given, a
                        tensor with G = 1 beside tensors with more prompts is shared by every row
    penalty  () or (B,) what the method adds to the loss of each row; None: nothing
    token_offset        per prompt, a function of a text token's embedding that is added to it (ADePT); None: nothing
    texts    (K,)       number of the prompt that each of a row's K targets carries, the same for every row (one context
                        for each class). Dual encoders only; None: the targets carry the row's prompt
    groups              number of equal parts that a row's K targets are divided into; part g carries prompt g (the domains
                        of DAPL). Dual encoders only; 1: the targets carry the row's prompt
    vision              the prompt of the vision tower of a dual encoder
    entry               the layer whose input `tokens` join; 0: the embeddings. Image backbones only
    dropout             dropout rate of `tokens` and `layers`, with a mask of its own for each row, while gradients are
                        recorded. Image backbones only
    """

    tokens: Tensor | None = None
    prefix: tuple[KeyValue, ...] | None = None
    layers: tuple[Tensor, ...] | None = None
    offset: Tensor | None = None
    lengths: Tensor | None = None
    rows: Tensor | None = None
    token_offset: tuple[TokenOffset | None, ...] | None = None
    texts: Tensor | None = None
    groups: int = 1
    vision: PromptOutput | None = None
    entry: int = 0
    dropout: float = 0.0
    penalty: Tensor | None = None

    @property
    def count(self) -> int:
        """G, the number of prompts; 1 for an empty output."""
        tensors = [
            tensor for tensor in (self.tokens, self.offset, *(self.layers or ())) if tensor is not None
        ]
        tensors += [key for key, _ in self.prefix or ()]
        return max([1, len(self.token_offset or ()), *(len(tensor) for tensor in tensors)])

    @property
    def beside_tokens(self) -> tuple[str, ...]:
        """Names of the fields beside `tokens` that change what a model computes; empty if there are virtual tokens alone."""
        names = ("prefix", "layers", "offset", "token_offset", "vision")
        return tuple(name for name in names if getattr(self, name) is not None)

    def for_rows(self, rows: Tensor | None) -> PromptOutput:
        """The same prompts, carried by other rows."""
        return replace(self, rows=rows)


@dataclass(frozen=True)
class Penalized:
    """The input of a training step's loss if the method adds a penalty.

    answers  what the task computes its loss from
    penalty  () or (B,), added to the loss of each row
    """

    answers: Any
    penalty: Tensor


@dataclass(frozen=True)
class Known:
    """Features that the frozen backbone has already computed for a row, without any prompt.

    layer   the layer that `states` enter, counted from 0; None: they have passed all layers
    states  (T, d); if they have passed all layers, what a head reads, (len(read), d). On the CPU, in the backbone's
            precision
    """

    layer: int | None
    states: Tensor


@dataclass(frozen=True)
class Picture:
    """An image that stands among the tokens of a row. Equal images in several rows are one object.

    tokens  the ids that stand for it, most of them placeholders whose embeddings become those of the image
    digest  of its pixels
    image   itself, RGB
    """

    tokens: tuple[int, ...]
    digest: bytes
    image: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class EncodedRow:
    """One row of a task as a backbone reads it.

    context  the input: token ids, and `-1 - k` where virtual token k of the row's prompt stands
    targets  the continuations to score, each a tuple of token ids: one for each label word of a classification with a
             verbalizer, the reference alone for generation, none if only a prediction is wanted
    gold     index of the right one in `targets` (classification: the first word of the right label)
    prompt   number of the prompt that the row carries
    read     positions in `context` whose last hidden states a head reads; empty for tasks that score words. An image has
             no context: there these are indices into `softprompt.images.POOLINGS`
    pooled   whether the head reads the mean of these states, and gives one output for the row instead of one for each
    answer   the right output of the head: numbers of classes or positions, or a value, as the task defines it
    origin   what the task needs to turn outputs back into its answers; nobody else reads it
    windows  the further parts of a row that is too long for one sequence, as rows of their own; see `windows_of`
    media    the input beside tokens: a spectrogram (mel bins, frames), or pixels (3, H, W), either uint8 as they are or
             floating-point numbers as the model reads them
    known    features that need not be computed again; only for methods that change nothing below them
    pictures the images whose placeholders stand in `context`, in order
    """

    context: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...] = ()
    gold: int | None = None
    prompt: int = 0
    read: tuple[int, ...] = ()
    pooled: bool = False
    answer: tuple[float, ...] = ()
    origin: Any = field(default=None, compare=False)
    windows: tuple[EncodedRow, ...] = ()
    media: Tensor | None = field(default=None, compare=False)
    known: Known | None = field(default=None, compare=False)
    pictures: tuple[Picture, ...] = ()


def windows_of(row: EncodedRow) -> list[EncodedRow]:
    """All parts of a long row in order, each a row that carries the same prompt; a row of one part is returned as it is."""
    if not row.windows:
        return [row]
    return [replace(part, windows=(), prompt=row.prompt) for part in (row, *row.windows)]


@dataclass(frozen=True)
class TargetLogits:
    """Logits at the positions that predict target tokens, each position once.

    logits    (U, V)  next-token logits of the scored positions
    position  (M,)    for each target token, the row of `logits` that predicts it
    token     (M,)    its id
    target    (M,)    which target it belongs to: targets are numbered through the batch, row by row
    counts    number of targets of each row, length B
    """

    logits: Tensor
    position: Tensor
    token: Tensor
    target: Tensor
    counts: tuple[int, ...]

    def token_log_likelihoods(self) -> Tensor:
        """log p(token | everything before it), (M,), float32 or wider."""
        logits = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        return logits.log_softmax(dim=-1)[self.position, self.token]  # (U, V) -> (M,)

    def log_likelihoods(self) -> tuple[Tensor, Tensor]:
        """log p(whole target | context) of every target, and its length in tokens; both (sum(counts),)."""
        tokens = self.token_log_likelihoods()
        total = sum(self.counts)
        sums = tokens.new_zeros(total).index_add(0, self.target, tokens)
        # Not bincount, which waits for the device to know the largest number.
        lengths = self.target.new_zeros(total).index_add(0, self.target, torch.ones_like(self.target))
        return sums, lengths

    def of_rows(self, rows: Sequence[int]) -> TargetLogits:
        """The part of these rows of the batch, in this order."""
        starts = [0, *accumulate(self.counts)]
        chosen = [t for row in rows for t in range(starts[row], starts[row + 1])]
        number = torch.full((starts[-1],), -1, device=self.target.device)
        number[chosen] = torch.arange(len(chosen), device=self.target.device)
        order = number[self.target]  # (M,): the target's new number, -1 where its row is left out
        kept = torch.argsort(order, stable=True)[int((order < 0).sum()) :]
        places, position = self.position[kept].unique(return_inverse=True)
        counts = tuple(self.counts[row] for row in rows)
        return TargetLogits(
            logits=self.logits[places],
            position=position,
            token=self.token[kept],
            target=order[kept],
            counts=counts,
        )


@dataclass(frozen=True)
class ImageTextEmbeddings:
    """The embeddings of images and of the texts that they are compared with, all of length 1, from a dual encoder.

    images  (B, e)
    texts   sets of targets, (K, e) each: rows with the same targets and prompt share a set
    which   number of each row's set, length B
    scale   the factor that cosines are multiplied by, ()
    bias    what is added to the product, () (SigLIP; else 0)
    """

    images: Tensor
    texts: tuple[Tensor, ...]
    which: tuple[int, ...]
    scale: Tensor
    bias: Tensor

    def scores(self, templates: int = 1) -> Tensor:
        """Logits of each image for each class, (B, K / templates). All rows must have equally many targets.

        templates: how many consecutive targets are texts of one class. Their mean, normalised to length 1, represents it.
        """
        parts: list[Tensor] = []
        order: list[int] = []
        for number, texts in enumerate(self.texts):
            if templates > 1:
                texts = functional.normalize(texts.unflatten(0, (-1, templates)).mean(dim=1), dim=-1)
            mine = [b for b, which in enumerate(self.which) if which == number]
            order += mine
            images = self.images if len(mine) == len(self.images) else self.images[mine]
            parts.append(images @ texts.T)  # (n, e) x (K, e) -> (n, K)
        cosines = torch.cat(parts)[torch.tensor(order, device=self.images.device).argsort()]
        return cosines * self.scale + self.bias

    def of_rows(self, rows: Sequence[int]) -> ImageTextEmbeddings:
        """The part of these rows of the batch, in this order."""
        which = [self.which[row] for row in rows]
        used = sorted(set(which))
        return replace(
            self,
            images=self.images[list(rows)],
            texts=tuple(self.texts[number] for number in used),
            which=tuple(used.index(number) for number in which),
        )
