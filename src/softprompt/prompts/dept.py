"""DePT trains a short prompt, and a low-rank offset for the words after it. Shi, Lipani, ICLR 2024 (arXiv 2309.05173).

input = [P_s ; E(x) + c (A B)_{0:T}],   P_s (m, d), A (s, r), B (r, d), c = 8 / sqrt(r)          (section 2.2)

Letters: m virtual tokens, s text positions, r rank, d width, l tokens of a Prompt Tuning prompt with equally many numbers.
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

# In the released runs, alpha2 / alpha1 lies between 1/4000 and 1/60. Each number of B moves a word by about c sqrt(r / 3) of
# its own step, and all words of all rows share B.
OFFSET_RATE = 0.01


@plain_dataclass(frozen=True)
class DePTSizes:
    """length m, rank r, positions s, and `parameters`, the count of trained numbers: m d + (s + d) r."""

    length: int
    rank: int
    positions: int
    parameters: int


def dept_sizes(
    budget: int, *, width: int, positions: int, length: int | None = None, rank: int | None = None
) -> DePTSizes:
    """Return the sizes that fit into the numbers of a Prompt Tuning prompt: l d >= m d + (s + d) r.

    Sizes are rounded down, so that the budget is not exceeded; the paper's own sizes for MultiRC (60, 30, 348) exceed theirs
    by 3.6 %.

    Arguments:
        budget: l, the tokens of the Prompt Tuning prompt
        width: d
        positions: s
        length: m; the largest rank that fits is found
        rank: r; the largest length that fits is found

    Raises:
        ValueError: unless exactly one of length and rank is given, and if nothing fits
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
    """A short prompt is trained together with a low-rank offset on the input embeddings, one row for each text position.

    The offset follows the text, not the columns of a padded batch: the first text token (a BOS if there is one) has row 0,
    even after a prompt or padding. In a causal model the answer is text too, in training and in generation. Text beyond the
    `positions` rows of the offset has no offset.

    With init="prompt" and a prompt of DePT, the initial values of A and B are that prompt's (the paper's transfer).
    """

    length: int = Field(default=12, gt=0)
    """m, the number of virtual tokens. The paper recommends 40 to 60 in a budget of 100."""
    budget: int = Field(default=20, gt=0)
    """l: at most as many numbers are trained as Prompt Tuning trains with l tokens."""
    rank: int | None = Field(default=None, gt=0)
    """r, the rank of the offset; the default is what the budget leaves."""
    positions: int | None = Field(default=None, gt=0)
    """s, the number of text tokens with an offset; the default is the length of the longest training row with its answer."""
    init: initial.Init = "auto"
    """The initial values of the virtual tokens; see Prompt Tuning."""
    init_text: str | None = None
    """The text of init="text"; its tokens are repeated or cut to `length`."""
    init_prompt: Path | None = None
    """The folder of a saved prompt for init="prompt"."""
    offset_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of A and B (alpha2); the default is a hundredth of the prompt's."""

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
        """Return A and B of the prompt in `init_prompt`, if it has any."""
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
                f"{self.init_prompt} has an offset of (positions, rank) = {found}, and the settings "
                f"ask for ({self.positions}, {self.rank}): leave both out to use it as it is"
            )
        return offset_a, offset_b

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return ShortPromptWithOffset(tensors["tokens"], tensors["offset_a"], tensors["offset_b"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of the virtual tokens (alpha1): a tenth of the table's standard deviation, as in Prompt Tuning."""
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

    They are saved as they are: the factors are smaller than the (s, d) offset, and another task can begin with them.
    """

    def __init__(self, tokens: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens.float())
        self.offset_a = nn.Parameter(offset_a.float())
        self.offset_b = nn.Parameter(offset_b.float())
        self.length = len(tokens)

    def forward(self) -> PromptOutput:
        # All s rows are computed, once for a whole batch, and the backbone uses those where text stands. At T5-base sizes
        # this is less work than one word in one layer.
        scale = 8 / math.sqrt(len(self.offset_b))
        offset = scale * (self.offset_a @ self.offset_b)  # (s, r) x (r, d) -> (s, d)
        return PromptOutput(tokens=self.tokens[None], offset=offset[None])


def _longest(context: BuildContext) -> int:
    """Return the text tokens of the longest training row that the model reads; it only predicts the last one of an answer.

    Texts that an image is compared with are read as a whole.
    """
    answers = [(len(r.context), max(map(len, r.targets), default=1)) for r in context.rows()]
    return max((before + longest - bool(before) for before, longest in answers), default=1)
