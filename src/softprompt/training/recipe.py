"""How a run is trained: settings with defaults that learn, and the learning rate of each step."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypedDict

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from softprompt.later import LATER
from softprompt.plain_settings import PlainSettings
from softprompt.truth_values import numbers_apart

Tracker = Literal[
    "tensorboard", "wandb", "trackio", "mlflow", "aim", "clearml", "comet_ml", "dvclive", "swanlab"
]


def _in_seconds(given: Any) -> float | None:
    """ "90s", "5m" or "1.5h" as seconds. Raises ValueError for what is no time above 0."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", given) if isinstance(given, str) else None
    if given is None:
        return None
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else given
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f'budget is {given!r}: expected seconds above 0, or a time like "90s", "5m", "1h"')
    return float(seconds)


ADAMW_BETAS = (0.9, 0.999)
_STEPS = 300


@dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True),
)
class Recipe(metaclass=PlainSettings):
    """Settings of a training run. Values that do not fit raise ValueError."""

    __get_pydantic_core_schema__: ClassVar[Any] = classmethod(numbers_apart)

    steps: int = Field(default=_STEPS, ge=1)
    """Optimizer steps."""

    batch_size: int = Field(default=16, ge=1)
    """Rows of one optimizer step, over all processes and micro-batches."""

    accumulation: int = Field(default=1, ge=1)
    """Micro-batches that a batch is split into: less memory, the same gradient."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; none: the method's default for the backbone."""

    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of a task's head, where there is one; none: the method's default."""

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """Optimizer, from torch.optim."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""

    betas: tuple[float, float] = ADAMW_BETAS
    """AdamW's decay rates of the running mean and of the running square of the gradient."""

    warmup: float = Field(default=0.06, ge=0)
    """Steps over which the learning rate rises: below 1 a fraction of all steps, else a number of steps."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warmup: to zero in a line or half a cosine, or not at all."""

    clip_norm: float | None = Field(default=1.0, gt=0)
    """Longest gradient, as the norm over all trained tensors; none: no clipping."""

    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; none: a tenth of all steps. The last step is always evaluated."""

    patience: int | None = Field(default=None, ge=1)
    """Evaluations without improvement after which training stops; none: never before the last step."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides the order of the rows and the randomness in the trained modules."""

    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; none: one at each evaluation."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""

    compile: bool = False
    """Run the backbone through torch.compile: a slow first step, faster ones after it."""

    trackers: tuple[Tracker, ...] = ()
    """Where losses and metrics are logged, in addition to the history."""

    epochs: Annotated[float | None, LATER] = Field(default=None, gt=0)
    """Times over the training rows, instead of `steps`; a run turns it into steps, and saves these."""

    budget: Annotated[float | str | None, BeforeValidator(_in_seconds), LATER] = None
    """Seconds for the whole run, or "90s", "5m", "1h", instead of `steps`; a trial turns it into steps once, and a run saves
    these."""

    main_metric: Annotated[str | None, LATER] = None
    """The validation metric that decides which tensors are best; none: the task's own."""

    greater_is_better: Annotated[bool, LATER] = True
    """Whether a higher main metric is better; false for an error or a perplexity."""

    head_first: Annotated[bool, LATER] = False
    """Fit a task's head before the first step, on states that the initial prompt gives, and train it on at a tenth of its
    rate: training begins at a probe of the frozen backbone. The start counts among the evaluations."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Longest row in tokens, virtual tokens and answer included; none: what the backbone can read."""

    def in_steps(self, rows: int) -> Recipe:
        """The recipe for so many training rows, with `epochs` turned into steps.

        Raises ValueError (pydantic's) where warmup or evaluate_every are longer than that.
        """
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * math.ceil(rows / self.batch_size)))
        return replace(self, steps=steps, epochs=None)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warmup."""
        return round(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    @property
    def evaluation_interval(self) -> int:
        """Optimizer steps between evaluations."""
        return self.evaluate_every or max(1, self.steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        """Optimizer steps between checkpoints."""
        return self.checkpoint_every or self.evaluation_interval

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Recipe:
        if self.warmup > 1 and self.warmup != int(self.warmup):
            raise ValueError(
                f"warmup is {self.warmup}: give a fraction of the steps below 1, or a whole number of steps"
            )
        lengths = {
            "steps": self.steps if self.steps != _STEPS else None,
            "epochs": self.epochs,
            "budget": self.budget,
        }
        given = [f"{name} is {value:g}" for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        known = self.epochs is None and self.budget is None
        if known and self.warmup_steps >= self.steps > 1:
            raise ValueError(
                f"warmup takes {self.warmup_steps} steps and steps is {self.steps}: the learning rate would "
                "never come down; make warmup shorter or steps more"
            )
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation is {self.accumulation} and batch_size is {self.batch_size}: a batch cannot be "
                "split into more micro-batches than it has rows"
            )
        if known and self.evaluate_every is not None and self.evaluate_every > self.steps:
            raise ValueError(
                f"evaluate_every is {self.evaluate_every} and steps is {self.steps}: give evaluate_every at "
                f"most {self.steps}, or leave it out for a tenth of the steps"
            )
        if self.optimizer == "adafactor" and self.betas != ADAMW_BETAS:
            raise ValueError(
                f"betas is {self.betas} and optimizer is 'adafactor', which has none: leave betas out, or "
                "use optimizer 'adamw'"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}: both must be at least 0 and below 1")
        return self


class RecipeSettings(TypedDict, total=False):
    """The fields of `Recipe` as keywords of a function: `**settings: Unpack[RecipeSettings]`."""

    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float | None
    head_learning_rate: float | None
    optimizer: Literal["adamw", "adafactor"]
    weight_decay: float
    betas: tuple[float, float]
    warmup: float
    schedule: Literal["linear", "cosine", "constant"]
    clip_norm: float | None
    evaluate_every: int | None
    patience: int | None
    seed: int
    checkpoint_every: int | None
    gradient_checkpointing: bool
    compile: bool
    trackers: tuple[Tracker, ...]
    epochs: float | None
    budget: float | str | None
    main_metric: str | None
    greater_is_better: bool
    head_first: bool
    max_tokens: int | None


def lr_factor(recipe: Recipe, step: int) -> float:
    """The learning rate of a step as a fraction of the peak; a function of the step alone.

    step: steps done before this one, from 0 to `recipe.steps - 1`. No step is wasted at a rate of zero: a
    warmup of w steps starts at 1 / (w + 1) and reaches 1 after them, and the line ends one step above zero.
    """
    warmup = recipe.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return 1.0
    done = (step - warmup) / (recipe.steps - warmup)
    return 1 - done if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
