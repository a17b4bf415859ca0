"""Inspection of virtual tokens: the words near to them, their norms, and their initial values. P tokens, V words, d width.

A virtual token may lie where no word lies, and the words that are nearest to it by one measure are often not the nearest by
another: they are a hint at what was learned, not a translation of it. Lester et al. 2021 (arXiv 2104.08691, section 7) found
clusters of similar words; Khashabi et al. 2022 (arXiv 2112.08348) found good prompts near to any text that they chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt.backbones.base import Backbone
from softprompt.binding import new_head
from softprompt.inspection.nearest import (
    MEASURES,
    Measure,
    Nearest,
    common_part,
    final_norm,
    logit_lens,
    nearest_words,
    rows_without_words,
    table_chunks,
    table_norms,
    token_text,
)
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext
from softprompt.tasks.base import Task
from softprompt.tasks.inputs import as_row

if TYPE_CHECKING:
    from softprompt.tuned import TunedPrompt

_STRIP = 32  # cells of a token's strip


@dataclass(frozen=True)
class Word:
    """A row of the vocabulary with its white space made visible, and its score by the measure that found it."""

    id: int
    text: str
    score: float


@dataclass(frozen=True)
class TokenReport:
    """The report of one virtual token.

    place            its number in its prompt, from 0, after the name of the prompt if there are several
    norm             its L2 norm
    norm_percentile  the share of the vocabulary's rows whose norm is not larger, 0 to 100
    nearest          measure -> words, the nearest first; "centred" is the cosine without what nearly all words share
    lens             the words that final norm and output head give for the vector itself; None: there is no such head
    started_as       the word nearest to its initial value by cosine; None: unknown
    drift_cosine     its cosine with its initial value; None: unknown
    drift_l2         its L2 distance from its initial value; None: unknown
    strip            the mean absolute value in equal slices of the vector, in standard deviations of the table
    """

    place: str
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
    """The report of a prompt's virtual tokens.

    init             how the initial values are known, or why they are not
    lens             the modules of the logit lens, as in "model.norm, lm_head"; None: there is no such head
    vocabulary_norm  the mean and the standard deviation of the L2 norms of the table's rows
    beside           what else the method learned, which cannot be compared with words
    """

    method: str
    backbone: str
    init: str
    lens: str | None
    vocabulary_norm: tuple[float, float]
    beside: tuple[str, ...]
    tokens: tuple[TokenReport, ...]


def drift_in_words(token: TokenReport) -> str:
    """Return in words how far a token is from its initial value; empty if that is unknown."""
    if token.started_as is None or token.drift_l2 is None:
        return ""
    return f"{token.started_as.text} cos {token.drift_cosine:.2f} L2 {token.drift_l2:.2g}"


def moved(report: PromptReport, token: TokenReport) -> float | None:
    """Return how far a token is from its initial value, in mean norms of a word; None: that is unknown."""
    return None if token.drift_l2 is None else token.drift_l2 / report.vocabulary_norm[0]


def summary_of(report: PromptReport) -> str:
    """Return in a sentence how many virtual tokens there are, how far they moved, and how many are near to where they began."""
    count = len(report.tokens)
    if not count:
        return "The method has no virtual tokens."
    said = f"{count} virtual token{'s' * (count > 1)}"
    ways = [way for token in report.tokens if (way := moved(report, token)) is not None]
    if not ways:
        return f"{said}. How far they moved is not known: {report.init}."
    still = sum(
        token.started_as is not None and token.nearest["cosine"][0].id == token.started_as.id
        for token in report.tokens
        if token.nearest.get("cosine")
    )
    far = f"moved {sum(ways) / len(ways):.2g} of a word's norm" + (" on average" if count > 1 else "")
    are, they = ("is", "it") if still == 1 else ("are", "they")
    return f"{said} {far}; {still} {are} still nearest to the word where {they} began."


def initial_tokens(tuned: TunedPrompt) -> tuple[Tensor | None, str]:
    """Return the initial virtual tokens (P, d), built again from the seed, and how they are known; or None, and why not."""
    method, seed = tuned.method, tuned.recipe.get("seed")
    init = getattr(method, "init", None)
    if not tuned.recipe.get("trained_parameters"):
        return None, "init unknown: the prompt was not trained here"
    if tuned.recipe.get("start"):
        return None, "init unknown: training began with the tensors of another prompt"
    if init not in ("auto", "vocab", "uniform", "text", "labels") or not isinstance(seed, int):
        return None, f"init unknown: {method.name} cannot be built again from settings and seed alone"
    spec, generator = tuned.backbone.spec, torch.Generator().manual_seed(seed)
    new_head(method, tuned.task, spec, generator)  # drawn first, as in training
    context = BuildContext(spec, tuned.task.label_words, domains=tuned.task.domain_names, generator=generator)
    tokens = method.build(context).bake()().tokens
    if tokens is None:
        return None, "init unknown: the method has no virtual tokens"
    return tokens.flatten(0, 1).detach(), f"{init}, built again from seed {seed}"


def inspect_prompt(tuned: TunedPrompt, k: int = 5, inputs: Sequence[Any] = ()) -> PromptReport:
    """Return a report of a prompt's virtual tokens, with the k nearest words of each.

    Arguments:
        tuned: the prompt
        k: the number of words for each token
        inputs: as in `TunedPrompt.predict`, for a prompt that is a function of its rows; its mean over these is shown

    Raises:
        ValueError: for k < 1
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected 1 or more words for each token")
    spec, tokenizer = tuned.backbone.spec, tuned.backbone.tokenizer
    output, said = _output(tuned, inputs)
    beside = (*said, *_other_parts(output))
    norms = table_norms(table_chunks(spec))
    vocabulary_norm = norms.mean().item(), norms.std().item()
    if output.tokens is None:
        return PromptReport(
            method=tuned.method.name,
            backbone=tuned.backbone.name,
            init="no virtual tokens",
            lens=None,
            vocabulary_norm=vocabulary_norm,
            beside=beside,
            tokens=(),
        )

    names = prompt_names(tuned.task, output)
    places = [f"{name} {i}".strip() for name in names for i in range(output.tokens.shape[1])]
    tokens = output.tokens.flatten(0, 1).float().cpu()  # (G, P, d) -> (G P, d)
    start, init = initial_tokens(tuned)
    if start is not None and start.shape != tokens.shape:
        start, init = None, "init unknown: built again, it has another shape"
    skip = rows_without_words(tokenizer, spec.vocabulary)
    found = nearest_words(tokens, table_chunks(spec), k, skip=skip, common=common_part(spec, skip))
    began = None if start is None else nearest_words(start, table_chunks(spec), 1)["cosine"]
    lens, lens_path = _lens(tokens, tuned.backbone, k, skip)

    def words(nearest: Nearest, token: int) -> tuple[Word, ...]:
        pairs = zip(nearest.ids[token].tolist(), nearest.scores[token].tolist(), strict=True)
        return tuple(Word(i, token_text(tokenizer, i), score) for i, score in pairs)

    reports = []
    for i, token in enumerate(tokens):
        first = None if start is None else start[i].double()
        length = token.double().norm().item()
        reports.append(
            TokenReport(
                place=places[i],
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
    return PromptReport(
        method=tuned.method.name,
        backbone=tuned.backbone.name,
        init=init,
        lens=lens_path,
        vocabulary_norm=vocabulary_norm,
        beside=beside,
        tokens=tuple(reports),
    )


def prompt_names(task: Task, output: PromptOutput) -> list[str]:
    """Return a name for each prompt of an output: its domain, class or number; a single prompt has an empty name."""
    count = output.count
    domains, labels = list(task.domain_names), list(task.label_words)
    if count == 1:
        return [""]
    if output.groups == count == len(domains):
        return domains
    if output.texts is not None and count == len(labels) * max(len(domains), 1):
        return [f"{domain} {label}".strip() for domain in domains or [""] for label in labels]
    return [f"prompt {g}," for g in range(count)]


def _output(tuned: TunedPrompt, inputs: Sequence[Any]) -> tuple[PromptOutput, list[str]]:
    """Return the prompt, and sentences that say how it was computed."""
    module = tuned.module.bake()
    with torch.no_grad():
        if module.reads is None:
            return module(), []
        if not inputs:
            return PromptOutput(), [
                "virtual tokens that are a function of the row: give rows to see their mean"
            ]
        rows = [tuned.encoder.encode(as_row(tuned.task, value), answer=False) for value in inputs]
        output = tuned.model.prompt(rows)
    if output.tokens is None:
        return output, []
    mean = output.tokens.mean(dim=0, keepdim=True)  # (G, P, d) -> (1, P, d)
    said = f"a function of the row: the virtual tokens shown are the mean over {len(rows)} rows"
    return replace(output, tokens=mean, rows=None), [said]


def _other_parts(output: PromptOutput) -> list[str]:
    """What a prompt has learned besides virtual tokens, in words."""
    found = []
    if output.prefix is not None:
        found.append(
            f"keys and values of {output.prefix[0][0].shape[2]} positions in {len(output.prefix)} layers"
        )
    if output.layers is not None:
        found.append(f"prompts of {len(output.layers)} layers")
    if output.offset is not None:
        found.append(f"an offset on the first {output.offset.shape[1]} text tokens")
    if output.token_offset is not None:
        found.append("an offset on each text token, a function of its embedding")
    return found


def _lens(tokens: Tensor, backbone: Backbone, k: int, skip: Tensor) -> tuple[Nearest | None, str | None]:
    """The words that final norm and output head give for each token, and the names of both; None without such a head."""
    head, norm = backbone.model.get_output_embeddings(), final_norm(backbone.model)
    if not isinstance(head, nn.Linear) or head.in_features != backbone.spec.width:
        return None, None
    head_name = next((name for name, module in backbone.model.named_modules() if module is head), "")
    path = ", ".join([*([norm[0]] if norm else []), head_name])
    return logit_lens(tokens, norm[1] if norm else None, head, k, skip=skip), path


def _cosine(one: Tensor, other: Tensor) -> float:
    return functional.cosine_similarity(one, other, dim=0).item()
