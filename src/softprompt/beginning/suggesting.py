"""Which method for these rows: a few are tried within a budget of minutes, and one is recommended with its reason."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import family_of, load_backbone
from softprompt.beginning.asking import what_is_asked
from softprompt.beginning.chats import for_backbone
from softprompt.beginning.decisions import Asked, Proposal, Wishes
from softprompt.beginning.differing import Interval, interval_of, interval_of_difference
from softprompt.beginning.proposing import FAMILIES, propose, task_for
from softprompt.beginning.reading import read
from softprompt.catalogue import methods
from softprompt.errors import SoftpromptWarning
from softprompt.fitting.one import fit
from softprompt.fitting.run_config import parse_config
from softprompt.fitting.settings import by_name
from softprompt.fitting.sources import source_rows
from softprompt.tasks import TASKS, Task
from softprompt.tasks.classes import ClassPrediction
from softprompt.tasks.metrics import generation_metrics
from softprompt.tasks.multi_label import LabelsPrediction, MultiLabelClassification
from softprompt.training.callbacks import Callback
from softprompt.training.progress import Record
from softprompt.tuned import TunedPrompt

_WORDS, _HEAD, _SIGHT = "smollm2-135m-instruct", "minilm-l6", "vit-s14-saliency"
_SHOTS = 8


@dataclass(frozen=True)
class Candidate:
    """A method that is tried. backbone: its name; head: whether a trained head answers, and not words; trains: whether it
    takes steps."""

    method: str
    backbone: str
    head: bool
    trains: bool
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Tried:
    """How a candidate did on the validation rows.

    scores    of each row, from 0 to 1
    interval  95 % interval of their mean
    behind    interval of the difference to the best, best minus this one, over the same rows; None: it is the best
    seconds   that it took, predictions included
    steps     made, and those that were meant
    """

    candidate: Candidate
    scores: Sequence[float]
    interval: Interval
    seconds: float
    steps: tuple[int, int]
    tuned: TunedPrompt
    behind: Interval | None = None

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def stopped(self) -> bool:
        """Whether the time ended its training."""
        return self.steps[0] < self.steps[1]


@dataclass(frozen=True)
class Suggestion:
    """What was tried, what was not, and what is recommended.

    tried        from the simplest to the most costly
    not_tried    method -> why
    recommended  the simplest whose difference to the best may be 0
    reason       a sentence
    test         score of the recommended one on the test rows, which were read for it alone, with its interval
    commonest    score of always giving the commonest answer, on the validation rows; None: the answer is no label
    """

    tried: Sequence[Tried]
    not_tried: Mapping[str, str]
    recommended: Tried
    reason: str
    test: tuple[float, Interval]
    commonest: float | None


def suggest(
    data: str,
    *,
    minutes: float = 5.0,
    backbone: str | None = None,
    text: Sequence[str] | None = None,
    label: str | None = None,
    seed: int = 0,
    on_candidate: Callable[[str], None] | None = None,
) -> Suggestion:
    """Try zero-shot, demonstrations, a linear probe, Prompt Tuning, a prefix and LoRA on rows, and recommend one.

    data          a file, an image folder, a built-in or a hub data set
    minutes       budget for all of it, without the loading of models; what does not fit is named in `not_tried`
    backbone      for all methods; by default small built-in ones, with a head or with words
    text, label   names of columns, where they are not found
    seed          of training and demonstrations
    on_candidate  is told the name of each method before it is tried

    The choice is made on validation rows, and the test rows are read once, for the recommended one.
    Raises ValueError where the rows leave something open, and for tasks whose rows have no score of their own (numbers, tags).
    """
    wishes = Wishes(text=text, label=label, backbone=backbone)
    config = parse_config(propose(data, wishes).config)
    sources = {"train": config.data.train, "validation": config.data.validation, "test": config.data.test}
    rows = {part: source_rows(source, part) for part, source in sources.items() if source is not None}
    if missing := [part for part in sources if part not in rows]:
        raise ValueError(
            f"{data} has no {missing[0]} rows: hold some out, methods are compared on validation rows"
        )
    asked = what_is_asked(read(data, None)[0], wishes, Proposal())
    asked = for_backbone(asked, backbone or _WORDS, Proposal())
    if asked.kind in ("regression", "tagging"):
        raise ValueError(
            f"methods are compared on tasks that choose labels or write texts, and this is {asked.kind}"
        )
    bench = _Bench(asked, rows, seed, time.monotonic() + 60 * minutes)
    candidates, not_tried = candidates_for(asked, backbone)
    tried: list[Tried] = []
    for number, candidate in enumerate(candidates):
        name = f"{candidate.method} on {candidate.backbone}"
        if tried and bench.left() <= 0:
            not_tried[name] = f"the {minutes:g} minutes were over"
            continue
        if on_candidate is not None:
            on_candidate(name)
        try:
            tried.append(bench.attempt(candidate, len(candidates) - number))
        except ValueError as error:
            not_tried[name] = str(error)
    if not tried:
        raise ValueError(f"nothing could be tried: {not_tried}")
    return _judged(tried, not_tried, bench, rows)


def candidates_for(asked: Asked, backbone: str | None) -> tuple[list[Candidate], dict[str, str]]:
    """What is tried for a task, from the simplest to the most costly; and what is not, with the reason."""
    not_tried: dict[str, str] = {}
    if asked.kind == "images":
        name = backbone or _SIGHT
        found = [Candidate("linear-probe", name, True, True, {}), Candidate("vpt", name, True, True, {})]
        not_tried["zero-shot"] = "the backbone has no words for images"
        return [*found, Candidate("lora", name, True, True, {})], not_tried
    words, head = backbone or _WORDS, backbone or _HEAD
    if asked.kind == "multi-label" or _family(words) == "text-encoder":
        not_tried["zero-shot"] = not_tried["few-shot"] = "the answer is not given in words"
        found = []
    else:
        found = [
            Candidate("zero-shot", words, False, False, {}),
            Candidate("few-shot", words, False, False, {"shots": _SHOTS}),
        ]
    by_words = asked.kind in ("generation", "chat")
    if asked.kind == "chat":
        not_tried["few-shot"] = "demonstrations would stand within a turn of the chat"
        found = [candidate for candidate in found if candidate.method != "few-shot"]
    name = words if by_words else head
    if by_words:
        not_tried["linear-probe"] = "a probe writes no text"
    else:
        found.append(Candidate("linear-probe", name, True, True, {}))
    by_head = not by_words
    found.append(Candidate("prompt-tuning", name, by_head, True, {"length": 20}))
    found.append(Candidate("p-tuning-v2", name, by_head, True, {"length": 20}))
    return [*found, Candidate("lora", name, by_head, True, {})], not_tried


def _family(name: str) -> str:
    return FAMILIES.get(name) or family_of(name)


class _Deadline(Callback):
    """Ends a training when its time is over."""

    def __init__(self, end: float) -> None:
        self._end = end

    def on_step(self, record: Record) -> Any:
        return "stop" if time.monotonic() > self._end else None


class _Bench:
    """The rows, the backbones and the time that all candidates share."""

    def __init__(
        self, asked: Asked, rows: Mapping[str, Sequence[Mapping[str, Any]]], seed: int, end: float
    ) -> None:
        self.asked, self.rows, self._seed, self._end = asked, rows, seed, end
        self._backbones: dict[str, Backbone] = {}

    def left(self) -> float:
        return self._end - time.monotonic()

    def attempt(self, candidate: Candidate, still: int) -> Tried:
        """Try a candidate; a training gets an equal share of the time that is left for `still` candidates."""
        if candidate.backbone not in self._backbones:
            began = time.monotonic()
            self._backbones[candidate.backbone] = load_backbone(candidate.backbone)
            self._end += time.monotonic() - began
        backbone = self._backbones[candidate.backbone]
        family = "text-encoder" if candidate.head and backbone.spec.reads_text else backbone.spec.family
        task: Task = by_name(TASKS, task_for(self.asked, family, self.rows["train"], Proposal()), "task")
        method = methods()[candidate.method](**candidate.settings)
        steps = 300 if candidate.trains else 1
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SoftpromptWarning)  # the table says how good each one is
            tuned = fit(
                backbone,
                task,
                method,
                self.rows["train"],
                self.rows["validation"] if candidate.trains else None,
                steps=steps,
                seed=self._seed,
                cache_features=candidate.method == "linear-probe",
                callbacks=[_Deadline(began + max(0.0, self.left()) / still)],
                progress=False,
            )
            scores = row_scores(tuned, self.rows["validation"])
        made = int(tuned.recipe.get("steps_made", 0)) if candidate.trains else steps
        return Tried(candidate, scores, interval_of(scores), time.monotonic() - began, (made, steps), tuned)


def row_scores(tuned: TunedPrompt, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The score of each row: 1 for a right label or set of labels, else 0; for a written text its ROUGE-L."""
    found: list[float] = []
    task: Any = tuned.task
    for row, prediction in zip(rows, tuned.predict(rows), strict=True):
        match prediction:
            case ClassPrediction():
                found.append(float(prediction.label == task.read_label(row)))
            case LabelsPrediction():
                assert isinstance(task, MultiLabelClassification)
                found.append(float(prediction.labels == task.read_labels(row)))
            case _:
                found.append(generation_metrics([str(prediction)], [tuned.encoder.reference(row)])["rouge_l"])  # type: ignore[attr-defined]
    return found


def _judged(
    tried: Sequence[Tried],
    not_tried: Mapping[str, str],
    bench: _Bench,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Suggestion:
    best = max(tried, key=lambda one: one.score)  # the first, and so the simplest, of equal ones
    judged = [
        one if one is best else replace(one, behind=interval_of_difference(best.scores, one.scores))
        for one in tried
    ]
    recommended = next(one for one in judged if one.behind is None or one.behind.low <= 0)
    if recommended.behind is None:
        reason = f"{recommended.candidate.method} is the best, and every simpler method is clearly behind it"
    else:
        reason = (
            f"{recommended.candidate.method} is the simplest whose difference to the best, {best.candidate.method}, may be 0:"
            f" {recommended.score:.3f} and {best.score:.3f} on {len(best.scores)} rows, the difference lies between"
            f" {recommended.behind.low:.3f} and {recommended.behind.high:.3f}"
        )
    if recommended is judged[0]:
        reason = reason.replace(
            ", and every simpler method is clearly behind it", ", and nothing simpler was tried"
        )
    scores = row_scores(recommended.tuned, rows["test"])
    commonest = None
    if recommended.tuned.task.labelling is not None:
        labels = Counter(recommended.tuned.task.read_label(row) for row in rows["validation"])
        commonest = max(labels.values()) / sum(labels.values())
    test = (sum(scores) / len(scores), interval_of(scores))
    return Suggestion(judged, dict(not_tried), recommended, reason, test, commonest)
