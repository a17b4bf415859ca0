"""What a backbone is to the rest of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.images import ImageSetting
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput

Reads = Literal["text", "images", "images and text", "sound and text"]


@dataclass(frozen=True)
class BackboneSpec:
    """The facts of a frozen model that a method may know: it never sees the model itself.

    width             d, of the input embeddings
    vocabulary        V, rows of the embedding table
    key_values        per layer (Hkv, D), the shape of a key-value prefix
    positions         longest sequence in tokens, virtual tokens included; None: no limit
    embedding_std     standard deviation of the embedding table as the model uses it: the scale of a virtual token
    embed             token ids (n,) -> (n, d) float32, a copy, as the model embeds them (scaled, where it scales)
    tokenize          text -> token ids, no special tokens
    special_ids       ids that are no words (padding, begin, end, places kept free ...)
    alphabet          ids of single characters that the vocabulary lists before its words, however rare they are
    places            for each entry of `key_values` the attention that it goes in front of: "decoder", "encoder" or
                      "cross" (from the decoder to the encoder); empty: self-attention everywhere
    key_values_of     token ids (n,) -> per layer the keys and values, (1, Hkv, n, D) float32, a copy, that the frozen
                      model itself computes for them at the front of a text; None where it has none
    closed            its texts end with the tokens that the tokenizer puts behind them, and what is predicted does not
                      follow them: it stands in a decoder or where a mask is
    state_width       of the last hidden states; None: d
    read_media        what a row's media column holds -> what `EncodedRow.media` is (a waveform -> log-mel features);
                      None where the backbone reads nothing but text
    mask              id of the mask token where words are predicted in its place; None where they are not
    prefix_counts     the positions of a key-value prefix count: a row's context behind it begins at position P, not at 0
    attention         some of its layers hold attention: a state-space model's hold none
    layers            L, for hidden-state prompts; 0 where they are not defined
    image             how it reads images; None: it reads text
    embedding_width   of what a dual encoder compares, e; None elsewhere
    vision            facts of the vision tower of a dual encoder, where the others are those of its text tower; else None
    """

    name: str
    family: str
    width: int
    vocabulary: int
    key_values: tuple[tuple[int, int], ...]
    positions: int | None
    embedding_std: float
    embed: Callable[[Tensor], Tensor]
    tokenize: Callable[[str], list[int]]
    special_ids: frozenset[int]
    alphabet: frozenset[int] = frozenset()
    places: tuple[str, ...] = ()
    key_values_of: Callable[[Tensor], tuple[KeyValue, ...]] | None = None
    closed: bool = False
    state_width: int | None = None
    read_media: Callable[[Any], Tensor] | None = None
    mask: int | None = None
    prefix_counts: bool = True
    attention: bool = True
    layers: int = 0
    image: ImageSetting | None = None
    embedding_width: int | None = None
    vision: BackboneSpec | None = None

    @property
    def reads(self) -> Reads:
        """What a row may hold: a dual encoder reads images and text, a speech model sound and text."""
        if self.image is not None:
            return "images" if self.vision is None else "images and text"
        return "text" if self.read_media is None else "sound and text"

    @property
    def reads_images(self) -> bool:
        """Whether a row has an image, alone or beside texts."""
        return self.reads in ("images", "images and text")

    @property
    def reads_text(self) -> bool:
        """Whether there is a tokenizer: everything but a vision encoder has one."""
        return self.reads != "images"

    @property
    def state_size(self) -> int:
        """Width of the last hidden states, which heads read."""
        return self.state_width or self.width


def known_states(rows: Sequence[EncodedRow], device: torch.device) -> Tensor | None:
    """`Backbone.states` of rows of which they are known, (sum of len(row.read), d); None where some are not."""
    known = [row.known.states for row in rows if row.known is not None and row.known.layer is None]
    return torch.cat(known).to(device) if rows and len(known) == len(rows) else None


class Backbone(Protocol):
    """A frozen model with its tokenizer, seen through the few calls that the library makes.

    One that reads images has no tokenizer, and says so with a ValueError; its `table` is the patch embedding.
    """

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> BackboneSpec: ...
    @property
    def table(self) -> Tensor: ...
    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def with_model(self, model: PreTrainedModel) -> Backbone:
        """The same backbone around another copy of its model (a method that changes weights works on a copy)."""
        ...

    def with_settings(self, *, gradient_checkpointing: bool = False, compiled: bool = False) -> Backbone:
        """The same model, run to save memory or through torch.compile."""
        ...

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Any:
        """TargetLogits for every target token of every row, differentiable in the prompt.

        Of a dual encoder, whose targets are the texts that an image is compared with, ImageTextEmbeddings.
        """
        ...

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        """Last hidden states at the positions that the rows' `read` names, (sum of len(row.read), d), in order.

        What the output layer of the language model would read, normalised. Differentiable in the prompt. Rows of which
        they are `known` are not run.
        """
        ...

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Any:
        """The prompts with whatever can be computed once done already; `score` and `generate` take it as a prompt.

        Later rows must begin as these rows do, or `score` raises ValueError.
        """
        ...

    def generate(self, rows: Sequence[EncodedRow], prompt: PromptOutput, **options: Any) -> list[list[int]]:
        """New token ids for each row; `options` are those of transformers' `generate`."""
        ...
