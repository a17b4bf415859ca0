"""A tokenizer's ids of a text, and the special tokens that it puts around one."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text; no special tokens are added."""
    if not text:
        return []
    # verbose=False: the tokenizer would warn of texts longer than its model, which are cut later.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, tuple[int, int]]]:
    """Return the token ids of a text, each with the characters that it covers; no special tokens are added."""
    if not text:
        return []
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))


def automatic_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer adds in front of a text: a BOS, [CLS], a language code, or none."""
    return _automatic(tokenizer)[0]


def automatic_suffix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer adds after a text: an EOS, [SEP], or none."""
    return _automatic(tokenizer)[1]


def _automatic(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()
