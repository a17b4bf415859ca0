"""Text classification with label words. B rows, W label words, K labels, F content-free inputs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, field_validator, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from softprompt.concerns import guessed_words, warn_of
from softprompt.data import Row
from softprompt.later import LATER
from softprompt.outputs import EncodedRow, TargetLogits
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.classes import ClassPrediction, likeliest, row_weights, weighted, with_balance
from softprompt.tasks.columns import check_columns, shown_fields
from softprompt.tasks.inputs import read_media
from softprompt.tasks.label_words import infer_words
from softprompt.tasks.labels import Labelling, Values, check_labels, label_names
from softprompt.tasks.reading import in_batches
from softprompt.tasks.template import Template, ValuesWithControlTokens, check_fields, slot_in_front
from softprompt.tasks.verbalizer import Verbalizer, bind_verbalizer, calibrate

log = logging.getLogger(__name__)

CONTENT_FREE = ("N/A", "", "[MASK]")
"""The content-free inputs of Zhao et al. 2021."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class TextClassification(Task):
    """The answer is one of K labels for a text, chosen by the likelihoods of label words.

    Raises ValueError (pydantic's) for a template that does not parse, fewer than two labels, an empty or
    repeated label word, a `columns` key that nothing reads, and for an unknown setting.
    """

    name: ClassVar[str] = "text-classification"
    main_metric: ClassVar[str] = "accuracy"

    template: str
    """The row as text, as in "{text}\\nSentiment:", or "{text} It was {mask}." for a masked language model; see
    `softprompt.tasks.template`."""
    labels: Mapping[str, str | Sequence[str]]
    """Label -> its word or words, exactly as they follow the template or replace its mask; they usually begin with a
    space. A list of labels alone gets words that are inferred from their names, see `softprompt.tasks.label_words`."""
    label_column: str = "label"
    """Column that holds the right label; its values are compared as text, so 1 is "1" and True is "True"."""
    label_values: Values = dataclasses.field(default_factory=dict)
    """What the data writes -> label, where the two differ, as in {"0": "negative", "1": "positive"}."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ."""
    cut: str | None = None
    """Field that is shortened from its end where a row is too long; by default the only field."""
    media: str | None = None
    """Column with what the backbone reads besides text; for a speech model it holds waveforms of 16,000 samples per second."""
    loss: Literal["labels", "lm"] = "labels"
    """labels: the cross-entropy over the class scores. lm: minus the class score of the right label, which is the language
    model's own loss; all other words of the vocabulary compete in it too."""
    length_normalised: bool = False
    """Divide a word's log-likelihood by its length in tokens."""
    calibrated: bool = False
    """Whether predictions are calibrated, see `softprompt.tasks.verbalizer.calibrate`; training does not change."""
    class_weights: Annotated[Mapping[str, float] | Literal["balanced"] | None, LATER] = None
    """Label -> the factor of the loss of its rows, 1 for the others. "balanced": rows / (K * rows of the label), over the
    training rows, so that every label weighs the same and the mean factor is 1."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """What a control token of the tokenizer ("</s>", "[MASK]") is in the text of a row: text, or that token. Prompts that were
    saved before there was a choice have tokens, and answer as they did."""

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_to_text(cls, labels: Any) -> Any:
        if isinstance(labels, list | tuple) and all(isinstance(label, str | int) for label in labels):
            return _inferred(label_names(labels))
        if not isinstance(labels, Mapping):
            return labels
        return dict(zip(label_names(list(labels)), labels.values(), strict=True))

    @field_validator("labels")
    @classmethod
    def _words_to_tuples(cls, labels: Mapping[str, str | Sequence[str]]) -> Mapping[str, str | Sequence[str]]:
        return {label: words if isinstance(words, str) else tuple(words) for label, words in labels.items()}

    @model_validator(mode="after")
    def _check(self) -> TextClassification:
        template = Template.parse(self.template, self.cut)
        check_fields(template, self.media)
        check_columns(self.columns, [*template.fields, self.label_column, *filter(None, [self.media])])
        if self.calibrated and self.media is not None:
            raise ValueError(
                "calibrated=True needs inputs without content, and there are none except texts: leave media or calibrated out"
            )
        check_labels(
            self.labels, label_values=self.label_values.values(), class_weights=weighted(self.class_weights)
        )
        owner: dict[str, str] = {}
        for label, words in self.label_words.items():
            if not words or not all(word.strip() for word in words):
                raise ValueError(
                    f"label {label!r} has the words {list(words)}: each label needs words that are not empty"
                )
            for word in words:
                if word in owner:
                    raise ValueError(
                        f"label word {word!r} stands for {owner[word]!r} and for {label!r}; give each its own"
                    )
                owner[word] = label
        return self

    @property
    def label_words(self) -> Mapping[str, Sequence[str]]:
        """Label -> its words, always as a sequence."""
        return {label: (words,) if isinstance(words, str) else words for label, words in self.labels.items()}

    def for_rows(self, train: Sequence[Row]) -> Task:
        """Return the task with its balanced weights of classes in numbers."""
        return with_balance(self, train)

    @property
    def labelling(self) -> Labelling:
        """`labels`, and how rows say which is right."""
        return Labelling(
            labels=tuple(self.labels),
            column=self.label_column,
            columns=self.columns,
            values=self.label_values,
            fields=self.fields,
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields."""
        return Template.parse(self.template, self.cut).fields

    def bind(self, setting: TextSetting) -> TextClassificationEncoder:
        """Return the encoder. Raises ValueError if the template or the label words do not suit the tokenizer or P."""
        template = bind_template(Template.parse(self.template, self.cut), setting, self.control_tokens)
        if self.calibrated and template.images:
            raise ValueError(
                "calibrated=True needs inputs without content, and no image is without: leave the image or calibrated out"
            )
        verbalizer = bind_verbalizer(
            self.label_words,
            setting.tokenizer,
            length_normalised=self.length_normalised,
            masked=template.template.masks > 0,
            calibrated=self.calibrated,
            rows=setting.rows,
        )
        return TextClassificationEncoder(self, setting, template, verbalizer)

    def evaluate(self, predictions: Sequence[ClassPrediction], rows: Sequence[Row]) -> dict[str, Any]:
        """See `classification_metrics`."""
        return self.labelling.metrics(predictions, rows)

    def with_prompt_in_front(self, tokenizer: PreTrainedTokenizerBase) -> TextClassification:
        """See `slot_in_front`."""
        return dataclasses.replace(self, template=slot_in_front(self.template, tokenizer))

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the row as text, with literals exactly as written, and the first word of its label at the end or mask."""
        template = Template.parse(self.template, self.cut)
        values = shown_fields(row, template.fields, self.columns, [self.label_column], images=template.images)
        if not answer:
            return template.fill(values)
        word = self.label_words[self.read_label(row)][0]
        return template.fill(values, mask=word.strip()) if template.masks else template.fill(values) + word


def _inferred(labels: Sequence[str]) -> dict[str, str]:
    """Words for labels that came without; the log says them, and a warning where they are a guess."""
    found = infer_words(labels)
    if found.guessed:
        warn_of([guessed_words(found.words, found.reason)])
    log.info("label words: %s (%s)", found.words, found.reason)
    return found.words


@dataclasses.dataclass(frozen=True)
class TextClassificationEncoder(TaskEncoder):
    """A `TextClassification` bound to a tokenizer; see `TaskEncoder`."""

    task: TextClassification
    setting: TextSetting
    template: BoundTemplate
    verbalizer: Verbalizer

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a row, with all words of all labels as targets; `gold` is the first word of the right label.

        Raises ValueError for a missing column or value, an unknown label, and a row too long to be cut.
        """
        values = self.template.read(row, self.task.columns, [self.task.label_column])
        gold = self.verbalizer.first_word(self.task.read_label(row)) if answer else None
        media = read_media(row, self.task.media, self.task.columns, self.setting)
        pictures = self.template.pictures(values)
        return EncodedRow(self._context(values), self.verbalizer.words, gold, media=media, pictures=pictures)

    def _context(self, values: Mapping[str, str]) -> tuple[int, ...]:
        longest = max(map(len, self.verbalizer.words))
        return self.template.encode(values, max_tokens=self.setting.max_tokens, reserved=longest)

    def loss(self, logits: TargetLogits, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the loss of each row, (B,), in nats; see `loss` of the task. Raises ValueError for a row without its
        label."""
        gold = [row.gold for row in rows]
        if None in gold:
            raise ValueError(f"row {gold.index(None)} was encoded without its answer; the loss needs it")
        scores = self.verbalizer.class_scores(logits)  # (B, K)
        right = torch.tensor([self.verbalizer.owner[g] for g in gold if g is not None], device=scores.device)
        if self.task.loss == "labels":
            losses = functional.cross_entropy(scores, right, reduction="none")
        else:
            losses = -scores.gather(1, right[:, None])[:, 0]  # (B, K) -> (B,)
        return losses * row_weights(right, self.verbalizer.labels, self.task.class_weights)

    @torch.no_grad()
    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[ClassPrediction]:
        """Return the most likely label of each row, in order. `on_batch` is called with the number of rows done so
        far."""
        content_free: dict[int, Tensor] = {}  # by prompt

        def answer(row: EncodedRow, scores: Tensor) -> ClassPrediction:
            log_probabilities = scores.log_softmax(dim=-1)  # (K,)
            if self.task.calibrated:
                if row.prompt not in content_free:
                    content_free[row.prompt] = self._content_free_scores(model, row.prompt)
                log_probabilities = calibrate(scores[None], content_free[row.prompt])[0]
            return likeliest(self.verbalizer.labels, log_probabilities.exp().tolist())

        def answers(batch: Sequence[int]) -> list[ClassPrediction]:
            mine = [rows[i] for i in batch]
            return list(map(answer, mine, self.verbalizer.class_scores(model.score(mine))))  # of (B, K)

        return in_batches([len(row.context) for row in rows], batch_size, on_batch, answers)

    def _content_free_scores(self, model: Scorer, prompt: int) -> Tensor:
        template = self.template.template
        # In a template with {mask}, the text "[MASK]" would be a second gap to fill.
        texts = [t for t in CONTENT_FREE if not template.masks or t != self.setting.tokenizer.mask_token]
        # Without virtual tokens and literals the empty text has no tokens, and nothing could be predicted from it.
        filled = [dict.fromkeys(template.fields, text) for text in texts]
        contexts = [self._context(values) for values in filled if not self.template.is_empty(values)]
        return self.verbalizer.class_scores(
            model.score([EncodedRow(context, self.verbalizer.words, prompt=prompt) for context in contexts])
        )
