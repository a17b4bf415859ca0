"""A tuned prompt in PEFT's format, and back: which of PEFT's types it has, and where PEFT would give other answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.exchange.heads import read_head, write_head
from softprompt.outputs import EncodedRow, KeyValue
from softprompt.prompts import Method, PrefixTuning, PromptModule, PTuning
from softprompt.prompts.prefix import FreeRows, KeyValuePrefix, check_width, join_rows
from softprompt.prompts.prompt_tuning import PromptTuning, VirtualTokens
from softprompt.store.peft import TaskType, read_peft, write_peft, write_peft_prefix
from softprompt.tasks.base import Task

_TASK_TYPES: dict[str, TaskType] = {
    "causal-lm": "CAUSAL_LM",
    "encoder-decoder": "SEQ_2_SEQ_LM",
    "masked-lm": "FEATURE_EXTRACTION",  # PEFT has no type for masked language models
    "text-encoder": "FEATURE_EXTRACTION",
}


def read_peft_folder(
    folder: str | Path, backbone: Backbone, task: Task, peft_task: int | None = None
) -> tuple[Method, PromptModule, nn.Module | None]:
    """Read a prompt of PEFT as a method, its module, and the head of the task, if a head answers it.

    folder     that PEFT wrote
    backbone   that the prompt was trained on
    task       that it answers
    peft_task  see read_peft

    Raises PromptFileError for a folder that cannot be read; ValueError for a prompt of another width, and for a prompt with
    which PEFT would give other answers.
    """
    spec = backbone.spec
    _check_direction(spec)
    read = read_peft(folder, peft_task=peft_task)
    whose = read.base_model_name or "the file does not say which"
    if read.tokens is not None:
        if read.tokens.shape[1] != spec.width:
            raise ValueError(
                f"{folder}: its virtual tokens have width {read.tokens.shape[1]}, {spec.name} has {spec.width}: "
                f"load the backbone it was trained on ({whose})"
            )
        if task.outputs is not None:
            raise ValueError(
                f"{folder}: PEFT's virtual tokens move what a head reads, which for {task.name} is not done here: take a"
                " task that is answered by words, or a prefix"
            )
        return PromptTuning(length=len(read.tokens)), VirtualTokens(read.tokens), None
    assert read.prefix is not None
    if set(spec.places) - {"decoder"}:
        raise ValueError(
            f"{folder}: PEFT's prefixes stand in front of the decoder's self-attention only, those of {spec.name} of "
            f"{sorted(set(spec.places))}"
        )
    if not spec.prefix_counts:
        raise ValueError(
            f"{folder}: PEFT counts the positions of a prefix, and on {spec.name} ({spec.family}), which embeds no positions, "
            "they do not count: the answers would differ"
        )
    try:
        check_width(spec, read.prefix)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; load the backbone it was trained on ({whose})") from error
    # A cartridge that is frozen as a whole leaves a method nothing to train, so all of it counts as trained.
    frozen = read.frozen if read.frozen < len(read.prefix) else 0
    module = KeyValuePrefix(
        FreeRows(read.prefix[frozen:]), spec.key_values, read.prefix[:frozen] if frozen else None
    )
    method = PrefixTuning(length=len(read.prefix), reparametrize=False, frozen=frozen)
    return method, module, read_head(read.other_tensors, task, backbone, str(folder))


def write_peft_folder(
    folder: str | Path,
    module: PromptModule,
    backbone: Backbone,
    *,
    method: str,
    task: Task,
    head: nn.Module | None,
    probe: EncodedRow,
    overwrite: bool = False,
) -> None:
    """Write a baked module, and the head of its task, in PEFT's format.

    folder     to write
    module     that gives the prompt
    backbone   that it was trained on
    method     name of the method, for errors
    task       that the prompt answers
    head       of the task; None: words answer it
    probe      any row of the task, which shows where virtual tokens stand
    overwrite  whether the folder may be replaced

    Raises ValueError for prompts that PEFT has no format for, and FileExistsError if the folder is not empty and
    `overwrite` is False.
    """
    _check_direction(backbone.spec)
    output = module()
    if output.offset is not None or output.token_offset is not None:
        raise ValueError(
            f"{method} adds an offset to the embeddings of the text, and PEFT has no format that holds one: "
            "save it in softprompt's own"
        )
    if output.prefix is not None:
        if output.tokens is not None:
            raise ValueError(f"PEFT's prefix format holds keys and values only; {method} has more to it")
        frozen = module.frozen if isinstance(module, KeyValuePrefix) else None
        _write_prefix(
            folder,
            output.prefix,
            backbone,
            frozen=None if frozen is None else len(frozen),
            task=task,
            head=head,
            overwrite=overwrite,
        )
        return
    if head is not None:
        raise ValueError(
            f"PEFT's format of virtual tokens holds no head that reads the text, and {task.name} is answered by one"
        )
    if output.tokens is None:
        raise ValueError(f"PEFT's prompt-tuning format holds virtual tokens only; {method} has more to it")
    _check_they_stand_in_front(output.tokens.shape[1], probe)
    config = backbone.model.config.get_text_config()
    write_peft(
        folder,
        output.tokens[0].detach(),
        base_model_name=backbone.name,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        task_type=_TASK_TYPES[backbone.spec.family],
        peft_type="P_TUNING" if method == PTuning.name else "PROMPT_TUNING",
        overwrite=overwrite,
    )


def _write_prefix(
    folder: str | Path,
    prefix: Sequence[KeyValue],
    backbone: Backbone,
    *,
    frozen: int | None,
    task: Task,
    head: nn.Module | None,
    overwrite: bool,
) -> None:
    """Write a key-value prefix and the head of its task. frozen: see `write_peft_prefix`."""
    heads = _checked_heads(backbone.spec)
    kind, tensors = _TASK_TYPES[backbone.spec.family], dict[str, Tensor]()
    if head is not None:
        kind, tensors = write_head(head, task, backbone)
    write_peft_prefix(
        folder,
        join_rows(prefix),
        base_model_name=backbone.name,
        num_layers=len(prefix),
        num_key_value_heads=heads,
        frozen=frozen,
        task_type=kind,
        head=tensors,
        overwrite=overwrite,
    )


def _check_they_stand_in_front(length: int, probe: EncodedRow) -> None:
    """Raise ValueError unless a row of the task begins with all of the virtual tokens."""
    if probe.context[:length] != tuple(-1 - k for k in range(length)):
        raise ValueError(
            "PEFT puts virtual tokens before everything, in this template they stand elsewhere: train with a template "
            "that begins with {soft}, and writes {bos} after it if the tokenizer adds one"
        )


def _check_direction(spec: BackboneSpec) -> None:
    if spec.family == "prefix-lm":
        raise ValueError(
            f"{spec.name} is read as a prefix LM, where prompt and input see each other both ways; PEFT knows causal "
            "attention only: its answers would differ"
        )


def _checked_heads(spec: BackboneSpec) -> int:
    """Hkv of a prefix that PEFT can hold. Raises ValueError for a backbone with other prefixes."""
    if set(spec.places) - {"decoder"}:
        raise ValueError(
            f"PEFT's prefixes stand in front of the decoder's self-attention only, this one of {sorted(set(spec.places))}"
        )
    if not spec.prefix_counts:
        raise ValueError(
            f"PEFT counts the positions of a prefix, so that the text begins behind them; on {spec.name} ({spec.family}) "
            "it was trained with the text at position 0: save it in softprompt's own format"
        )
    if len(set(spec.key_values)) > 1:
        raise ValueError(
            "PEFT's prefix format has one number of key-value heads and one head size for all layers, "
            f"{spec.name} has {sorted(set(spec.key_values))}"
        )
    return spec.key_values[0][0]
