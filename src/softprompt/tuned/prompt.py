"""TunedPrompt: backbone, task and the learned prompt, as one value that predicts, evaluates and can be saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from softprompt import exports, store
from softprompt.backbones.base import Backbone
from softprompt.baselines.lora import LoRA
from softprompt.binding import bind, room_of
from softprompt.concerns import warn_of
from softprompt.data import Rows, open_rows
from softprompt.evaluation import Metrics, evaluate
from softprompt.exchange.lora import write_lora
from softprompt.exchange.prompts import write_peft_folder
from softprompt.model import PromptedModel
from softprompt.prompts import Method, PromptModule
from softprompt.state import changed_weights, named_state
from softprompt.store.identity import identity_of, named_settings
from softprompt.surroundings import undisturbed
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.tasks.inputs import as_rows
from softprompt.tasks.reading import encode_rows


@dataclass(frozen=True, eq=False)
class TunedPrompt:
    """The result of `fit`.

    backbone    the frozen model; for methods that change weights, their own copy
    module      the learned prompt, in the form that predictions use
    max_tokens  longest row in tokens, virtual tokens and answer included
    recipe      the settings of its training, as plain JSON; empty if it was not trained
    metrics     by data set ("validation" after `fit`), with the scores to compare them with
    history     one record per optimizer step
    identity    of the backbone before the method changed its weights; None: the method changed none
    head        answers a task that is not answered by words, (n, d) -> (n, outputs); None: words answer
    unbaked     the module in the form in which it was trained, where that is another one; None: it is the same, or the
                prompt was loaded
    """

    backbone: Backbone
    task: Task
    method: Method
    module: PromptModule
    max_tokens: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    identity: store.BackboneIdentity | None = None
    head: nn.Module | None = None
    unbaked: PromptModule | None = None

    def __post_init__(self) -> None:
        encoder = bind(self.backbone, self.task, room_of(self.module, self.max_tokens))
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "model", PromptedModel(self.backbone, [self.module], [self.head]))

    encoder: TaskEncoder = field(init=False, repr=False)
    model: PromptedModel = field(init=False, repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a TunedPrompt stands on a loaded backbone and is not pickled: save it with tuned.save(folder), and read it with"
            " sp.load(folder) in the other process"
        )

    @undisturbed
    def predict(
        self,
        inputs: Sequence[Any],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
        generation: Mapping[str, Any] | None = None,
        choices: Sequence[str] | None = None,
    ) -> list[Any]:
        """A prediction for each input, in order; its type depends on the task.

        inputs: rows with the template's columns, or plain strings if the template has only one column; for a task about
        images these as paths, bytes, Pillow images or arrays.
        generation: where texts are written, options of transformers' `generate`, as in {"do_sample": True, "top_p": 0.9,
        "seed": 1, "max_new_tokens": 50}; they are put over those of the task.
        choices: the texts that an answer is one of; the one that is most probable as a whole is taken.
        Raises TypeError for a single text or row, ValueError for a string where several columns are needed, for options that
        `generate` does not take, and what the task's `encode` raises.
        """
        rows = as_rows(self.task, inputs)
        encoder = self.encoder
        if generation is not None or choices is not None:
            task = self.task.answering(generation, choices)
            encoder = bind(self.backbone, task, room_of(self.module, self.max_tokens))
        encoded = encode_rows(encoder, rows, answer=False)
        return encoder.predict(self.model, encoded, batch_size=batch_size, on_batch=on_batch)

    @undisturbed
    def evaluate(
        self,
        rows: Rows,
        *,
        split: str | None = None,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
        metrics: Metrics | None = None,
    ) -> dict[str, Any]:
        """The task's metrics over rows that hold the right answers; `rows` and further `metrics` as in `fit`.

        Warns with SoftpromptWarning of labels that are never predicted, and of predictions that are no better than always
        giving the commonest label or the mean.
        """
        data = open_rows(rows, split)
        found = evaluate(
            self.model,
            self.task,
            self.encoder,
            data,
            batch_size=batch_size,
            on_batch=on_batch,
            metrics=metrics,
        )
        warn_of(self.task.concerns_about(found, split or ""))
        return found

    def with_labels(self, labels: Sequence[str], **settings: Any) -> TunedPrompt:
        """The same prompt for other classes, by their names; for tasks that compare images with texts.

        settings: keyword arguments of the task's own `with_labels`. Metrics and history stay those of the training.
        Raises ValueError for a task whose labels are outputs of a head or words of a verbalizer, for class-specific contexts,
        and what the task raises.
        """
        return self.with_task(self.task.with_labels(labels, **settings))

    def with_task(self, task: Task) -> TunedPrompt:
        """The same prompt with another task, for other columns or for other classes by their names.

        Raises ValueError for contexts of single classes and other labels, or the same ones in another order.
        """
        learned, asked = list(self.task.label_words), list(task.label_words)
        if self.method.class_specific and asked != learned:
            raise ValueError(
                f"each class has a context of its own, and those of {learned} do not serve {asked}: train with"
                " class_specific=False for a prompt that does"
            )
        return replace(self, task=task)

    def trained(self) -> dict[str, Tensor]:
        """Every trained tensor by name: those of the module, of the head, and of the backbone if the method changed it."""
        module = {f"prompt.{name}": p for name, p in self.module.named_parameters()}
        return module | self._head() | self._changed()

    def state(self) -> dict[str, Tensor]:
        """Every tensor that another run can start from, by name, buffers included; `fit(..., start=...)` takes it.

        The tensors are not copies. They are those before reparametrizations were folded away, unless the prompt was loaded.
        """
        module = self.module if self.unbaked is None else self.unbaked
        return named_state(module, self.backbone.model, self.head)

    def _head(self) -> dict[str, Tensor]:
        tensors = {} if self.head is None else self.head.state_dict()
        return {f"head.{name}": tensor for name, tensor in tensors.items()}

    def _changed(self) -> dict[str, Tensor]:
        """The trained weights of the backbone, which are those that require a gradient."""
        return dict(changed_weights(self.backbone.model))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the prompt's folder (prompt.json, prompt.safetensors, README.md), whole or not at all.

        Raises FileExistsError if the folder is not empty and `overwrite` is False, OSError if it cannot be written.
        """
        module = {f"prompt.{name}": tensor for name, tensor in self.module.bake().state_dict().items()}
        saved = store.SavedPrompt(
            method=named_settings(self.method),
            task={**named_settings(self.task), **_said_by_every_file(self.task)},
            backbone=self.identity or identity_of(self.backbone),
            tensors=module | self._head() | {name: t.float() for name, t in self._changed().items()},
            recipe=dict(self.recipe),
            metrics=dict(self.metrics),
            notes={
                "max_tokens": self.max_tokens,
                "precision": str(self.backbone.dtype).removeprefix("torch."),
            },
        )
        store.save(folder, saved, overwrite=overwrite)
        return Path(folder)

    def export(
        self,
        form: str,
        folder: str | Path,
        *,
        overwrite: bool = False,
        check: bool = False,
        name: str = "prompt",
    ) -> dict[str, Any]:
        """Write the prompt for another server, see `softprompt.exports.export`, and describe what was written.

        form   "checkpoint", "prompt-embeds" or "peft"
        check  also ask what was written, in transformers
        name   of the prompt in there
        """
        return exports.export({name: self}, form, folder, overwrite=overwrite, check=check)

    def export_peft(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the prompt in PEFT's format: the same logits there, for text without padding on the left.

        Virtual tokens are written as PROMPT_TUNING, a key-value prefix as PREFIX_TUNING, with frozen positions as CARTRIDGE.
        Raises ValueError where PEFT could not give the same logits: virtual tokens that are not all in front, or stand
        after a BOS that the tokenizer adds; for heads that transformers' model of the task does not have; and for methods
        that PEFT does not know.
        """
        if isinstance(self.method, LoRA) and self.head is None:
            write_lora(folder, self.backbone, overwrite=overwrite)
            return Path(folder)
        if self.backbone.spec.vision is not None:
            raise ValueError(
                f"PEFT puts prompts in front of text; {self.backbone.name} compares images with texts, and its prompt stands in"
                " these"
            )
        if self.backbone.spec.read_media is not None:
            raise ValueError(
                f"PEFT puts prompts in front of text; {self.backbone.name} reads sound, and its prompt stands in the decoder"
            )
        texts = {self.task.columns.get(name, name): "a" for name in self.task.fields}
        write_peft_folder(
            folder,
            self.module.bake(),
            self.backbone,
            method=self.method.name,
            task=self.task,
            head=self.head,
            probe=self.encoder.encode(texts, answer=False),
            overwrite=overwrite,
        )
        return Path(folder)


def has_control_tokens(kind: type[Task] | None) -> bool:
    """Whether tasks of this class say what control tokens are in the values of a row."""
    return kind is not None and any(entry.name == "control_tokens" for entry in fields(kind))  # type: ignore[arg-type]


def _said_by_every_file(task: Task) -> dict[str, Any]:
    return {"control_tokens": task.control_tokens} if has_control_tokens(type(task)) else {}
