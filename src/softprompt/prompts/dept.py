"""DePT: a short prompt, and a low-rank offset for the words behind it. Shi, Lipani, ICLR 2024 (arXiv 2309.05173).

input = [P_s ; E(x) + c (A B)_{0:T}],   P_s (m, d), A (s, r), B (r, d), c = 8 / sqrt(r)          (section 2.2)

Letters: m virtual tokens, s text positions, r rank, d width, l tokens of the Prompt Tuning prompt that has as many numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts import initialization as initial
from softprompt.prompts.base import BuildContext, Method, PromptModule

# Of the released runs, alpha2 / alpha1 lies between 1/4000 and 1/60; each number of B moves a word by c sqrt(r / 3) of
# its own step or so, and B is shared by all words of all rows.
OFFSET_RATE = 0.01


@plain_dataclass(frozen=True)
class DePTSizes:
    """length m, rank r and positions s, and `parameters`, the numbers that are trained: m d + (s + d) r."""

    length: int
    rank: int
    positions: int
    parameters: int


def dept_sizes(
    budget: int, *, width: int, positions: int, length: int | None = None, rank: int | None = None
) -> DePTSizes:
    """What fits into the numbers of a Prompt Tuning prompt of `budget` tokens: l d >= m d + (s + d) r.

    Give length m, and the largest rank is found, or give the rank, and the greatest length is found. Rounded down,
    so that the budget is kept; the paper's own sizes for MultiRC (60, 30, 348) are 3.6 % above theirs.
    Raises ValueError if not exactly one of the two is given, or if nothing fits.
    """
    if (length is None) == (rank is None):
        raise ValueError(
            f"give either length or rank, the other one is solved for; got length={length}, rank={rank}"
        )
    if min(budget, width, positions, length or 1, rank or 1) < 1:
        raise ValueError(
            f"sizes must be 1 or more: budget={budget}, width={width}, positions={positions}, length={length}, rank={rank}"
        )
    numbers = budget * width
    if length is not None:
        rank = (numbers - length * width) // (positions + width)
        if rank < 1:
            least = length + math.ceil((positions + width) / width)
            raise ValueError(
                f"{length} virtual tokens leave {max(numbers - length * width, 0)} of the {numbers} numbers that a budget "
                f"of {budget} tokens has at width {width}, an offset of rank 1 on {positions} positions takes "
                f"{positions + width}: give a budget of {least} or more, fewer virtual tokens, or fewer positions"
            )
    else:
        assert rank is not None
        length = (numbers - (positions + width) * rank) // width
        if length < 1:
            raise ValueError(
                f"an offset of rank {rank} on {positions} positions takes {(positions + width) * rank} numbers, a budget "
                f"of {budget} tokens has {numbers} at width {width}, and one virtual token needs {width}: give a larger "
                "budget, a lower rank, or fewer positions"
            )
    return DePTSizes(length, rank, positions, length * width + (positions + width) * rank)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DePT(Method):
    """A short prompt and a low-rank offset on the input embeddings, by the place of a word in the text.

    The offset follows the text, not the columns of a padded batch: the first text token (BOS included, where there is
    one) has row 0, whatever prompt or padding stands before it. In a causal model the answer is text too, in training
    and in generation. Text beyond the `positions` rows of the offset gets none.

    With init="prompt" and a prompt that DePT made, A and B start as that prompt's, too (the paper's transfer).
    """

    length: int = Field(default=12, gt=0)
    """m, virtual tokens. The paper recommends 40 to 60 in a budget of 100."""
    budget: int = Field(default=20, gt=0)
    """l: as many numbers are trained as Prompt Tuning trains with so many tokens, rounded down."""
    rank: int | None = Field(default=None, gt=0)
    """r of the offset; by default what the budget leaves."""
    positions: int | None = Field(default=None, gt=0)
    """s, text tokens that get an offset; by default the longest training row, its answer included."""
    init: initial.Init = "auto"
    """Where the virtual tokens start; see Prompt Tuning."""
    init_text: str | None = None
    """With init="text": its tokens, repeated or cut to `length`."""
    init_prompt: Path | None = None
    """With init="prompt": the folder of a saved prompt."""
    offset_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of A and B (alpha2); by default a hundredth of the prompt's."""

    name = "dept"

    @model_validator(mode="after")
    def _text_and_prompt_go_with_their_init(self) -> DePT:
        initial.check_start(self.init, self.init_text, self.init_prompt)
        return self

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.image is not None and spec.vision is None:
            return "its offsets are added to the embeddings of words, and this backbone reads images"
        return None

    def build(self, context: BuildContext) -> PromptModule:
        """Raises ValueError where the budget leaves nothing for the offset, or a source prompt has other sizes."""
        tokens = initial.start(context, self.length, self.init, self.init_text, self.init_prompt)
        if (source := self._source()) is not None:
            return ShortPromptWithOffset(tokens, *source)
        width, positions = context.spec.width, self.positions or _longest(context)
        rank = self.rank
        if rank is None:
            rank = dept_sizes(self.budget, width=width, positions=positions, length=self.length).rank
        offset_a = torch.empty(positions, rank)
        nn.init.kaiming_uniform_(offset_a, a=math.sqrt(5), generator=context.generator)
        return ShortPromptWithOffset(tokens, offset_a, torch.zeros(rank, width))

    def _source(self) -> tuple[Tensor, Tensor] | None:
        """A and B of the prompt to start from, if it has any."""
        if self.init_prompt is None or not (self.init_prompt / "prompt.json").exists():
            return None
        from softprompt import store

        tensors = store.load(self.init_prompt).tensors
        if "prompt.offset_a" not in tensors:
            return None
        offset_a, offset_b = tensors["prompt.offset_a"], tensors["prompt.offset_b"]
        found = (len(offset_a), len(offset_b))
        if found != (self.positions or found[0], self.rank or found[1]):
            raise ValueError(
                f"{self.init_prompt} has an offset of (positions, rank) = {found}, asked for are "
                f"({self.positions}, {self.rank}): leave both out to take it as it is"
            )
        return offset_a, offset_b

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return ShortPromptWithOffset(tensors["tokens"], tensors["offset_a"], tensors["offset_b"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Of the virtual tokens (alpha1): a tenth of the embedding table's standard deviation, as in Prompt Tuning."""
        return 0.1 * spec.embedding_std

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        assert isinstance(module, ShortPromptWithOffset)
        return [
            {"params": [module.tokens], "lr": lr},
            {
                "params": [module.offset_a, module.offset_b],
                "lr": self.offset_learning_rate or OFFSET_RATE * lr,
            },
        ]


class ShortPromptWithOffset(PromptModule):
    """tokens (m, d), offset_a (s, r), offset_b (r, d), float32.

    Saved as they are: the factors are smaller than the (s, d) offset, and another task can start from them.
    """

    def __init__(self, tokens: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens.float())
        self.offset_a = nn.Parameter(offset_a.float())
        self.offset_b = nn.Parameter(offset_b.float())
        self.length = len(tokens)

    def forward(self) -> PromptOutput:
        # Once for a whole batch, and at T5-base sizes less work than one word is in one layer: all s rows, then,
        # of which a backbone takes those where text stands.
        scale = 8 / math.sqrt(len(self.offset_b))
        offset = scale * (self.offset_a @ self.offset_b)  # (s, r) x (r, d) -> (s, d)
        return PromptOutput(tokens=self.tokens[None], offset=offset[None])


def _longest(context: BuildContext) -> int:
    """Text tokens of the longest training row that a model is fed: the last one of an answer is only predicted.

    Texts that an image is compared with are fed whole.
    """
    answers = [(len(r.context), max(map(len, r.targets), default=1)) for r in context.rows()]
    return max((before + longest - bool(before) for before, longest in answers), default=1)
