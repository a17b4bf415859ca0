"""Unsupervised domain adaptation: labelled source images, target images without labels, the same classes.

Pseudo-labels are those of the frozen backbone, which no step changes, so they are made once: target rows of which it is
sure enough become training rows, the others say nothing. The loss is that of DAPL (Ge et al., 2022, arXiv 2202.06687, section
3.3): the mean cross-entropy of the source rows plus the weighted mean of the pseudo-labelled ones. The right labels of target
rows are taken off before anything is chosen or trained; only the final test reads any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from softprompt.backbones.base import Backbone
from softprompt.baselines import ZeroShot
from softprompt.concerns import warn_of
from softprompt.data import Row, Rows
from softprompt.fitting.one import fit
from softprompt.fitting.run_config import RunConfig, SourceConfig
from softprompt.prompts import Method
from softprompt.protocols.base import STRICT, Experiment, Protocol, ProtocolResult, Source, rows_of
from softprompt.tasks import ImageTextClassification
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt

WEIGHT = "loss weight"
"""Column of mixed rows with the weight of their loss."""


@dataclass(frozen=True)
class PseudoLabels:
    """Target rows with a sure pseudo-label, and how many were tried.

    rows    with the label it gives them, as the task names it, in the label column
    asked   target rows in all
    counts  label -> rows that carry it
    """

    rows: tuple[Row, ...]
    asked: int
    counts: Mapping[str, int]

    @property
    def kept(self) -> float:
        """Share of the target rows that passed the threshold."""
        return len(self.rows) / self.asked


@dataclass(frozen=True)
class DomainAdaptation:
    """An adapted prompt and its metrics on the test rows of the target domain.

    prompt        trained on source and pseudo-labelled rows; predicts in the target domain
    pseudo        None: without pseudo-labels
    selected_by   "source validation" or "last step": how the checkpoint, and the recipe of several, was chosen
    recipe        number of the chosen recipe
    metrics       the task's over the test rows, and `mean_class_accuracy` (VisDA's)
    zero_shot     the same for the backbone without a prompt
    """

    prompt: TunedPrompt
    pseudo: PseudoLabels | None
    selected_by: str
    recipe: int
    metrics: Mapping[str, Any]
    zero_shot: Mapping[str, Any]


@settings_dataclass(frozen=True, config=STRICT)
class DomainAdaptationProtocol(Protocol):
    """Train on labelled rows and on unlabelled ones of another domain, as `adapt` does, and test in that domain.

    `data.train` and `data.validation` are the source, `data.test` the target.
    """

    name: ClassVar[str] = "domain-adaptation"

    target: Source
    """Rows of the other domain to train on; their labels are never read."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Least probability of a pseudo-label."""
    target_weight: float = Field(default=1.0, ge=0)
    """Weight of the pseudo-labelled rows' mean loss; 0: train on the source alone."""

    def check(self, config: RunConfig) -> None:
        if not config.task.compares_texts:
            raise ValueError(
                f"{self.name} needs classes that are described by texts: task image-text-classification, not {config.task.name}"
            )

    def sources(self) -> Mapping[str, SourceConfig]:
        return {"target": self.target}

    def measure(self, experiment: Experiment) -> ProtocolResult:
        task: Any = experiment.task  # adapt refuses tasks that compare no texts
        target = experiment.bench.read(self.target, "train")
        found = adapt(
            experiment.backbone,
            task,
            experiment.method,
            source=experiment.train,
            target=target,
            test=experiment.test,
            validation=experiment.validation,
            threshold=self.threshold,
            target_weight=self.target_weight,
            recipes=(experiment.recipe,),
            folder=experiment.folder,
            progress=experiment.progress,
        )
        kept = None if found.pseudo is None else found.pseudo.kept
        tested = {**found.metrics, "pseudo_labelled": kept, "zero_shot": found.zero_shot}
        metrics = {**found.prompt.metrics, **({} if experiment.test is None else {"test": tested})}
        how = found.prompt.recipe
        parts = {"validation": experiment.validation, "test": experiment.test}
        return ProtocolResult(
            main_metric=task.main_metric,
            metrics=metrics,
            rows={"train": experiment.train, "target": target}
            | {name: rows for name, rows in parts.items() if rows is not None},
            prompt=replace(found.prompt, metrics=metrics),
            history=found.prompt.history,
            trained_parameters=how.get("trained_parameters"),
            learning_rate=how.get("learning_rate"),
            steps_made=how.get("steps_made", 0),
            best_step=how.get("best_step"),
            seconds=how.get("seconds", 0.0),
            details=found,
        )


def pseudo_labels(
    labeller: TunedPrompt, rows: Sequence[Row], *, threshold: float = 0.5, batch_size: int = 16
) -> PseudoLabels:
    """The labels that a prompt, or the backbone without one (`ZeroShot`), gives rows with a probability of `threshold` or more.

    Whatever stands in the rows' label column is not read.
    Raises ValueError for a threshold outside (0, 1), no rows, and a labeller without labels told by texts.
    """
    _check_threshold(threshold)
    task: Any = labeller.task
    if not task.compares_texts:
        raise ValueError(
            f"the labeller's task is {task.name}: pseudo-labels are for images compared with texts, ImageTextClassification"
        )
    if not rows:
        raise ValueError("there are no target rows to label")
    label = task.columns.get(task.label_column, task.label_column)
    blind = [{**{name: row[name] for name in row if name != label}, **_domain(task, -1)} for row in rows]
    found: list[Row] = []
    counts = dict.fromkeys(task.labels, 0)
    for row, prediction in zip(blind, labeller.predict(blind, batch_size=batch_size), strict=True):
        if prediction.probabilities[prediction.label] >= threshold:
            found.append({**row, label: prediction.label})
            counts[prediction.label] += 1
    return PseudoLabels(tuple(found), len(blind), counts)


def mixed_rows(
    task: ImageTextClassification, source: Sequence[Row], pseudo: Sequence[Row], target_weight: float = 1.0
) -> list[Row]:
    """Source and pseudo-labelled rows, so weighted that the mean of their losses is L_s + target_weight L_u.

    L_s is the mean loss of the source rows, L_u of the others, 0 where there are none. Source rows that name no domain are
    of the task's first one. The task reads the weights with `weight_column=WEIGHT`.
    Raises ValueError for no source rows and a weight below 0.
    """
    if not source or not 0 <= target_weight < float("inf"):
        raise ValueError(
            f"{len(source)} source rows, target_weight {target_weight}: expected one row or more and a weight of 0 or more"
        )
    pseudo = pseudo if target_weight else ()
    total = len(source) + len(pseudo)
    ours = [{**_domain(task, 0), **row, WEIGHT: total / len(source)} for row in source]
    theirs = [{**row, **_domain(task, -1), WEIGHT: target_weight * total / len(pseudo)} for row in pseudo]
    return [*ours, *theirs]


def adapt(
    backbone: Backbone,
    task: ImageTextClassification,
    method: Method,
    source: Rows,
    target: Rows,
    test: Rows | None,
    *,
    validation: Rows | None = None,
    threshold: float = 0.5,
    target_weight: float = 1.0,
    labeller: TunedPrompt | None = None,
    recipes: Sequence[Recipe] = (Recipe(),),
    folder: str | Path | None = None,
    progress: bool | Progress = False,
) -> DomainAdaptation:
    """Train on labelled source rows and on target rows with the labels that the frozen backbone gives them, test once.

    task           with `domains`, target last, for DAPL; without any all rows share their texts, as for CoOp
    source         labelled; a name with splits gives its "train" split, and `target` and `test` likewise "train" and "test"
    target         any labels are taken off; papers train and test on the same target images (transductive)
    validation     labelled source rows: they choose the checkpoint, and the recipe of several; None: the last step
    threshold      tau: least probability of a pseudo-label
    target_weight  of the pseudo-labelled rows' mean loss; 0: source alone, and no pseudo-labels are made
    labeller       gives the pseudo-labels; None: the backbone without a prompt, by the task's `template`
    test           None: nothing is tested
    folder         checkpoints go there, a folder for each recipe, so that a run that was killed goes on
    progress       as in `fit`, of each recipe's run

    Raises ValueError for several recipes without validation rows to choose by, and what `pseudo_labels`, `mixed_rows` and
    `fit` raise. Warns with SoftpromptWarning where no target row passes the threshold: the source alone is trained on then.
    """
    _check_arguments(task, recipes, validation, threshold)  # before anything is loaded
    task = replace(task, weight_column=WEIGHT)
    source_rows, target_rows = rows_of(source, "train"), rows_of(target, "train")
    test_rows = None if test is None else rows_of(test, "test")
    chosen_by = None if validation is None else rows_of(validation, "validation")
    plain = fit(backbone, task, ZeroShot(), source_rows, progress=False)
    pseudo = None
    if target_weight:
        pseudo = pseudo_labels(labeller or plain, target_rows, threshold=threshold)
        warn_of(_concerns_about(pseudo, threshold))
    rows = mixed_rows(task, source_rows, () if pseudo is None else pseudo.rows, target_weight)
    judged = None if chosen_by is None else mixed_rows(task, chosen_by, ())
    tuned = [
        fit(
            backbone,
            task,
            method,
            rows,
            judged,
            recipe=recipe,
            folder=None if folder is None else Path(folder) / str(number),
            progress=progress,
        )
        for number, recipe in enumerate(recipes)
    ]
    best = 0 if judged is None else _best(tuned, task.main_metric)
    return DomainAdaptation(
        prompt=tuned[best],
        pseudo=pseudo,
        selected_by="last step" if judged is None else "source validation",
        recipe=best,
        metrics={} if test_rows is None else _tested(tuned[best], test_rows),
        zero_shot={} if test_rows is None else _tested(plain, test_rows),
    )


def mean_class_accuracy(confusion: Mapping[str, Mapping[str, int]]) -> float:
    """Mean over the labels that occur of the share of their rows that was right: VisDA-2017's metric.

    confusion: right label -> predicted label -> rows. Raises ValueError where no label occurs.
    """
    shares = [row[label] / sum(row.values()) for label, row in confusion.items() if sum(row.values())]
    if not shares:
        raise ValueError("the confusion matrix is empty: there is no class to average over")
    return fmean(shares)


def _check_arguments(
    task: ImageTextClassification, recipes: Sequence[Recipe], validation: Rows | None, threshold: float
) -> None:
    if not task.compares_texts:
        raise ValueError(
            f"{task.name} does not describe classes by texts: domain adaptation takes ImageTextClassification"
        )
    if not recipes or (len(recipes) > 1 and validation is None):
        raise ValueError(
            f"{len(recipes)} recipes were given: one, or several with validation rows of the source to choose by"
        )
    _check_threshold(threshold)  # also where no pseudo-labels are made


def _concerns_about(pseudo: PseudoLabels, threshold: float) -> list[str]:
    """A sentence if no target row has a sure pseudo-label."""
    if pseudo.rows:
        return []
    sentence = (
        f"none of {pseudo.asked} target rows has a pseudo-label of probability {threshold} or more: the source rows"
        " alone are trained on; lower threshold"
    )
    return [sentence]


def _best(tuned: Sequence[TunedPrompt], metric: str) -> int:
    """The number of the prompt with the highest metric on validation rows; of equal ones the first."""
    scores = [float(one.metrics["validation"][metric]) for one in tuned]
    return max(range(len(tuned)), key=scores.__getitem__)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(
            f"threshold is {threshold}: expected a probability between 0 and 1, such as 0.5 (the released code's)"
        )


def _tested(tuned: TunedPrompt, rows: Sequence[Row]) -> dict[str, Any]:
    task: Any = tuned.task
    metrics = tuned.evaluate([{**row, **_domain(task, -1)} for row in rows])
    return metrics | {"mean_class_accuracy": mean_class_accuracy(metrics["confusion"])}


def _domain(task: ImageTextClassification, number: int) -> Row:
    """What says in a row that it is of this domain."""
    column = task.columns.get(task.domain_column, task.domain_column)
    return {column: task.domains[number]} if task.domains else {}
