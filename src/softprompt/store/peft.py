"""Prompts in PEFT's format: adapter_config.json and adapter_model.safetensors. PEFT itself is not needed.

The door to it is softprompt.exchange. The file lies down here because a prompt can start from one that PEFT wrote.

Virtual tokens are what PEFT puts in front of the input embeddings as the embedding module returns them: in a
model that scales its embeddings (Gemma) they are in the scaled space, as softprompt's own tokens are.

A key-value prefix is stored as it lies in the cache: the rotary embedding of positions 0 to P - 1 applied to its keys,
so the text behind it begins at position P.

Letters: P virtual tokens or prefix positions, d width, W = layers * 2 * key-value heads * head size.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import Tensor

from softprompt.store.card import peft_card, peft_prefix_card
from softprompt.store.errors import PromptFileError
from softprompt.store.folders import replace_folder, standing
from softprompt.store.peft_layouts import CONFIG, LAYOUTS, PROMPT, PeftContent, PeftShape
from softprompt.store.plain_json import dumps, parse_object

TaskType = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]

_TENSORS, _PICKLE, _CARD = "adapter_model.safetensors", "adapter_model.bin", "README.md"


@dataclass(frozen=True, eq=False)
class PeftPrompt:
    """A prompt that PEFT, or another tool, wrote in PEFT's format: virtual tokens or a key-value prefix.

    peft_type        e.g. PROMPT_TUNING
    config           adapter_config.json as it is
    tokens           (P, d) float32, in the space of the embedding module's output; None for a prefix
    prefix           (P, W) float32, a row per position: [layer][key, value][head][number]; None for virtual tokens
    frozen           how many first rows of the prefix were not trained
    base_model_name  None where the config does not say
    other_tensors    what else the file holds, by name: a trained head (`modules_to_save`)
    """

    peft_type: str
    config: Mapping[str, Any]
    tokens: Tensor | None = None
    prefix: Tensor | None = None
    frozen: int = 0
    base_model_name: str | None = None
    other_tensors: Mapping[str, Tensor] = field(default_factory=dict)


def read_peft(folder: str | Path, *, adapter: str | None = None, peft_task: int | None = None) -> PeftPrompt:
    """Read a prompt in PEFT's format. Nothing that the files name is loaded or run.

    The config may hold no more than `peft_type`, `task_type` and `num_virtual_tokens`.
    adapter: which sub-folder, where PEFT saved several adapters; found alone if there is just one.
    peft_task: which of a multitask prompt's tasks, from 0; found alone if there is just one.
    Raises PromptFileError, saying what was found, if there is no such prompt, its type is unknown here, or
    the files are damaged or disagree.
    """
    folder = _adapter_folder(standing(Path(folder)), adapter)
    config = parse_object(_read(folder / CONFIG), str(folder / CONFIG))
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in LAYOUTS:
        raise PromptFileError(
            f"{folder / CONFIG} has peft_type {peft_type!r}; the types that can be read are: {_known()}"
        )
    base = config.get("base_model_name_or_path")
    tensors = _read_tensors(folder)
    read, _ = LAYOUTS[peft_type]
    content = read(config, tensors, str(folder))
    return PeftPrompt(
        peft_type,
        config,
        _of_task(content.tokens, peft_task, str(folder)),
        content.prefix,
        content.frozen,
        base if isinstance(base, str) and base else None,
        {key: tensor.clone() for key, tensor in tensors.items() if key != PROMPT},
    )


def write_peft(
    folder: str | Path,
    tokens: Tensor,
    *,
    base_model_name: str | None,
    num_layers: int,
    num_attention_heads: int,
    task_type: TaskType = "CAUSAL_LM",
    peft_type: Literal["PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"] = "PROMPT_TUNING",
    overwrite: bool = False,
) -> None:
    """Write virtual tokens so that `peft.PeftModel.from_pretrained(model, folder)` uses them.

    tokens: (P, d), in the space of the embedding module's output; written as float32. A MULTITASK_PROMPT_TUNING holds the
    prompts of K tasks, (K, P, d): PEFT takes the one that a row's `task_ids` says.
    base_model_name, num_layers, num_attention_heads: of the model, written because other tools read them
    (PEFT would find them in the model). For an encoder-decoder, the encoder's.
    peft_type: PROMPT_TUNING and P_TUNING hold the same tokens; PEFT trains the first on, but not the second, whose encoder is
    not saved.
    The folder is written whole or not at all. Raises ValueError for tokens of another shape, an unknown task type and a
    multitask prompt of an encoder-decoder, FileExistsError and OSError as `softprompt.store.save` does.
    """
    several = peft_type == "MULTITASK_PROMPT_TUNING"
    if tokens.dim() != 2 + several or 0 in tokens.shape or not tokens.is_floating_point():
        expected = "(K, P, d), a prompt for each task" if several else "(P, d)"
        raise ValueError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; {peft_type} holds floating-point {expected}"
        )
    content = PeftContent(tokens=tokens.detach().to("cpu", torch.float32).contiguous())
    shape = PeftShape(task_type, num_layers, num_attention_heads)
    card = peft_card(base_model_name, *tokens.shape[-2:])
    _write(Path(folder), peft_type, content, shape, base_model_name, card, overwrite)


def write_peft_prefix(
    folder: str | Path,
    prefix: Tensor,
    *,
    base_model_name: str | None,
    num_layers: int,
    num_key_value_heads: int,
    frozen: int | None = None,
    task_type: TaskType = "CAUSAL_LM",
    head: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Write keys and values so that `peft.PeftModel.from_pretrained(model, folder)` uses them.

    prefix: (P, W), a row per position: [layer][key, value][head][number]; written as float32.
    frozen: None writes PREFIX_TUNING; a number writes CARTRIDGE, whose first `frozen` rows PEFT does not train.
    base_model_name, num_layers, num_key_value_heads: of the model.
    head: tensors of a trained head, under PEFT's names ("base_model.classifier.weight").
    Raises ValueError for a prefix that these cannot describe, else as `write_peft`.
    """
    unit = 2 * num_layers * num_key_value_heads
    if prefix.dim() != 2 or 0 in prefix.shape or not prefix.is_floating_point() or prefix.shape[1] % unit:
        raise ValueError(
            f"the prefix is {prefix.dtype} of shape {tuple(prefix.shape)}; expected floating-point (P, W), W a multiple "
            f"of {unit}: keys and values of {num_key_value_heads} heads in {num_layers} layers"
        )
    if frozen is not None and not 0 <= frozen <= len(prefix):
        raise ValueError(f"frozen is {frozen}; the prefix has {len(prefix)} positions")
    content = PeftContent(
        prefix=prefix.detach().to("cpu", torch.float32).contiguous(),
        frozen=frozen or 0,
        head={
            key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in (head or {}).items()
        },
    )
    shape = PeftShape(task_type, num_layers, num_key_value_heads)
    card = peft_prefix_card(base_model_name, len(prefix), num_layers)
    kind = "PREFIX_TUNING" if frozen is None else "CARTRIDGE"
    _write(Path(folder), kind, content, shape, base_model_name, card, overwrite)


def _write(
    folder: Path,
    peft_type: str,
    content: PeftContent,
    shape: PeftShape,
    base_model_name: str | None,
    card: str,
    overwrite: bool,
) -> None:
    if shape.task_type not in get_args(TaskType):
        raise ValueError(f"task_type is {shape.task_type!r}; PEFT knows {', '.join(get_args(TaskType))}")
    if peft_type not in LAYOUTS:
        raise ValueError(f"peft_type is {peft_type!r}; the types that can be written are: {_known()}")
    _, write = LAYOUTS[peft_type]
    fields, tensors = write(content, shape)
    config = {**fields, "base_model_name_or_path": base_model_name, "peft_type": peft_type}
    files = {
        CONFIG: dumps(dict(sorted(config.items()))),
        _TENSORS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        _CARD: card.encode(),
    }
    replace_folder(folder, files, overwrite=overwrite)


def _of_task(tokens: Tensor | None, task: int | None, folder: str) -> Tensor | None:
    """One task's virtual tokens: (K, P, d) -> (P, d)."""
    if tokens is None or tokens.dim() == 2:
        if task is not None:
            raise PromptFileError(f"{folder} holds one prompt, not one for each task; leave peft_task out")
        return tokens
    if (task is None and len(tokens) > 1) or (task is not None and not 0 <= task < len(tokens)):
        raise PromptFileError(
            f"{folder} holds prompts for {len(tokens)} tasks and peft_task is {task}; expected 0 to {len(tokens) - 1}"
        )
    return tokens[task or 0].clone()


def _known() -> str:
    return ", ".join(LAYOUTS)


def _adapter_folder(folder: Path, adapter: str | None) -> Path:
    """PEFT writes an adapter that is not called "default" into a sub-folder of its name."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise PromptFileError(f"{folder} {what}; pass the folder that holds {CONFIG}")
    named = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if adapter is not None:
        if adapter in named:
            return folder / adapter
        raise PromptFileError(f"{folder} has no adapter {adapter!r}; it has: {', '.join(named) or 'none'}")
    if (folder / CONFIG).exists():
        return folder
    if len(named) == 1:
        return folder / named[0]
    if named:
        raise PromptFileError(f"{folder} holds several adapters; pass adapter= one of: {', '.join(named)}")
    if (folder / "prompt.json").exists():
        raise PromptFileError(f"{folder} is in softprompt's own format; read it with softprompt.store.load")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise PromptFileError(f"{folder} holds no {CONFIG}, so it is no PEFT folder; found {found}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PromptFileError(f"{path} cannot be read: {error.strerror}; copy the folder again") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / _TENSORS
    if not path.exists():
        path = folder / _PICKLE
    if not path.exists():
        raise PromptFileError(f"{folder} has no {_TENSORS} (nor {_PICKLE}); copy the folder again")
    content = _read(path)
    try:
        if path.name == _TENSORS:
            tensors = safetensors.torch.load(content)
        else:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the parsers raise many kinds, and with each of them the file is at fault
        reason = str(error).partition("\n")[0]
        raise PromptFileError(f"{path} cannot be read ({reason}); copy the folder again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    ):
        raise PromptFileError(f"{path} holds something else than tensors by name")
    return tensors
