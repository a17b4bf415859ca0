"""What passes between methods, backbones and tasks: plain values, no behaviour of any side.

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
"""Keys and values of one layer, each (G, Hkv, P, D), as they lie in a key-value cache (rotary embedding applied)."""

TokenOffset = Callable[[Tensor], Tensor]
"""Input embeddings of text tokens, (n, d), to what is added to them, (n, d): alike for the same token anywhere."""


@dataclass(frozen=True)
class PromptOutput:
    """G prompts for the B rows of a batch: everything a backbone needs to know of a method.

    A prompt is run once, however many rows carry it. A method fills the fields it uses and leaves the others None.

    tokens   (G, P, d)  virtual tokens for the soft slots of the template, padded to the longest prompt
    prefix   per layer, keys and values (G, Hkv, P, D) in front of everything
    layers   per layer (G, P, d), hidden-state prompts (VPT-Deep): what they become is thrown away behind each layer
    offset   (G, s, d)  added to the input embeddings of text token i (DePT); nothing beyond its s rows
    lengths  (G,)       virtual tokens of each prompt, where they differ; where there is a prefix, its positions (0 for
                        a prompt without one); None: all P
    rows     (B,)       which prompt each row carries; None: the one that `EncodedRow.prompt` says. With it, a tensor with
                        G = 1 among others is every row's
    penalty  () or (B,) what the method adds to the loss of each row; None: nothing
    token_offset        per prompt, what is added to a text token whatever its place (ADePT); None: nothing
    texts    (K,)       which prompt each of a row's K targets carries, the same for every row: contexts of one class each.
                        Dual encoders only; None: that of the row
    groups              so many: a row's K targets are that many equal parts, part g of which carries prompt g (DAPL's domains).
                        Dual encoders only; 1: all carry that of the row
    vision              the prompt of the vision tower, where the backbone has one beside its text tower
    entry               the layer whose input `tokens` join; 0: the embeddings. Image backbones only
    dropout             share of the numbers of `tokens` and `layers` that each row drops, by a mask of its own, while
                        gradients are recorded. Image backbones only
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
        """Names of what else it puts into a model: a prompt without any is virtual tokens and nothing more."""
        names = ("prefix", "layers", "offset", "token_offset", "vision")
        return tuple(name for name in names if getattr(self, name) is not None)

    def for_rows(self, rows: Tensor | None) -> PromptOutput:
        """The same prompts, carried by other rows."""
        return replace(self, rows=rows)


@dataclass(frozen=True)
class Penalized:
    """What a training step's loss is made of, where the method adds to it.

    answers  what the task's loss is taken of
    penalty  () or (B,), added to the loss of each row
    """

    answers: Any
    penalty: Tensor


@dataclass(frozen=True)
class Known:
    """What the frozen backbone computed of a row before, without any prompt.

    layer   the layer that `states` enter, from 0; None: all were passed
    states  (T, d); behind all layers what a head reads, (len(read), d). On the CPU, in the backbone's precision
    """

    layer: int | None
    states: Tensor


@dataclass(frozen=True)
class EncodedRow:
    """One row of a task as a backbone reads it.

    context  what the model is given: a token id, or `-1 - k` where virtual token k of the row's prompt stands
    targets  the continuations that are scored, each a tuple of token ids: one per label word for a classification
             with a verbalizer, just the reference for generation, none where only a prediction is wanted
    gold     index into `targets` of the right one (classification: the first word of the right label)
    prompt   which of the batch's prompts the row carries
    read     positions in `context` whose last hidden state a head reads; none for tasks that score words. Of an image,
             which has no context, indices into `softprompt.images.POOLINGS`
    pooled   the head reads the mean of these states, one output for the row, instead of one for each
    answer   what the head should say there: numbers of classes or positions, or a value; the task knows
    origin   what the task needs to turn outputs back into its answers; seen by nobody else
    windows  the further parts of a row that is too long for one sequence, as rows of their own; see `windows_of`
    media    what the model is given beside tokens: a spectrogram (mel bins, frames), pixels (3, H, W),
             uint8 as they are or floating-point numbers as the model reads them
    known    what need not be computed of it again; only for methods that leave all below as it is
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


def windows_of(row: EncodedRow) -> list[EncodedRow]:
    """All parts of a row, the first one first, each a row that carries its prompt; a row of one part as it is."""
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
        lengths = torch.bincount(self.target, minlength=total)
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
    """What a dual encoder says of images and of the texts that they are compared with, all of length 1.

    images  (B, e)
    texts   sets of targets, each (K, e): rows with the same targets and prompt share one
    which   for each row the number of its set, length B
    scale   what cosines are multiplied by, ()
    bias    what is added then, () (SigLIP's; else 0)
    """

    images: Tensor
    texts: tuple[Tensor, ...]
    which: tuple[int, ...]
    scale: Tensor
    bias: Tensor

    def scores(self, templates: int = 1) -> Tensor:
        """Logits of each image for each class, (B, K / templates). All rows must have equally many targets.

        templates: so many targets in a row are texts of one class. Their mean, brought to length 1 again, stands for it.
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
