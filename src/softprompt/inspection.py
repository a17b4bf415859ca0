"""What virtual tokens are near to: words, sizes, and where they started. P tokens, V words, d width.

A virtual token is free to lie where no word lies, and the words that are nearest to it by one measure are
often not nearest by another: they are a hint at what was learned, not a translation of it. Lester et al.
2021 (arXiv 2104.08691, section 7) found clusters of alike words; Khashabi et al. 2022 (arXiv 2112.08348)
found good prompts near to any text they chose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec
from softprompt.prompts.base import BuildContext

if TYPE_CHECKING:
    from softprompt.tuned import TunedPrompt

Measure = Literal["cosine", "l2", "dot"]
MEASURES: tuple[Measure, ...] = ("cosine", "l2", "dot")

_CHUNK = 2048  # rows of the table at a time: 64 MB in float64 at d = 4096
_STRIP = 32  # cells of a token's strip
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")  # as transformers names them


@dataclass(frozen=True)
class Nearest:
    """ids (P, k) and scores (P, k), nearest first: largest cosine or dot product, smallest L2 distance."""

    ids: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Word:
    """A vocabulary row, white space made visible, and its score by the measure it was found with."""

    id: int
    text: str
    score: float


@dataclass(frozen=True)
class TokenReport:
    """One virtual token.

    norm             L2
    norm_percentile  share of the vocabulary's rows that are no longer, 0 to 100
    nearest          measure -> words, the nearest first
    lens             words that final norm and output head give for the vector itself; None: no such head
    started_as       the nearest word by cosine of its initial vector; None: unknown
    drift_cosine     cosine to its initial vector; None: unknown
    drift_l2         distance from its initial vector; None: unknown
    strip            mean absolute value in equal slices of the vector, in standard deviations of the table
    """

    norm: float
    norm_percentile: float
    nearest: Mapping[Measure, tuple[Word, ...]]
    lens: tuple[Word, ...] | None
    started_as: Word | None
    drift_cosine: float | None
    drift_l2: float | None
    strip: tuple[float, ...]


@dataclass(frozen=True)
class PromptReport:
    """A prompt's virtual tokens, and what they are compared with.

    init             where the initial vectors are known from, or why they are not
    lens             what the logit lens went through, as in "model.norm, lm_head"; None: no such head
    vocabulary_norm  mean and standard deviation of the L2 norms of the table's rows
    beside           what else the method learned, which has no place among words
    """

    method: str
    backbone: str
    init: str
    lens: str | None
    vocabulary_norm: tuple[float, float]
    beside: tuple[str, ...]
    tokens: tuple[TokenReport, ...]


def table_chunks(spec: BackboneSpec, rows: int = _CHUNK) -> Iterator[Tensor]:
    """The embedding table as the model uses it, (<= rows, d) at a time."""
    for start in range(0, spec.vocabulary, rows):
        yield spec.embed(torch.arange(start, min(start + rows, spec.vocabulary)))


def nearest_words(tokens: Tensor, table: Iterable[Tensor], k: int) -> dict[Measure, Nearest]:
    """The k nearest rows of a table by every measure, in one pass over its chunks.

    tokens (P, d); table: chunks (n, d), as `table_chunks` gives them. Computed in float64; fewer than k where
    the table has fewer rows. The cosine with a zero vector is 0.
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
    """L2 norms of the table's rows, (V,), float64."""
    return torch.cat([chunk.double().norm(dim=-1) for chunk in table])


def logit_lens(tokens: Tensor, norm: Callable[[Tensor], Tensor] | None, head: nn.Module, k: int) -> Nearest:
    """The k words with the largest logits if each vector stood behind the last layer.

    tokens (P, d). The logits are the head's own: a model that scales or caps them afterwards keeps the order.
    """
    like = next(head.parameters())
    hidden = tokens.to(like.device, like.dtype)
    with torch.no_grad():
        logits = head(norm(hidden) if norm is not None else hidden).double().cpu()  # (P, d) -> (P, V)
    return Nearest(*reversed(logits.topk(min(k, logits.shape[-1]), dim=-1)))


def drift_in_words(token: TokenReport) -> str:
    """How far a token is from its start, in words; empty where that is unknown."""
    if token.started_as is None or token.drift_l2 is None:
        return ""
    return f"{token.started_as.text} cos {token.drift_cosine:.2f} L2 {token.drift_l2:.2g}"


def final_norm(model: PreTrainedModel) -> tuple[str, nn.Module] | None:
    """Name and module of the norm between the last layer and the output head, None if none is found."""
    for base in (model.base_model, getattr(model.base_model, "decoder", None)):
        for name in _FINAL_NORMS:
            if isinstance(module := getattr(base, name, None), nn.Module):
                return next(path for path, other in model.named_modules() if other is module), module
    return None


def initial_tokens(tuned: TunedPrompt) -> tuple[Tensor | None, str]:
    """The virtual tokens (P, d) that training began with, built again from the seed; and how, or why not."""
    method, seed = tuned.method, tuned.recipe.get("seed")
    init = getattr(method, "init", None)
    if not tuned.recipe.get("trained_parameters"):
        return None, "init unknown: the prompt was not trained here"
    if init not in ("auto", "vocab", "uniform", "text", "labels") or not isinstance(seed, int):
        return None, f"init unknown: {method.name} cannot be built again from settings and seed alone"
    context = BuildContext(
        tuned.backbone.spec, tuned.task.label_words, generator=torch.Generator().manual_seed(seed)
    )
    tokens = method.build(context).bake()().tokens
    if tokens is None:
        return None, "init unknown: the method has no virtual tokens"
    return tokens[0].detach(), f"{init}, built again from seed {seed}"


def inspect_prompt(tuned: TunedPrompt, k: int = 5) -> PromptReport:
    """Everything this file knows about a prompt's virtual tokens, with the k nearest words of each.

    Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected 1 or more words for each token")
    spec, model, tokenizer = tuned.backbone.spec, tuned.backbone.model, tuned.backbone.tokenizer
    with torch.no_grad():
        output = tuned.module.bake()()
    beside = []
    if output.prefix is not None:
        beside.append(
            f"keys and values of {output.prefix[0][0].shape[2]} positions in {len(output.prefix)} layers"
        )
    if output.layers is not None:
        beside.append(f"prompts of {len(output.layers)} layers")
    if output.offset is not None:
        beside.append(f"an offset on the first {output.offset.shape[1]} text tokens")
    if output.token_offset is not None:
        beside.append("an offset on each text token, a function of its embedding")
    norms = table_norms(table_chunks(spec))
    vocabulary_norm = norms.mean().item(), norms.std().item()
    if output.tokens is None:
        return PromptReport(
            tuned.method.name,
            tuned.backbone.name,
            "no virtual tokens",
            None,
            vocabulary_norm,
            tuple(beside),
            (),
        )

    tokens = output.tokens[0].float().cpu()  # (1, P, d) -> (P, d)
    start, init = initial_tokens(tuned)
    if start is not None and start.shape != tokens.shape:
        start, init = None, "init unknown: built again, it has another shape"
    found = nearest_words(tokens, table_chunks(spec), k)
    began = None if start is None else nearest_words(start, table_chunks(spec), 1)["cosine"]
    head, norm = model.get_output_embeddings(), final_norm(model)
    lens = None
    if isinstance(head, nn.Linear) and head.in_features == spec.width:
        lens = logit_lens(tokens, norm[1] if norm else None, head, k)
    head_name = next((name for name, module in model.named_modules() if module is head), "")

    def words(nearest: Nearest, token: int) -> tuple[Word, ...]:
        pairs = zip(nearest.ids[token].tolist(), nearest.scores[token].tolist(), strict=True)
        return tuple(Word(i, token_text(tokenizer, i), score) for i, score in pairs)

    reports = []
    for i, token in enumerate(tokens):
        first = None if start is None else start[i].double()
        length = token.double().norm().item()
        reports.append(
            TokenReport(
                norm=length,
                norm_percentile=100 * (norms <= length).double().mean().item(),
                nearest={measure: words(found[measure], i) for measure in MEASURES},
                lens=None if lens is None else words(lens, i),
                started_as=None if began is None else words(began, i)[0],
                drift_cosine=None if first is None else _cosine(token.double(), first),
                drift_l2=None if first is None else (token.double() - first).norm().item(),
                strip=tuple((part.abs().mean().item() / spec.embedding_std) for part in token.chunk(_STRIP)),
            )
        )
    lens_path = None if lens is None else ", ".join([*([norm[0]] if norm else []), head_name])
    return PromptReport(
        tuned.method.name,
        tuned.backbone.name,
        init,
        lens_path,
        vocabulary_norm,
        tuple(beside),
        tuple(reports),
    )


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as visible text; bytes that are no text by themselves as the tokenizer stores them."""
    piece = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if not isinstance(piece, str):
        return f"<row {token}>"  # the table is often longer than the vocabulary
    if "\u2581" in piece:  # SentencePiece's space, which decoding drops at the front
        return visible(piece.replace("\u2581", " "))
    text = str(tokenizer.decode([token]))
    return visible(piece if not text or "\ufffd" in text else text)


def visible(text: str) -> str:
    """The text with a sign for each space, tab and line end, and codes for what cannot be printed.

    Four signs and more of one kind in a row are counted, as in "\u2423\u00d717".
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


def _cosine(one: Tensor, other: Tensor) -> float:
    return functional.cosine_similarity(one, other, dim=0).item()


def _joined(one: Nearest, other: Nearest) -> Nearest:
    return Nearest(torch.cat([one.ids, other.ids], dim=-1), torch.cat([one.scores, other.scores], dim=-1))


def _best(candidates: Nearest, k: int, measure: Measure) -> Nearest:
    # Stable: of two rows as near as each other, the one with the smaller id.
    order = candidates.scores.argsort(dim=-1, descending=measure != "l2", stable=True)[:, :k]
    return Nearest(candidates.ids.gather(1, order), candidates.scores.gather(1, order))
