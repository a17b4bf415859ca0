"""The rows of an embedding table that are near to vectors, their norms, and tokens as visible text.

P vectors, V words, d width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec

Measure = Literal["cosine", "l2", "dot"]
MEASURES: tuple[Measure, ...] = ("cosine", "l2", "dot")

_CHUNK = 2048  # rows of the table that are read at a time: 64 MB in float64 at d = 4096
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")  # as transformers names them


@dataclass(frozen=True)
class Nearest:
    """ids (P, k) and scores (P, k), the nearest first: the largest cosine or dot product, or the smallest L2 distance."""

    ids: Tensor
    scores: Tensor


def table_chunks(spec: BackboneSpec, rows: int = _CHUNK) -> Iterator[Tensor]:
    """Yield the embedding table as the model uses it, in chunks of at most `rows` rows, (n, d)."""
    for start in range(0, spec.vocabulary, rows):
        yield spec.embed(torch.arange(start, min(start + rows, spec.vocabulary)))


def nearest_words(tokens: Tensor, table: Iterable[Tensor], k: int) -> dict[Measure, Nearest]:
    """Return the k nearest rows of a table by every measure, in one pass over its chunks.

    It computes in float64. The cosine with a zero vector is 0.

    Arguments:
        tokens: (P, d)
        table: chunks (n, d), as `table_chunks` yields them
        k: the number of rows; there are fewer if the table has fewer
    """
    tokens = tokens.double()
    unit = functional.normalize(tokens, dim=-1)
    found: dict[Measure, Nearest] = {}
    start = 0
    for chunk in table:
        rows = chunk.double()
        dots = tokens @ rows.T  # (P, d) x (d, n) -> (P, n)
        squares = tokens.square().sum(-1, keepdim=True) + rows.square().sum(-1) - 2 * dots
        scores: dict[Measure, Tensor] = {
            "cosine": unit @ functional.normalize(rows, dim=-1).T,
            "l2": squares.clamp(min=0).sqrt(),
            "dot": dots,
        }
        ids = torch.arange(start, start + len(rows)).expand(len(tokens), -1)
        for measure, values in scores.items():
            here = Nearest(ids, values)
            found[measure] = _best(_joined(found[measure], here) if measure in found else here, k, measure)
        start += len(rows)
    return found


def table_norms(table: Iterable[Tensor]) -> Tensor:
    """Return the L2 norms of the table's rows, (V,), float64."""
    return torch.cat([chunk.double().norm(dim=-1) for chunk in table])


def logit_lens(tokens: Tensor, norm: Callable[[Tensor], Tensor] | None, head: nn.Module, k: int) -> Nearest:
    """Return the k words with the largest logits if each vector were an output of the last layer.

    The logits are those of the head itself; a model that scales or caps them afterwards does not change their order.

    Arguments:
        tokens: (P, d)
        norm: the norm between the last layer and the head; None: there is none
        head: the output head
        k: the number of words
    """
    like = next(head.parameters())
    hidden = tokens.to(like.device, like.dtype)
    with torch.no_grad():
        logits = head(norm(hidden) if norm is not None else hidden).double().cpu()  # (P, d) -> (P, V)
    return Nearest(*reversed(logits.topk(min(k, logits.shape[-1]), dim=-1)))


def final_norm(model: PreTrainedModel) -> tuple[str, nn.Module] | None:
    """Return the name and the module of the norm between the last layer and the output head; None if there is none."""
    for base in (model.base_model, getattr(model.base_model, "decoder", None)):
        for name in _FINAL_NORMS:
            if isinstance(module := getattr(base, name, None), nn.Module):
                return next(path for path, other in model.named_modules() if other is module), module
    return None


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as visible text; bytes that are not text on their own are shown as the tokenizer stores them."""
    piece = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if not isinstance(piece, str):
        return f"<row {token}>"  # the table is often longer than the vocabulary
    if "\u2581" in piece:  # SentencePiece's space, which decoding drops at the front
        return visible(piece.replace("\u2581", " "))
    text = str(tokenizer.decode([token]))
    return visible(piece if not text or "\ufffd" in text else text)


def visible(text: str) -> str:
    """Return the text with a sign for each space, tab and line end, and with codes for what cannot be printed.

    A run of four or more equal signs is counted, as in "\u2423\u00d717".
    """
    signs = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}
    shown = []
    for character, run in itertools.groupby(text):
        length = len(list(run))
        sign = signs.get(character)
        if sign is None:
            shown.append((character if character.isprintable() else f"\\u{{{ord(character):x}}}") * length)
        else:
            shown.append(sign * length if length < 4 else f"{sign}\u00d7{length}")
    return "".join(shown)


def _joined(one: Nearest, other: Nearest) -> Nearest:
    return Nearest(torch.cat([one.ids, other.ids], dim=-1), torch.cat([one.scores, other.scores], dim=-1))


def _best(candidates: Nearest, k: int, measure: Measure) -> Nearest:
    # The sort is stable: of two equally near rows, the one with the smaller id comes first.
    order = candidates.scores.argsort(dim=-1, descending=measure != "l2", stable=True)[:, :k]
    return Nearest(candidates.ids.gather(1, order), candidates.scores.gather(1, order))
