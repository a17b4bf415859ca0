"""The interface of a backbone, as the rest of the library sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.images import ImageSetting
from softprompt.outputs import EncodedRow, KeyValue, Picture, PromptOutput

Reads = Literal["text", "images", "images and text", "images among text", "sound and text"]


@dataclass(frozen=True)
class BackboneSpec:
    """The facts of a frozen model that a method may know. A method never sees the model itself.

    name              as the backbone was loaded
    family            e.g. "causal-lm"; see `loading.FAMILIES`
    width             d, width of the input embeddings
    vocabulary        V, number of rows of the embedding table
    key_values        per layer (Hkv, D), the shape of a key-value prefix; empty: the model takes no prefix
    positions         length of the longest sequence in tokens, virtual tokens included; None: there is no limit
    embedding_std     standard deviation of the embeddings as the model uses them: the scale of a virtual token
    embed             token ids (n,) -> (n, d) float32, a copy, as the model embeds them (scaled, if it scales them)
    tokenize          text -> token ids, without special tokens
    special_ids       ids that are no words: padding, begin, end, unused entries and the like
    alphabet          ids of single characters that the vocabulary lists before its words, however rare they are
    places            for each entry of `key_values` the attention that it stands in front of: "decoder", "encoder" or
                      "cross" (from the decoder to the encoder); empty: self-attention everywhere
    key_values_of     token ids (n,) -> per layer the keys and values, (1, Hkv, n, D) float32, a copy, that the frozen
                      model computes for these tokens at the front of a text; None: it has none
    closed            whether texts end with the tokens that the tokenizer puts behind them, and predictions do not follow
                      the text: they stand in a decoder or in the place of a mask
    state_width       width of the last hidden states; None: d
    read_media        value of a row's media column -> `EncodedRow.media` (a waveform -> log-mel features); None: the
                      backbone has no such column
    mask              id of the mask token in whose place words are predicted; None: there is none
    prefix_counts     whether the positions of a key-value prefix count: the text behind it begins at position P, not at 0
    attention         whether any layer holds attention; those of a state-space model do not
    layers            L, number of layers for hidden-state prompts; 0: these are not defined
    image             how images are read; None: the backbone reads none
    embedding_width   e, width of the embeddings that a dual encoder compares; None for other families
    vision            facts of the vision tower of a dual encoder, whose other fields describe the text tower; else None
    read_picture      value of an image column -> the `Picture` that stands among the text; None: the backbone has none there
    image_id          id of the placeholders of such images; None: there are none
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
    read_picture: Callable[[Any], Picture] | None = None
    image_id: int | None = None

    @property
    def reads(self) -> Reads:
        """What a row may hold: a dual encoder reads images and text, a speech model sound and text."""
        if self.read_picture is not None:
            return "images among text"
        if self.image is not None:
            return "images" if self.vision is None else "images and text"
        return "text" if self.read_media is None else "sound and text"

    @property
    def reads_images(self) -> bool:
        """Whether a row has an image, alone or beside texts that it is compared with."""
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
    """`Backbone.states` taken from the rows' known features, (sum of len(row.read), d); None if any row lacks them."""
    known = [row.known.states for row in rows if row.known is not None and row.known.layer is None]
    return torch.cat(known).to(device) if rows and len(known) == len(rows) else None


class Backbone(Protocol):
    """A frozen model with its tokenizer: the few calls that the library makes.

    A vision encoder has no tokenizer, and raises ValueError for it; its `table` is the patch embedding.
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
        """The same model with gradient checkpointing, which saves memory, or compiled by torch.compile."""
        ...

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Any:
        """TargetLogits for every target token of every row, differentiable in the prompt.

        A dual encoder returns ImageTextEmbeddings: its targets are the texts that an image is compared with.
        """
        ...

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        """Last hidden states at the positions that the rows' `read` names, (sum of len(row.read), d), in order.

        These are what the output layer of a language model would read, behind the last norm. Differentiable in the
        prompt. If the states of all rows are `known`, nothing is run.
        """
        ...

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Any:
        """The prompts with everything computed that later calls share; `score` and `generate` take the result as a prompt.

        Later rows must begin as these rows do, or `score` raises ValueError.
        """
        ...

    def generate(self, rows: Sequence[EncodedRow], prompt: PromptOutput, **options: Any) -> list[list[int]]:
        """New token ids for each row; `options` are those of transformers' `generate`."""
        ...
