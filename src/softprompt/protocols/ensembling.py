"""Ensembles: several prompts of one task answer together, in one forward pass of the backbone.

Lester, Al-Rfou, Constant, EMNLP 2021 (arXiv 2104.08691), section 6: k prompts of different seeds, a batch of k x B rows,
the majority's answer. Letters: k prompts, B rows, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from softprompt.data import Row, Rows, by_length, read_rows
from softprompt.mixed import MixedPrompts, ScoredBatch
from softprompt.model import carrying
from softprompt.tasks import ClassPrediction
from softprompt.tasks.inputs import as_row
from softprompt.tuned import TunedPrompt

Rule = Literal["probability", "vote", "logit"]
RULES: tuple[Rule, ...] = get_args(Rule)

# Half of float32's smallest number: a probability that was rounded to 0 is below it.
_SMALLEST = 2.0**-150


@dataclass(frozen=True)
class EnsembleMetrics:
    """Metrics of an ensemble and of its members on the same rows.

    ensemble  rule -> the task's metrics of the combined answer
    members   the task's metrics of each member, in order
    mean      of each number in the members' metrics
    best      number of the member whose main metric is highest on these very rows, the first of equals: which one that
              is nobody knows beforehand
    """

    ensemble: Mapping[Rule, Mapping[str, Any]]
    members: tuple[Mapping[str, Any], ...]
    mean: Mapping[str, float]
    best: int


@dataclass(frozen=True, eq=False)
class PromptEnsemble:
    """Tuned prompts of one classification task on one backbone, which answer together.

    Lengths, methods, seeds and templates may differ. Each prompt is run once, and a batch of B rows is one forward pass of
    k x B rows.
    Raises ValueError for no prompts, tasks that are no classification or have different labels, and prompts that do not
    share one backbone object.
    """

    prompts: Sequence[TunedPrompt]

    _mixed: MixedPrompts = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "_mixed", MixedPrompts(self.prompts))
        labels = []
        for prompt in self.prompts:
            if prompt.task.labelling is None or prompt.task.about_images:
                raise ValueError(
                    f"{prompt.task.name} gives no probability of labels to combine: ensembles are of classification tasks"
                )
            labels.append(set(prompt.task.labelling.labels))
        if any(found != labels[0] for found in labels):
            raise ValueError(
                f"the prompts must be of one task, but their labels are {[sorted(found) for found in labels]}: rows of "
                "several tasks go through MixedPrompts"
            )

    def predict(
        self, inputs: Sequence[str | Row], rule: Rule = "probability", *, batch_size: int = 16
    ) -> list[ClassPrediction]:
        """The common answer to each input, in order; see `combine` for the rules and TunedPrompt.predict for inputs.

        batch_size: inputs of one forward pass, each of which is k rows there.
        """
        return [combine(answers, rule) for answers in self.member_predictions(inputs, batch_size=batch_size)]

    def evaluate(
        self,
        rows: Rows,
        *,
        split: str | None = None,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> EnsembleMetrics:
        """Metrics of every rule, of each member, their mean and best, all from one pass; `rows` as in `fit`."""
        data = read_rows(rows, split)
        answers = self.member_predictions(data, batch_size=batch_size, on_batch=on_batch)
        tasks = [prompt.task for prompt in self.prompts]
        members = tuple(task.evaluate([a[n] for a in answers], data) for n, task in enumerate(tasks))
        numbers = [key for key, value in members[0].items() if isinstance(value, int | float)]
        main = tasks[0].main_metric
        return EnsembleMetrics(
            {rule: tasks[0].evaluate([combine(a, rule) for a in answers], data) for rule in RULES},
            members,
            {key: math.fsum(member[key] for member in members) / len(members) for key in numbers},
            max(range(len(members)), key=lambda n: members[n][main]),
        )

    def summary(self, rows: Rows) -> dict[str, Any]:
        """The main metric over the rows, in plain values: by rule, the members' mean, and their best; "metric" names it."""
        found, metric = self.evaluate(rows), self.prompts[0].task.main_metric
        return {
            "metric": metric,
            **{rule: metrics[metric] for rule, metrics in found.ensemble.items()},
            "mean": found.mean[metric],
            "best": found.members[found.best][metric],
        }

    def member_predictions(
        self,
        inputs: Sequence[str | Row],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[tuple[ClassPrediction, ...]]:
        """The answers of all prompts to each input, in the order of the prompts."""
        encoded = [
            carrying([prompt.encoder.encode(as_row(prompt.task, value), answer=False) for value in inputs], n)
            for n, prompt in enumerate(self.prompts)
        ]
        found: dict[int, tuple[ClassPrediction, ...]] = {}
        lengths = [sum(len(rows[i].context) for rows in encoded) for i in range(len(inputs))]
        for batch in by_length(lengths, batch_size):
            mine = [[rows[i] for i in batch] for rows in encoded]
            scored = ScoredBatch(self._mixed.model, [row for rows in mine for row in rows])
            answers = [
                prompt.encoder.predict(scored, rows, batch_size=len(batch))
                for prompt, rows in zip(self.prompts, mine, strict=True)
            ]
            found |= dict(zip(batch, zip(*answers, strict=True), strict=True))
            if on_batch is not None:
                on_batch(len(found))
        return [found[i] for i in range(len(inputs))]


def combine(answers: Sequence[ClassPrediction], rule: Rule = "probability") -> ClassPrediction:
    """Combine several answers into one; their order does not matter.

    probability  mean of the probabilities
    vote         the label of most answers, and among equals the one with the higher mean probability; the
                 probabilities are shares of the votes
    logit        softmax of the mean class scores: the members' geometric mean

    What is still equal goes to the label that comes first in the task.
    Raises ValueError for no answers, different labels or an unknown rule.
    """
    if not answers or any(a.probabilities.keys() != answers[0].probabilities.keys() for a in answers):
        raise ValueError(
            f"answers with the labels {[list(a.probabilities) for a in answers]} cannot be combined: give one or more, all "
            "with the same labels"
        )
    labels = list(answers[0].probabilities)
    mean = {c: math.fsum(a.probabilities[c] for a in answers) / len(answers) for c in labels}
    match rule:
        case "probability":
            return ClassPrediction(max(labels, key=mean.__getitem__), mean)
        case "vote":
            votes = {c: sum(a.label == c for a in answers) for c in labels}
            winner = max(labels, key=lambda c: (votes[c], mean[c]))
            return ClassPrediction(winner, {c: votes[c] / len(answers) for c in labels})
        case "logit":
            # A log probability is the class score less a constant of the row, which softmax takes out again.
            scores = {
                c: math.fsum(math.log(a.probabilities[c] or _SMALLEST) for a in answers) / len(answers)
                for c in labels
            }
            top = max(scores.values())
            total = math.fsum(math.exp(score - top) for score in scores.values())
            shares = {c: math.exp(scores[c] - top) / total for c in labels}
            return ClassPrediction(max(labels, key=scores.__getitem__), shares)
    raise ValueError(f"unknown rule {rule!r}: known are {', '.join(RULES)}")
