"""A task says how a row becomes tokens, what the loss is, and how an answer is read and judged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softprompt.backbones.vocabulary import check_ids
from softprompt.concerns import class_concerns
from softprompt.data import Row
from softprompt.images import ImageSetting
from softprompt.outputs import EncodedRow, Picture
from softprompt.plain_settings import PlainSettings
from softprompt.tasks.tokenizing import tokenize
from softprompt.truth_values import numbers_apart

if TYPE_CHECKING:
    from softprompt.tasks.labels import Labelling


class Scorer(Protocol):
    """The model as a task sees it: backbone and prompt put together. `score` is that of the backbone."""

    def score(self, rows: Sequence[EncodedRow]) -> Any: ...
    def outputs(self, rows: Sequence[EncodedRow]) -> Tensor: ...
    def generate(self, rows: Sequence[EncodedRow], **options: Any) -> list[list[int]]: ...


@dataclass(frozen=True)
class TextSetting:
    """What an encoder must know to turn rows into tokens.

    tokenizer       the tokenizer of the backbone
    virtual_tokens  P, the number of virtual tokens of the method; the template's soft slots must take exactly so many
    max_tokens      the length of the longest row in tokens, virtual tokens and answer included; None: no limit
    closed          whether texts end with the tokens that the tokenizer adds after them (</s>, [SEP]); the answer does not
                    follow such a text, and no room is reserved for it
    family          the family of the backbone, as in BackboneSpec
    read_media      turns the value of a row's media column into what the backbone reads; None: the backbone reads text only
    rows            rows of the embedding table, where the tokenizer has tokens beyond it; None: it has none
    read_picture    turns the value of an image column into the image that stands among the text; None: no image stands there
    image_id        id of the placeholders of such images
    """

    tokenizer: PreTrainedTokenizerBase
    virtual_tokens: int = 0
    max_tokens: int | None = None
    closed: bool = False
    family: str = "causal-lm"
    read_media: Callable[[Any], Tensor] | None = None
    rows: int | None = None
    read_picture: Callable[[Any], Picture] | None = None
    image_id: int | None = None

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text as it stands. Raises ValueError for one that the embedding table has no row for."""
        ids = tokenize(self.tokenizer, text)
        if self.rows is not None:
            check_ids(ids, self.tokenizer, self.rows)
        return ids


@dataclass(frozen=True)
class ImageTextSetting:
    """What an encoder must know to prepare images and the texts that they are compared with."""

    image: ImageSetting
    text: TextSetting


class TaskEncoder(Protocol):
    """A task bound to a tokenizer and a prompt length: its templates are parsed and its label words tokenised once."""

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of one row. With `answer`, the row must hold its right label or reference.

        Raises ValueError for a missing column; the error names the columns that the row has.
        """
        ...

    def loss(self, answers: Any, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the loss of each row, (B,), differentiable; the loss of a batch is their mean.

        answers: what `score` of the backbone returns; for a task with a head the outputs of the head at every position that
            is read, (n, outputs)
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
        """Return a prediction for each row (see the task), in order. It runs without gradients."""
        ...

    def likelihood_metrics(
        self, model: Scorer, rows: Sequence[EncodedRow], *, batch_size: int = 16
    ) -> dict[str, float]:
        """Return metrics that need the model and the answers rather than predictions (perplexity); usually there are none."""
        return {}


class Task(metaclass=PlainSettings):
    """The settings of a task: an immutable (pydantic) dataclass that can be written to a file."""

    __get_pydantic_core_schema__: ClassVar[Any] = classmethod(numbers_apart)

    name: ClassVar[str]
    main_metric: ClassVar[str]
    """The metric that decides which checkpoint is best; higher is better."""
    about_images: ClassVar[bool] = False
    """Whether rows are images; otherwise they are text."""
    compares_texts: ClassVar[bool] = False
    """Whether images are compared with texts, which needs a dual encoder."""
    left_out_of_runs: ClassVar[tuple[str, ...]] = ()
    """Settings that the config of a run leaves out while they are None, because the first runs were written without them.
    Checkpoints and saved prompts hold them, so that they are not marked LATER."""

    control_tokens: Literal["text", "tokens"] = "tokens"
    """What a control token of the tokenizer is in the text of a row; tasks with a template have it as a setting."""

    columns: Mapping[str, str]
    """Name in the template -> column of the data, where the two differ."""

    @property
    @abstractmethod
    def fields(self) -> tuple[str, ...]:
        """The fields that a row must hold to be predicted, as the template names them."""

    @abstractmethod
    def bind(self, setting: Any) -> TaskEncoder:
        """Return the encoder for a backbone.

        setting: a TextSetting; an ImageSetting where the task is about images; an ImageTextSetting where it `compares_texts`
        """

    def for_rows(self, train: Sequence[Row]) -> Task:
        """Return the task with the settings that depend on the training rows in numbers; usually there are none."""
        return self

    @abstractmethod
    def evaluate(self, predictions: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """Return metrics of predictions for these rows: numbers by name, and what the task adds (confusion)."""

    def judge(self, encoder: TaskEncoder, predictions: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """`evaluate` what this encoder predicted. It differs only for tasks whose right answers depend on the tokenizer."""
        return self.evaluate(predictions, rows)

    def concerns(self, train: Sequence[Row], metrics: Mapping[str, Any]) -> list[str]:
        """Return what makes it doubtful that training taught anything, one sentence each; usually there is none.

        train: the rows that were trained on
        metrics: those of the validation rows; empty where there are none
        """
        return [*self.concerns_about_rows(train), *self.concerns_about(metrics, "validation", trained=True)]

    def concerns_about_rows(self, train: Sequence[Row]) -> list[str]:
        """Return what these training rows cannot teach, one sentence each."""
        return [] if self.labelling is None else self.labelling.concerns(train)

    def concerns_about(
        self, metrics: Mapping[str, Any], part: str = "", *, trained: bool = False
    ) -> list[str]:
        """Return what makes metrics doubtful, one sentence each; see `softprompt.concerns.class_concerns` for the arguments."""
        return class_concerns(metrics, part, trained=trained)

    @property
    def in_windows(self) -> bool:
        """Whether a long row may become several: how many rows are trained on is known when all are encoded."""
        return False

    @property
    def labelling(self) -> Labelling | None:
        """The labels to choose from, and how rows say which one is right; None: the answer is not a label."""
        return None

    def read_label(self, row: Row) -> str:
        """Return the right label of a row. Raises ValueError if its column is missing or its value is not a label."""
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
        """Return the same task with other classes. Raises ValueError unless the task tells classes apart by their names."""
        raise ValueError(
            f"{self.name} was trained for its own labels and answers with no others: only tasks that compare images"
            " with texts, ImageTextClassification, do"
        )

    def with_prompt_in_front(self, tokenizer: PreTrainedTokenizerBase) -> Task:
        """Return the task with its virtual tokens before everything else, BOS included, as other libraries place them."""
        return self

    @property
    def writes_text(self) -> bool:
        """Whether any text may be the answer; otherwise it is chosen, or no text."""
        return False

    def answering(self, generation: Mapping[str, Any] | None, choices: Sequence[str] | None) -> Task:
        """Return the task with these options of `generate`, and these texts to choose from, put over its own.

        Raises ValueError for a task that writes no text, for unknown options, and for choices that cannot be told apart.
        """
        raise ValueError(
            f"{self.name} writes no text: generation and choices are for tasks that do, TextGeneration and Chat"
        )

    @property
    def label_words(self) -> Mapping[str, Sequence[str]]:
        """Label -> the words for it, by default its name; empty where the task has no labels."""
        return {} if self.labelling is None else {label: (label,) for label in self.labelling.labels}

    @property
    def domain_names(self) -> Sequence[str]:
        """The domains that rows belong to; predictions are made in the last one. Empty where there are none."""
        return ()

    @property
    def outputs(self) -> int | None:
        """The number of outputs of a trained head at each position that it reads; None: words answer, and there is no head."""
        return None

    @abstractmethod
    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the row as plain text without soft slots, for demonstrations, hand-written prompts and inspection."""
