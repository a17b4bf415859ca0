"""Image-text classification: the answer is the class whose text is nearest to the image.

B rows, D domains (1 where the task names none), K classes, R templates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.data import Row
from softprompt.images import ImageRule, to_pixels
from softprompt.later import LATER
from softprompt.outputs import EncodedRow, ImageTextEmbeddings
from softprompt.tasks.base import ImageTextSetting, Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.bound_template import bind_template
from softprompt.tasks.classes import ClassPrediction, class_losses, likeliest
from softprompt.tasks.columns import check_columns, read_column
from softprompt.tasks.image_classification import described, sized_rule
from softprompt.tasks.labels import Labelling, Names, Values, check_labels, read_domain, read_weight
from softprompt.tasks.reading import in_batches
from softprompt.tasks.template import Template
from softprompt.tasks.tokenizing import tokenize

Texts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ImageTextClassification(Task):
    """The answer is one of K labels, by the cosine between the image and a text about each label (CLIP, SigLIP).

    p(k | image) = softmax over k of scale * cos(image, text_k), the scale being the model's own. With several templates
    text_k is the mean of a label's texts, each of length 1, brought to length 1 again (Radford et al. 2021, section 3.1.4).
    With `domains` there is a text for each label in each domain, and a row is compared with the texts of its own domain.

    Raises ValueError (pydantic's) for fewer than two labels, equal labels or names, a template without `{}`, a single
    domain, a `columns` key that nothing reads, and for an unknown setting.
    """

    name: ClassVar[str] = "image-text-classification"
    main_metric: ClassVar[str] = "accuracy"
    about_images: ClassVar[bool] = True
    compares_texts: ClassVar[bool] = True

    labels: Names
    """The labels."""
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Label -> the class name in its text, where it differs from the label with its underscores read as spaces."""
    template: str | Sequence[str] = "a photo of a {}."
    """The text about a class, in which `{}` is its name; several templates form an ensemble."""
    soft_template: str | Sequence[str] = "{soft} {}."
    """The same for methods with virtual tokens, which stand where `{soft}` does. Here the name comes last; in the middle of
    16 tokens it is "{soft:8} {} {soft}.", and at the front "{} {soft}."."""
    label_column: str = "label"
    """Column that holds the right label; its values are compared as text, so 1 is "1"."""
    label_values: Values = dataclasses.field(default_factory=dict)
    """What the data writes -> label, where the two differ, as in {"0": "cat", "1": "dog"}."""
    loss_labels: Names | None = None
    """Labels among which the loss is computed, as if there were no others; a prediction is any label. By default all."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{"image": the column that holds the image}, where it has another name."""
    domains: Names = ()
    """The kinds of images that the texts name, such as ["photo", "sketch"]; predictions are made in the last one. `{domain}`
    in a template is the name of a domain, with underscores read as spaces."""
    domain_words: Annotated[Mapping[str, str], LATER] = dataclasses.field(default_factory=dict)
    """Domain -> what `{domain}` is for it, where that is another: {"real_world": "real_world"} keeps the underscore, as DAPL's
    released code does."""
    domain_column: str = "domain"
    """Column that holds the domain of a row, where there are domains; a row without it belongs to the last one."""
    normalize_over: Literal["domain", "all"] = "domain"
    """Whether the loss is normalised over the texts of the row's domain or over those of all domains. A prediction compares
    the texts of the row's domain."""
    weight_column: str | None = None
    """Column with the factor of a row's loss; a row without it counts once."""
    image_size: int | tuple[int, int] | None = None
    """The side, or (height, width), to which images are resized, in pixels. The default is the size of the image processor."""

    @model_validator(mode="after")
    def _check(self) -> ImageTextClassification:
        read = ["image", self.label_column, *([self.domain_column] if self.domains else [])]
        check_columns(self.columns, [*read, *([self.weight_column] if self.weight_column else [])])
        if len(self.domains) == 1:
            raise ValueError(f"domains are {list(self.domains)}: name two or more, or none")
        check_labels(
            self.labels,
            loss_labels=self.loss_labels or (),
            label_values=self.label_values.values(),
            names=self.names,
        )
        if strange := [name for name in self.domain_words if name not in self.domains]:
            raise ValueError(
                f"domain_words has {strange}, which are not among the domains {list(self.domains)}"
            )
        first: dict[str, str] = {}
        for label in self.labels:
            other = first.setdefault(self.class_name(label), label)
            if other != label:
                raise ValueError(
                    f"the labels {other!r} and {label!r} have the same class name, {self.class_name(label)!r}: no text could"
                    " tell them apart; set names"
                )
        for setting, source in (("template", self.template), ("soft_template", self.soft_template)):
            for one in _each(source) or ("",):
                if one.count("{}") != 1:
                    raise ValueError(
                        f"{setting} {one!r} has {{}}, where the class name stands, {one.count('{}')} times: expected once"
                    )
                fields = Template.parse(_with_field(one)).fields
                if "domain" in fields and not self.domains:
                    raise ValueError(
                        f"{setting} {one!r} has {{domain}}, and the task has no domains: set domains"
                    )
        return self

    def class_name(self, label: str) -> str:
        """Return the class name that stands for a label in its text."""
        return self.names.get(label, label.replace("_", " "))

    def with_labels(
        self,
        labels: Sequence[str],
        *,
        names: Mapping[str, str] | None = None,
        label_values: Mapping[str, str] | None = None,
    ) -> ImageTextClassification:
        """Return the same task with other classes. `names` and `label_values` stay where they still refer to a label."""
        known = {str(label) for label in labels}

        def kept(values: Mapping[str, str], at: int) -> dict[str, str]:
            return {key: value for key, value in values.items() if (key, value)[at] in known}

        return dataclasses.replace(
            self,
            labels=labels,
            names=kept(self.names, 0) if names is None else names,
            label_values=kept(self.label_values, 1) if label_values is None else label_values,
            loss_labels=None,
        )

    @property
    def label_words(self) -> Mapping[str, Sequence[str]]:
        """Each label's class name."""
        return {label: (self.class_name(label),) for label in self.labels}

    @property
    def domain_names(self) -> Sequence[str]:
        """`domains`."""
        return self.domains

    @property
    def labelling(self) -> Labelling:
        """`labels`, and how rows say which is right."""
        return Labelling(
            labels=tuple(self.labels),
            column=self.label_column,
            columns=self.columns,
            values=self.label_values,
            competing=self.loss_labels,
            fields=self.fields,
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The image alone."""
        return ("image",)

    def bind(self, setting: ImageTextSetting) -> ImageTextClassificationEncoder:
        """Raises ValueError for a class name without any token, names that are the same tokens, a text that is too long for
        the text tower, soft slots that do not take what the method brings, and an image size that is no multiple of the
        patches."""
        sources = _each(self.soft_template if setting.text.virtual_tokens else self.template)
        bound = [bind_template(Template.parse(_with_field(source)), setting.text) for source in sources]
        targets: list[tuple[int, ...]] = []
        for label in self.labels:
            name = self.class_name(label)
            if not tokenize(setting.text.tokenizer, name):
                raise ValueError(
                    f"the class name {name!r} of label {label!r} has no tokens: give it one, as in"
                    f" names={{{label!r}: 'something'}}"
                )
        for domain in self.domains or ("",):
            first: dict[tuple[tuple[int, ...], ...], str] = {}
            for label in self.labels:
                name = self.class_name(label)
                values = {"name": name, "domain": self.domain_words.get(domain, domain.replace("_", " "))}
                texts = [_fitting(one.encode(values), name, label, setting.text) for one in bound]
                other = first.setdefault(tuple(texts), label)
                if other != label:
                    raise ValueError(
                        f"the class names of {other!r} and {label!r}, {self.class_name(other)!r} and {name!r}, are the same"
                        " tokens to this text tower: no text could tell them apart; set names"
                    )
                targets += texts
        return ImageTextClassificationEncoder(
            self, sized_rule(setting.image, self.image_size), tuple(targets), len(bound)
        )

    def evaluate(self, predictions: Sequence[ClassPrediction], rows: Sequence[Row]) -> dict[str, Any]:
        """See `classification_metrics`."""
        return self.labelling.metrics(predictions, rows)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return where the image comes from, then its label on a line of its own."""
        text = described(read_column(row, "image", self.columns, [self.label_column]))
        return f"{text}\n{self.read_label(row)}" if answer else text


@dataclasses.dataclass(frozen=True)
class ImageTextClassificationEncoder(TaskEncoder):
    """An `ImageTextClassification` bound to a backbone; see `TaskEncoder`.

    targets    the texts of all classes, domain by domain and class by class, R for each; all rows share this object
    templates  R, the number of templates
    """

    task: ImageTextClassification
    rule: ImageRule
    targets: Texts
    templates: int

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the pixels of a row, (3, H, W) uint8, and the texts. `answer` is the number of the right label and the weight
        of the row, `gold` the index of the label's first text, and `origin` the number of the row's domain.

        Raises ValueError for a missing column or value, an unknown label or domain, a negative weight, and a value that is
        not an image.
        """
        task = self.task
        domain = read_domain(row, task.domain_column, task.columns, task.domains)
        pixels = to_pixels(read_column(row, "image", task.columns, [task.label_column]), self.rule)
        if not answer:
            return EncodedRow((), self.targets, origin=domain, media=pixels)
        right = task.labels.index(task.read_label(row))
        gold = (domain * len(task.labels) + right) * self.templates
        weight = read_weight(row, task.weight_column, task.columns)
        return EncodedRow((), self.targets, gold, answer=(right, weight), origin=domain, media=pixels)

    def loss(self, answers: ImageTextEmbeddings, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the cross-entropy of each row over the classes, (B,), in nats, times its weight. See `class_losses`."""
        scores = self._by_domain(answers)
        own = self._own(scores, rows)
        losses = class_losses(own, rows, self.task.labels, self.task.loss_labels)
        if self.task.normalize_over == "all" and self.task.domains:
            competing = [self.task.labels.index(label) for label in self.task.loss_labels or self.task.labels]
            everywhere = scores[..., competing].flatten(1).logsumexp(dim=1)  # (B, D, K) -> (B,)
            losses = losses + everywhere - own[:, competing].logsumexp(dim=1)
        weights = [row.answer[1] for row in rows]
        return losses * torch.tensor(weights, dtype=losses.dtype, device=losses.device)

    def _by_domain(self, answers: ImageTextEmbeddings) -> Tensor:
        """Return the logits of all classes in all domains, (B, D, K)."""
        scores = answers.scores(self.templates)
        return scores.unflatten(1, (max(len(self.task.domains), 1), len(self.task.labels)))

    def _own(self, scores: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the logits in the domain of each row, (B, K)."""
        domains = torch.tensor([row.origin for row in rows], device=scores.device)
        return scores[torch.arange(len(rows), device=scores.device), domains]

    @torch.no_grad()
    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[ClassPrediction]:
        """Return the most likely label of each row, in order. Probabilities are a softmax over the labels, for SigLIP too."""

        def answers(batch: Sequence[int]) -> list[ClassPrediction]:
            mine = [rows[i] for i in batch]
            scores = self._own(self._by_domain(model.score(mine)), mine)
            return [likeliest(self.task.labels, s) for s in scores.double().softmax(dim=-1).tolist()]

        return in_batches([0] * len(rows), batch_size, on_batch, answers)


def _each(source: str | Sequence[str]) -> tuple[str, ...]:
    return (source,) if isinstance(source, str) else tuple(source)


def _with_field(source: str) -> str:
    return source.replace("{}", "{name}")


def _fitting(text: tuple[int, ...], name: str, label: str, setting: TextSetting) -> tuple[int, ...]:
    if setting.max_tokens is not None and len(text) > setting.max_tokens:
        raise ValueError(
            f"the text of label {label!r} takes {len(text)} tokens, {setting.virtual_tokens} of them virtual, and"
            f" {setting.max_tokens} are allowed: shorten the class name {name!r}, the template or the context"
        )
    return text
