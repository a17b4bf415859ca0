"""The rows of an embedding table that are near to vectors, their norms, and tokens as visible text.

P vectors, V words, d width.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec

Measure = Literal["centred", "cosine", "l2", "dot"]
MEASURES: tuple[Measure, ...] = ("centred", "cosine", "l2", "dot")

_CHUNK = 2048  # rows of the table that are read at a time: 64 MB in float64 at d = 4096
_SAMPLE = 4096  # rows of the table in which common directions are looked for
_NEVER_WRITTEN = re.compile(
    r"[\[<]\|?_?(unused|reserved|extra_id|special|dummy|madeup|placeholder)", re.IGNORECASE
)
_ONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # as SentencePiece stores a byte that is no text
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")  # as transformers names them


@dataclass(frozen=True)
class Nearest:
    """ids (P, k) and scores (P, k), the nearest first: the largest cosine or dot product, or the smallest L2 distance."""

    ids: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Common:
    """What nearly all words share: their mean (d,) and the directions (r, d), of length 1, in which they differ most.

    Vectors are compared without it, or the same frequent words are near to everything (Mu and Viswanath 2018, "all but the
    top", arXiv 1702.01417: r is d / 100).
    """

    mean: Tensor
    directions: Tensor

    def removed(self, vectors: Tensor) -> Tensor:
        """Return the vectors (n, d) without it."""
        centred = vectors.double() - self.mean
        return centred - centred @ self.directions.T @ self.directions


def common_part(spec: BackboneSpec, skip: Tensor) -> Common:
    """Return the common part of the rows of the table that are words. skip: (V,) True for rows that are none."""
    words = (~skip).nonzero().flatten()
    words = words[:: -(-len(words) // _SAMPLE)]
    rows = spec.embed(words).double().cpu()
    mean = rows.mean(dim=0)
    count = min(max(1, spec.width // 100), len(rows) - 1, spec.width - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, found = torch.svd_lowrank(rows - mean, q=min(count + 6, *rows.shape), niter=4)
    return Common(mean, found[:, :count].T)


def rows_without_words(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """Return (V,) True for rows that no text is read as: special and reserved tokens, and rows beyond the tokenizer's words."""
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(vocabulary, len(tokenizer)))))
    found = torch.ones(vocabulary, dtype=torch.bool)
    for i, piece in enumerate(pieces):
        found[i] = i in special or not isinstance(piece, str) or _NEVER_WRITTEN.match(piece) is not None
    return found if not found.all() else torch.zeros_like(found)


def table_chunks(spec: BackboneSpec, rows: int = _CHUNK) -> Iterator[Tensor]:
    """Yield the embedding table as the model uses it, in chunks of at most `rows` rows, (n, d)."""
    for start in range(0, spec.vocabulary, rows):
        yield spec.embed(torch.arange(start, min(start + rows, spec.vocabulary)))


def nearest_words(
    tokens: Tensor,
    table: Iterable[Tensor],
    k: int,
    *,
    skip: Tensor | None = None,
    common: Common | None = None,
) -> dict[Measure, Nearest]:
    """Return the k nearest rows of a table by every measure, in one pass over its chunks.

    It computes in float64. The cosine with a zero vector is 0. "centred" is the cosine without the common part.

    Arguments:
        tokens: (P, d)
        table: chunks (n, d), as `table_chunks` yields them
        k: the number of rows; there are fewer if the table has fewer
        skip: (V,) True for rows that are never found; None: there are none
        common: the common part of the table; None: nothing is centred
    """
    tokens = tokens.double()
    centred = None if common is None else functional.normalize(common.removed(tokens), dim=-1)
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
        if common is not None and centred is not None:
            scores["centred"] = centred @ functional.normalize(common.removed(rows), dim=-1).T
        ids = torch.arange(start, start + len(rows)).expand(len(tokens), -1)
        if skip is not None:
            kept = ~skip[start : start + len(rows)]
            ids = ids[:, kept]
            scores = {measure: values[:, kept] for measure, values in scores.items()}
        for measure, values in scores.items():
            here = Nearest(ids, values)
            found[measure] = _best(_joined(found[measure], here) if measure in found else here, k, measure)
        start += len(rows)
    return found


def table_norms(table: Iterable[Tensor]) -> Tensor:
    """Return the L2 norms of the table's rows, (V,), float64."""
    return torch.cat([chunk.double().norm(dim=-1) for chunk in table])


def logit_lens(
    tokens: Tensor,
    norm: Callable[[Tensor], Tensor] | None,
    head: nn.Module,
    k: int,
    *,
    skip: Tensor | None = None,
) -> Nearest:
    """Return the k words with the largest logits if each vector were an output of the last layer.

    The logits are those of the head itself; a model that scales or caps them afterwards does not change their order.

    Arguments:
        tokens: (P, d)
        norm: the norm between the last layer and the head; None: there is none
        head: the output head
        k: the number of words
        skip: (V,) True for words that are never found; None: there are none
    """
    like = next(head.parameters())
    hidden = tokens.to(like.device, like.dtype)
    with torch.no_grad():
        logits = head(norm(hidden) if norm is not None else hidden).double().cpu()  # (P, d) -> (P, V)
    if skip is not None:
        logits[:, : len(skip)].masked_fill_(skip[: logits.shape[-1]], -torch.inf)
    return Nearest(*reversed(logits.topk(min(k, logits.shape[-1]), dim=-1)))


def final_norm(model: PreTrainedModel) -> tuple[str, nn.Module] | None:
    """Return the name and the module of the norm between the last layer and the output head; None if there is none."""
    for base in (model.base_model, getattr(model.base_model, "decoder", None)):
        for name in _FINAL_NORMS:
            if isinstance(module := getattr(base, name, None), nn.Module):
                return next(path for path, other in model.named_modules() if other is module), module
    return None


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as visible text; bytes that are no text on their own are shown by their numbers, as in "bytes E2 80"."""
    piece = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if not isinstance(piece, str):
        return f"<row {token}>"  # the table is often longer than the vocabulary
    if "\u2581" in piece:  # SentencePiece's space, which decoding drops at the front
        return visible(piece.replace("\u2581", " "))
    if (byte := _ONE_BYTE.fullmatch(piece)) is not None:
        return f"byte {byte[1]}"
    if (
        piece.startswith("##")
        and len(piece) > 2
        and tokenizer.convert_tokens_to_string(["a", piece]) == f"a{piece[2:]}"
    ):
        return visible(f"…{piece[2:]}")  # WordPiece's sign for a piece that continues a word
    text = str(tokenizer.decode([token]))
    return visible(text) if text and "\ufffd" not in text else _bytes(piece)


def _bytes(piece: str) -> str:
    """A piece that is no text: its bytes if it is written in the alphabet of byte-level tokenizers, else the piece."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {sign: number for number, sign in bytes_to_unicode().items()}
    if not piece or not all(sign in byte_of for sign in piece):
        return visible(piece)
    numbers = " ".join(f"{byte_of[sign]:02X}" for sign in piece)
    return f"byte{'s' * (len(piece) > 1)} {numbers}"


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
