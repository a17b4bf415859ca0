"""The input of the training loop for each run, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from softprompt.outputs import EncodedRow
from softprompt.training.callbacks import Callback
from softprompt.training.progress import Progress, Record
from softprompt.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Run:
    """A run to train: its tensors, rows and recipe.

    parameters   everything that is trained, by name; on one device, each requiring a gradient
    groups       optimizer groups over exactly these parameters, each with its `lr`, the peak learning rate
    evaluate     metrics of the current tensors, called without gradients on the main process; the highest
                 `main_metric` decides which tensors are best, the earlier of two equal ones
    folder       where checkpoint.safetensors and local trackers are written; None: nowhere
    resume       whether to resume from the checkpoint in `folder`, if there is one; False: it is removed and the run
                 starts anew
    start        the initial values, where they are not those that the recipe's seed gives: a checkpoint is resumed only
                 if it began with the same
    facts        what else the tensors depend on, by name, as JSON: a checkpoint is resumed only with the same facts
    content      sha256 of the rows before they were encoded, where these are so many that a checkpoint is recognised by it;
                 None: by the encoded rows
    progress     is told of each step and evaluation
    tallies      counts that grow in place while rows are scored, by name: saved in checkpoints, added up over processes
    number       the number of the prompt that the rows carry, where several runs share a model; None: the rows keep theirs
    judge_start  whether the initial tensors are evaluated too, and kept if no later ones are better
    callbacks    are told of each step, evaluation and checkpoint, and may stop the run
    """

    parameters: Mapping[str, nn.Parameter]
    groups: Sequence[Mapping[str, Any]]
    rows: Sequence[EncodedRow]
    recipe: Recipe
    evaluate: Callable[[], Mapping[str, float]] | None = None
    main_metric: str | None = None
    folder: Path | None = None
    resume: bool = True
    start: Mapping[str, Tensor] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    content: str | None = None
    progress: Progress | None = None
    tallies: Mapping[str, Tensor] = field(default_factory=dict)
    number: int | None = None
    callbacks: Sequence[Callback] = ()
    judge_start: bool = False

    def check(self) -> None:
        """Raises ValueError where the fields do not fit together."""
        if not self.parameters:
            raise ValueError("there is nothing to train: the method has no trained parameters")
        if not self.rows:
            raise ValueError("there are no training rows")
        frozen = [name for name, parameter in self.parameters.items() if not parameter.requires_grad]
        if frozen:
            raise ValueError(f"parameters that are to be trained have requires_grad=False: {frozen}")
        grouped = [id(parameter) for group in self.groups for parameter in group["params"]]
        left_out = [name for name, parameter in self.parameters.items() if id(parameter) not in grouped]
        if left_out or len(grouped) != len(self.parameters):
            raise ValueError(
                f"the optimizer groups hold {len(grouped)} tensors, expected exactly the {len(self.parameters)} "
                f"trained ones; without a group: {left_out}"
            )
        if not all("lr" in group for group in self.groups):
            raise ValueError("each optimizer group needs its own 'lr'")
        if self.evaluate is not None and self.main_metric is None:
            raise ValueError(
                "evaluate was given without main_metric: say which of its metrics decides what is best"
            )


@dataclass(frozen=True)
class TrainingResult:
    """How a run went. The best tensors are in the parameters.

    steps          optimizer steps made, those before a resume included
    resumed_after  steps made before the run was resumed; 0: it was not resumed
    stopped_early  whether patience ended the run
    best_step      the step whose tensors were kept; 0: the initial ones were; None: nothing was evaluated, and the last ones
                   were kept
    metrics        of the evaluation after that step
    history        one record per step
    concern        a sentence that says why probably nothing was learned; None: there is no such sign
    """

    steps: int
    resumed_after: int
    stopped_early: bool
    best_step: int | None
    metrics: Mapping[str, float]
    history: tuple[Record, ...]
    concern: str | None = None

    @property
    def seconds(self) -> float:
        """Time spent in steps, without evaluations and checkpoints."""
        return sum(record.seconds for record in self.history)

    @property
    def tokens(self) -> int:
        """Context and target tokens trained on, repetitions included."""
        return sum(record.tokens for record in self.history)
