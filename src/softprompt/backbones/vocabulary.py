"""Which entries of a vocabulary are no words."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

_FREE = re.compile(r"[\[<]unused_?\d+[\]>]")
_CONTINUES = "##"  # WordPiece: goes on with the word before


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens, and places that are kept free: [unused0] of BERT, <unused0> of Gemma, which nothing trained."""
    free = (i for piece, i in tokenizer.get_vocab().items() if _FREE.fullmatch(piece))
    return frozenset({*tokenizer.all_special_ids, *free})


def alphabet_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Single characters of a WordPiece vocabulary, which stand before its words however rare they are; of others none.

    In BERT's they are a thousand, many of them Chinese.
    """
    vocabulary = tokenizer.get_vocab()
    if not any(piece.startswith(_CONTINUES) for piece in vocabulary):
        return frozenset()
    return frozenset(i for piece, i in vocabulary.items() if len(piece.removeprefix(_CONTINUES)) == 1)
