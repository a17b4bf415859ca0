"""The vocabulary of a model that reads text: its embedding table, its special tokens, and its facts for methods.

Letters: V vocabulary, d width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec

_FREE = re.compile(r"[\[<]unused_?\d+[\]>]")
_CONTINUES = "##"  # WordPiece: continues the word before


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of special tokens and of unused entries ([unused0] in BERT, <unused0> in Gemma), which were never trained."""
    free = (i for piece, i in tokenizer.get_vocab().items() if _FREE.fullmatch(piece))
    return frozenset({*tokenizer.all_special_ids, *free})


def alphabet_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the single characters of a WordPiece vocabulary, which lists them before its words however rare they are.

    BERT has a thousand of them, many Chinese. Empty for other vocabularies.
    """
    vocabulary = tokenizer.get_vocab()
    if not any(piece.startswith(_CONTINUES) for piece in vocabulary):
        return frozenset()
    return frozenset(i for piece, i in vocabulary.items() if len(piece.removeprefix(_CONTINUES)) == 1)


def table_of(embedding: nn.Module) -> Tensor:
    """The table of an embedding module, (V, d), unscaled."""
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    return weight


def check_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise ValueError for an id that the backbone's embedding table, which has `rows` rows, has none for."""
    if ids and (largest := max(ids)) >= rows:
        raise ValueError(
            f"the token {tokenizer.convert_ids_to_tokens(largest)!r} has the id {largest}, and the backbone's"
            f" embedding table has {rows} rows: take the model's own tokenizer, call"
            " model.resize_token_embeddings(len(tokenizer)) before load_backbone, or leave tokens that were added later"
            " out of the tokenizer"
        )


def text_spec(
    name: str, family: str, embedding: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> BackboneSpec:
    """The facts that every backbone with a vocabulary has; a family puts its own beside them with `replace`.

    name       of the backbone
    family     see BackboneSpec
    embedding  the module that turns token ids into vectors
    tokenizer  the model's own
    """

    def embed(ids: Tensor) -> Tensor:
        if ids.device.type == "cpu":  # those on a GPU were taken from the table
            check_ids(ids.flatten().tolist(), tokenizer, len(table_of(embedding)))
        with torch.no_grad():
            embedded: Tensor = embedding(ids.to(table_of(embedding).device)).float().cpu().clone()
            return embedded

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    vocabulary, width = table_of(embedding).shape
    sample = torch.arange(0, vocabulary, max(1, vocabulary // 4096))
    return BackboneSpec(
        name=name,
        family=family,
        width=width,
        vocabulary=vocabulary,
        key_values=(),
        positions=None,
        embedding_std=embed(sample).std().item(),
        embed=embed,
        tokenize=tokenize,
        special_ids=special_ids(tokenizer),
    )
