"""Transfer between tasks: similarity of tuned prompts, the choice of one to start from, and weighted sums.

SPoT: Vu et al., ACL 2022 (arXiv 2110.07904), sections 4.1 (similarity) and 4.2 (retrieval, weighted average).
Letters: P, Q virtual tokens of two prompts, d width, n prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from softprompt import store
from softprompt.backbones.base import Backbone
from softprompt.prompts.prompt_tuning import PromptTuning, VirtualTokens
from softprompt.store import BackboneIdentity
from softprompt.store.identity import identity_of
from softprompt.tasks.base import Task
from softprompt.tuned import TunedPrompt

Measure = Literal["per-token", "pooled"]
Source = TunedPrompt | str | Path
"""A tuned prompt, or the folder of a saved one, ours or PEFT's."""


@dataclass(frozen=True, eq=False)
class SourcePrompt:
    """The parts of a prompt that another can start from.

    name      of the folder, or of the method where the prompt is in memory
    tokens    (P, d), float32, on the CPU
    backbone  that it was trained on; None: PEFT's files do not say
    beside    other parts of the prompt (offsets of DePT and ADePT), which sums and ports leave out
    """

    name: str
    tokens: Tensor
    backbone: BackboneIdentity | None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankedSource:
    """A source prompt's place in the list that was given, its name, and its similarity to the target."""

    index: int
    name: str
    similarity: float


def read_source(source: Source) -> SourcePrompt:
    """The virtual tokens of a prompt, and the backbone they were trained on.

    Raises ValueError for a prompt without virtual tokens, or with key-value or hidden-state prompts; PromptFileError
    (a ValueError) for a folder that cannot be read.
    """
    if isinstance(source, TunedPrompt):
        output = source.module.bake()()
        beside = output.beside_tokens
        if output.tokens is None or not {"offset", "token_offset"}.issuperset(beside):
            raise ValueError(
                f"a {source.method.name} prompt is more than virtual tokens, or none: transfer needs a prompt that is "
                "one (P, d) table, as PromptTuning's is"
            )
        identity = source.identity or identity_of(source.backbone)
        return SourcePrompt(
            source.method.name, output.tokens[0].detach().float().cpu(), identity, beside
        )  # (1, P, d) -> (P, d)
    tokens = store.load_tokens(source)
    if (Path(source) / "adapter_config.json").exists():
        return SourcePrompt(str(source), tokens.float(), None)
    saved = store.load(source)
    rest = (name.removeprefix("prompt.") for name in saved.tensors if not name.startswith("head."))
    # The ids of words that were searched for say again what their tokens are.
    beside = tuple(name for name in rest if name not in ("tokens", "ids"))
    return SourcePrompt(str(source), tokens, saved.backbone, beside)


def cosine(one: Tensor, other: Tensor, measure: Measure = "per-token") -> float:
    """Similarity of two tables of virtual tokens (P, d) and (Q, d), from -1 to 1, computed in float64.

    per-token  mean over all P x Q pairs of the cosine of two tokens; the paper's better one for retrieval
    pooled     cosine of the two means over tokens

    Neither depends on the order of the tokens, and P may differ from Q. A token of zeros has cosine 0 with everything.
    The per-token mean of a prompt with itself is not 1, for its tokens differ.
    Raises ValueError for tables of different widths.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(
            f"virtual tokens of shapes {tuple(one.shape)} and {tuple(other.shape)} cannot be compared: both must be (P, d) "
            "of the same width d; port_prompt converts a prompt to the width of another model"
        )
    one, other = one.double(), other.double()
    if measure == "pooled":
        return float(functional.cosine_similarity(one.mean(0), other.mean(0), dim=0))
    # The mean of all cosines is the product of the mean unit vectors: (1, d) x (d, 1).
    return float(functional.normalize(one, dim=1).mean(0) @ functional.normalize(other, dim=1).mean(0))


def prompt_similarity(one: Source, other: Source, measure: Measure = "per-token") -> float:
    """`cosine` of two prompts of one backbone. Only their virtual tokens count.

    Raises what `read_source` does, and ValueError for prompts of different backbones.
    """
    first, second = read_source(one), read_source(other)
    _check_together([first, second])
    return cosine(first.tokens, second.tokens, measure)


def similarity_matrix(prompts: Sequence[Source], measure: Measure = "per-token") -> Tensor:
    """`prompt_similarity` of each pair of prompts, (n, n), float64."""
    read = [read_source(prompt) for prompt in prompts]
    _check_together(read)
    return torch.tensor(
        [[cosine(a.tokens, b.tokens, measure) for b in read] for a in read], dtype=torch.float64
    )


def rank_sources(
    target: Source, sources: Sequence[Source], *, measure: Measure = "per-token", top: int | None = None
) -> list[RankedSource]:
    """The source prompts that are most similar to the target, best first; equal ones in the given order.

    target: a prompt tuned shortly on the target task. The paper takes all prompts after the same number of steps,
    10,000, rather than their best checkpoints. top: how many; None: all.
    Raises what `prompt_similarity` does; ValueError if there are no sources, or `top` is below 1.
    """
    if not sources:
        raise ValueError("no source prompts were given")
    if top is not None and top < 1:
        raise ValueError(f"top={top}: expected 1 source or more")
    wanted, read = read_source(target), [read_source(source) for source in sources]
    _check_together([wanted, *read])
    ranked = [
        RankedSource(i, source.name, cosine(wanted.tokens, source.tokens, measure))
        for i, source in enumerate(read)
    ]
    return sorted(ranked, key=lambda found: -found.similarity)[:top]


def proportional_weights(similarities: Sequence[float]) -> list[float]:
    """Each similarity as a share of their sum, as in the paper. Raises ValueError unless all are above zero."""
    if not similarities or min(similarities) <= 0:
        raise ValueError(
            f"similarities are {list(similarities)}: shares of a sum need numbers above zero; leave the unlike sources "
            "out, or take softmax_weights"
        )
    return [value / sum(similarities) for value in similarities]


def softmax_weights(similarities: Sequence[float], temperature: float = 1.0) -> list[float]:
    """softmax(similarity / temperature), for any similarities; a low temperature chooses the best one."""
    if not similarities or not temperature > 0:
        raise ValueError(
            f"softmax of {list(similarities)} at temperature {temperature}: expected one similarity or more and a "
            "temperature above zero"
        )
    return (torch.tensor(similarities, dtype=torch.float64) / temperature).softmax(0).tolist()


def combine_prompts(
    sources: Sequence[Source], backbone: Backbone, task: Task, weights: Sequence[float] | None = None
) -> TunedPrompt:
    """The weighted sum of prompts of one backbone and one length, as an untrained prompt for `task`.

    weights: one for each source, used as they are; None: the mean. Save it, and any method takes the folder as its
    init_prompt. A task that is answered by a head gets none: there the result is a start only.
    Raises what `read_source` does, and ValueError for prompts of another backbone or of different lengths, for
    prompts that have more than virtual tokens, and for weights that are not one finite number each.
    """
    if not sources:
        raise ValueError("no source prompts were given")
    read = [read_source(source) for source in sources]
    here = SourcePrompt("the backbone given", backbone.spec.embed(torch.tensor([0])), identity_of(backbone))
    _check_together([here, *read])
    for source in read:
        check_tokens_only(source)
    lengths = [len(source.tokens) for source in read]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the prompts have {lengths} virtual tokens: a sum needs equal lengths; init_prompt repeats or cuts one"
        )
    if weights is None:
        weights = [1 / len(read)] * len(read)
    shares = torch.tensor(weights, dtype=torch.float64)
    if len(shares) != len(read) or not shares.isfinite().all():
        raise ValueError(f"weights are {list(weights)} for {len(read)} prompts: each needs one finite number")
    stacked = torch.stack([source.tokens for source in read]).double()  # (n, P, d)
    tokens = torch.einsum("n,npd->pd", shares, stacked).float()
    made = {"sum_of": [source.name for source in read], "weights": list(weights)}
    return untrained_prompt(tokens, backbone, task, made)


def untrained_prompt(tokens: Tensor, backbone: Backbone, task: Task, made: Mapping[str, Any]) -> TunedPrompt:
    """Virtual tokens (P, d) as a prompt that predicts and can be saved; `made` describes their origin."""
    module = VirtualTokens(tokens).to(backbone.device).requires_grad_(False)
    return TunedPrompt(backbone, task, PromptTuning(length=len(tokens)), module, recipe=made)


def check_tokens_only(source: SourcePrompt) -> None:
    """Raise ValueError for a prompt that has more than virtual tokens, which mean little without the rest."""
    if source.beside:
        raise ValueError(
            f"{source.name} has {', '.join(source.beside)} beside its virtual tokens, which would be lost: start from it "
            "alone, with its own method's init_prompt, or take prompts that are virtual tokens only"
        )


def _check_together(sources: Sequence[SourcePrompt]) -> None:
    """Check that all have one width and, if they name it, one backbone."""
    first = next((source for source in sources if source.backbone is not None), sources[0])
    for source in sources:
        if differing := _differences(first, source):
            raise ValueError(
                f"the prompts are of different backbones, where numbers mean different things: {_told(first)}, "
                f"{_told(source)} (they differ in {', '.join(differing)}); port_prompt converts a prompt to another model"
            )


def _differences(one: SourcePrompt, other: SourcePrompt) -> list[str]:
    found = ["width"] if one.tokens.shape[1] != other.tokens.shape[1] else []
    if one.backbone is None or other.backbone is None:
        return found
    for field in ("family", "vocabulary", "config_digest", "table_digest", "tokenizer_digest"):
        a, b = getattr(one.backbone, field), getattr(other.backbone, field)
        if a is not None and b is not None and a != b:
            found.append(field.replace("_digest", "").replace("table", "embedding table"))
    return found


def _told(source: SourcePrompt) -> str:
    trained_on = "an unknown backbone" if source.backbone is None else source.backbone.name
    return f"{source.name} is of {trained_on}, width {source.tokens.shape[1]}"
