"""Domain shift: a prompt that was tuned on one data set, judged on others of the same task.

Lester, Al-Rfou, Constant, EMNLP 2021 (arXiv 2104.08691), section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from softprompt.backbones.base import Backbone
from softprompt.baselines import ZeroShot
from softprompt.data import Row, Rows, read_rows
from softprompt.fitting.run_config import SourceConfig
from softprompt.prompts import BuildContext
from softprompt.protocols.base import STRICT, Protocol, Source
from softprompt.protocols.few_shot import FewShotProtocol
from softprompt.protocols.fit_and_test import FitAndTest
from softprompt.protocols.plain import PlainProtocol
from softprompt.store.identity import named_settings
from softprompt.tasks.base import Task
from softprompt.tuned import TunedPrompt

READING = frozenset({"columns", "label_column", "label_values"})
"""Settings of a task that say how a data set is read, and may differ from one to the next."""
CLASSES = frozenset({"labels", "names", "loss_labels", "template"})
"""Those that may differ too where classes are told by texts: the classes, and how they are written without a prompt."""


@dataclass(frozen=True)
class Domain:
    """A data set to be judged on.

    rows   test rows, as in TunedPrompt.evaluate; split: which, where they have a name
    task   the prompt's task with `columns`, `label_column` and `label_values` of this data, for images that are compared
           with texts its classes too (`with_labels`); None: the prompt's own
    """

    name: str
    rows: Rows
    split: str | None = None
    task: Task | None = None


@dataclass(frozen=True)
class DomainScores:
    """Metrics of a prompt on one data set, and those to compare them with on the same rows.

    metrics    the task's
    zero_shot  the task's metrics of the backbone without a prompt; None: not evaluated, or a head answers
    majority   accuracy of always giving the commonest label of these rows; None: a task without labels
    """

    name: str
    metrics: Mapping[str, Any]
    zero_shot: Mapping[str, Any] | None
    majority: float | None


@dataclass(frozen=True)
class DomainShift:
    """Scores of a prompt on its own data set and on others; `metric` is the task's main one.

    Of cross-dataset transfer, where each data set has its own classes, read the scores beside `zero_shot`, not `drop`.
    """

    metric: str
    in_domain: DomainScores
    out_of_domain: tuple[DomainScores, ...]

    @property
    def drop(self) -> float:
        """In-domain metric minus the mean of the others, in the metric's own unit."""
        outside = [scores.metrics[self.metric] for scores in self.out_of_domain]
        return float(self.in_domain.metrics[self.metric] - sum(outside) / len(outside))

    def records(self) -> list[dict[str, Any]]:
        """A flat record per data set, in-domain first: for tables."""
        return [
            {
                "domain": scores.name,
                "in_domain": scores is self.in_domain,
                "metric": self.metric,
                "score": scores.metrics[self.metric],
                "zero_shot": None if scores.zero_shot is None else scores.zero_shot[self.metric],
                "majority": scores.majority,
                "rows": scores.metrics.get("rows"),
            }
            for scores in (self.in_domain, *self.out_of_domain)
        ]


@settings_dataclass(frozen=True, config=STRICT)
class DomainShiftProtocol(FitAndTest):
    """Train on one data set, and also test the prompt on others, whose rows the same task reads."""

    name: ClassVar[str] = "domain-shift"

    domains: Mapping[str, Source] = Field(min_length=1)
    """The other data sets by name; from a data set with splits, the test split is read unless another is named."""
    shots: int | None = Field(default=None, ge=1, strict=True)
    """Number of training rows of each class, drawn by the recipe's seed; null: all rows."""

    def draws(self) -> int | None:
        return self.shots

    def sources(self) -> Mapping[str, SourceConfig]:
        return self.domains

    def for_choosing(self) -> Protocol:
        return PlainProtocol() if self.shots is None else FewShotProtocol(self.shots)


def evaluate_domains(
    tuned: TunedPrompt,
    source: Domain,
    targets: Sequence[Domain],
    *,
    zero_shot: bool = True,
    backbone: Backbone | None = None,
    batch_size: int = 16,
) -> DomainShift:
    """Evaluate a tuned prompt on the data set it was tuned on, and on others.

    zero_shot  also evaluate the backbone without a prompt; False where it is known from another prompt's run
    backbone   the frozen backbone, for zero-shot, if the method changed a copy

    Raises ValueError for no targets, two domains of one name, a domain whose task is another one, and for zero-shot
    without `backbone` where the method changed its own copy.
    """
    domains = [source, *targets]
    names = [domain.name for domain in domains]
    if not targets or len(set(names)) < len(names):
        raise ValueError(f"domains are {names}: give one target or more, each domain with a name of its own")
    prompts = [_reading(tuned, domain) for domain in domains]
    plain = [_without_prompt(prompt, backbone) if zero_shot else None for prompt in prompts]
    found = [
        _scores(domain.name, read_rows(domain.rows, domain.split), prompt, base, batch_size)
        for domain, prompt, base in zip(domains, prompts, plain, strict=True)
    ]
    return DomainShift(tuned.task.main_metric, found[0], tuple(found[1:]))


def _scores(
    name: str, rows: Sequence[Row], tuned: TunedPrompt, plain: TunedPrompt | None, batch_size: int
) -> DomainScores:
    metrics = tuned.evaluate(rows, batch_size=batch_size)
    zero_shot = None if plain is None else plain.evaluate(rows, batch_size=batch_size)
    return DomainScores(name, metrics, zero_shot, metrics.get("majority_accuracy"))


def _reading(tuned: TunedPrompt, domain: Domain) -> TunedPrompt:
    """The prompt with a task that reads this domain's rows."""
    if domain.task is None:
        return tuned
    ours, theirs = (named_settings(task) for task in (tuned.task, domain.task))
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    allowed = READING | CLASSES if tuned.task.compares_texts else READING
    if other := [key for key in differing if key not in allowed]:
        raise ValueError(
            f"the task of domain {domain.name!r} differs from the prompt's in {', '.join(other)}: it may differ in "
            f"{', '.join(sorted(allowed))} only, as in dataclasses.replace(tuned.task, columns=...)"
        )
    return tuned.with_task(domain.task)


def _without_prompt(tuned: TunedPrompt, backbone: Backbone | None) -> TunedPrompt | None:
    if tuned.task.outputs is not None:
        return None
    if backbone is None and tuned.identity is not None:
        raise ValueError(
            f"{tuned.method.name} changed its copy of the backbone, which is not a zero-shot model any more: pass the frozen "
            "one as backbone=, or zero_shot=False"
        )
    backbone = backbone or tuned.backbone
    method = ZeroShot()
    module = method.build(BuildContext(backbone.spec)).to(backbone.device)
    return TunedPrompt(backbone, tuned.task, method, module, tuned.max_tokens)
