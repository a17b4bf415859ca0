"""What a task is: how a row becomes tokens, what the loss is, how an answer is read and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softprompt.concerns import class_concerns
from softprompt.data import Row
from softprompt.images import ImageSetting
from softprompt.outputs import EncodedRow

if TYPE_CHECKING:
    from softprompt.tasks.labels import Labelling


class Scorer(Protocol):
    """The model as a task sees it: backbone and prompt already put together. `score` is the backbone's."""

    def score(self, rows: Sequence[EncodedRow]) -> Any: ...
    def outputs(self, rows: Sequence[EncodedRow]) -> Tensor: ...
    def generate(self, rows: Sequence[EncodedRow], **options: Any) -> list[list[int]]: ...


@dataclass(frozen=True)
class TextSetting:
    """What an encoder must know to turn rows into tokens.

    tokenizer       the backbone's
    virtual_tokens  P: how many the method brings; the template's soft slots must take exactly these
    max_tokens      longest row in tokens, virtual tokens and answer included; None: no limit
    closed          texts end with the tokens that the tokenizer itself puts behind them (</s>, [SEP]), and the answer
                    does not follow the text: no room is kept for it
    family          of the backbone, as in BackboneSpec
    read_media      makes of a row's media column what the backbone reads; None: it reads text alone
    """

    tokenizer: PreTrainedTokenizerBase
    virtual_tokens: int = 0
    max_tokens: int | None = None
    closed: bool = False
    family: str = "causal-lm"
    read_media: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True)
class ImageTextSetting:
    """What an encoder must know to prepare images and the texts that they are compared with."""

    image: ImageSetting
    text: TextSetting


class TaskEncoder(Protocol):
    """A task bound to a tokenizer and a prompt length: templates parsed, label words tokenised, once."""

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Tokens of one row. With `answer`, the gold label or reference must be in the row.

        Raises ValueError naming the columns the row has, where one is missing.
        """
        ...

    def loss(self, answers: Any, rows: Sequence[EncodedRow]) -> Tensor:
        """Loss of each row, (B,), differentiable; a batch's loss is its mean.

        answers: what the backbone's `score` gives; for a task with a head what the head says where rows are read, (n, outputs)
        """
        ...

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """A prediction for each row (see the task), in order. Runs without gradients."""
        ...

    def likelihood_metrics(
        self, model: Scorer, rows: Sequence[EncodedRow], *, batch_size: int = 16
    ) -> dict[str, float]:
        """Metrics that need the model and the answers, not predictions (perplexity); usually none."""
        return {}


class Task(ABC):
    """Settings of a task: an immutable (pydantic) dataclass that can be written to a file."""

    name: ClassVar[str]
    main_metric: ClassVar[str]
    """The metric that decides which checkpoint is best; higher is better."""
    about_images: ClassVar[bool] = False
    """Whether rows are images; else they are text."""
    compares_texts: ClassVar[bool] = False
    """Whether images are compared with texts, which takes a dual encoder."""
    later_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that the first written runs did not have: a run with None for one is written without it, and stays the run
    that it was."""

    columns: Mapping[str, str]
    """Name in the template -> column of the data, where the two differ."""

    @property
    @abstractmethod
    def fields(self) -> tuple[str, ...]:
        """What a row must hold to be predicted, as the template names it."""

    @abstractmethod
    def bind(self, setting: Any) -> TaskEncoder:
        """setting: a TextSetting, an ImageSetting where the task is about images, or both where it `compares_texts`."""

    @abstractmethod
    def evaluate(self, predictions: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """Metrics over predictions and the rows they are for; scalars by name, and what the task adds (confusion)."""

    def judge(self, encoder: TaskEncoder, predictions: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """`evaluate` of what this encoder predicted, for tasks whose right answers depend on its tokenizer; else the same."""
        return self.evaluate(predictions, rows)

    def concerns(self, train: Sequence[Row], metrics: Mapping[str, Any]) -> list[str]:
        """What makes it doubtful that anything was learned, a sentence each, after training; usually nothing.

        train: the rows trained on; metrics: of the validation rows, empty without any.
        """
        return [*self.concerns_about_rows(train), *self.concerns_about(metrics, "validation", trained=True)]

    def concerns_about_rows(self, train: Sequence[Row]) -> list[str]:
        """What these training rows cannot teach, a sentence each."""
        return [] if self.labelling is None else self.labelling.concerns(train)

    def concerns_about(
        self, metrics: Mapping[str, Any], part: str = "", *, trained: bool = False
    ) -> list[str]:
        """What makes metrics doubtful, a sentence each; see `softprompt.concerns.class_concerns` for the arguments."""
        return class_concerns(metrics, part, trained=trained)

    @property
    def labelling(self) -> Labelling | None:
        """The labels that are chosen among and how rows say which is right; None: the answer is no label."""
        return None

    def read_label(self, row: Row) -> str:
        """The right label of a row. Raises ValueError if its column is missing or its value is no label."""
        if self.labelling is None:
            raise ValueError(f"{self.name} has no labels")
        return self.labelling.read(row)

    def with_labels(
        self,
        labels: Sequence[str],
        *,
        names: Mapping[str, str] | None = None,
        label_values: Mapping[str, str] | None = None,
    ) -> Task:
        """The same question about other classes. Raises ValueError for a task whose labels are not told by their names."""
        raise ValueError(
            f"{self.name} was trained for its own labels and answers with no others: only tasks that compare images"
            " with texts, ImageTextClassification, do"
        )

    def with_prompt_in_front(self, tokenizer: PreTrainedTokenizerBase) -> Task:
        """The task with virtual tokens before everything, BOS included, as other libraries place them."""
        return self

    @property
    def label_words(self) -> Mapping[str, Sequence[str]]:
        """Label -> its words, by default its name; empty where the task has no labels."""
        return {} if self.labelling is None else {label: (label,) for label in self.labelling.labels}

    @property
    def domain_names(self) -> Sequence[str]:
        """Domains that rows are told apart by, the one that is predicted in last; empty where there are none."""
        return ()

    @property
    def outputs(self) -> int | None:
        """How many numbers a trained head gives at each position that is read; None: words answer, there is no head."""
        return None

    @abstractmethod
    def render(self, row: Row, *, answer: bool = True) -> str:
        """The row as plain text, soft slots left out: demonstrations, hand-written prompts, inspection."""
