"""Prompts in PEFT's format: adapter_config.json and adapter_model.safetensors. PEFT itself is not needed.

The door to it is softprompt.exchange. The file lies down here because a prompt can start from one that PEFT wrote.

PEFT puts virtual tokens in front of the input embeddings as the embedding module returns them. In a model that scales its
embeddings (Gemma) they are in the scaled space, like softprompt's own tokens.

A key-value prefix is stored as it stands in the cache: with the rotary embedding of positions 0 to P - 1 applied to its
keys, so that the text behind it begins at position P.

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

from softprompt.files import JSON_LIMIT, read_bytes
from softprompt.store.card import peft_card, peft_prefix_card
from softprompt.store.errors import PromptFileError, check_finite
from softprompt.store.folders import replace_folder, standing
from softprompt.store.peft_layouts import CONFIG, LAYOUTS, PROMPT, PeftContent, PeftShape
from softprompt.store.plain_json import dumps, parse_object

TaskType = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]

_TENSORS, _PICKLE, _CARD = "adapter_model.safetensors", "adapter_model.bin", "README.md"


@dataclass(frozen=True, eq=False)
class PeftPrompt:
    """A prompt in PEFT's format, by PEFT or another tool: virtual tokens or a key-value prefix.

    peft_type        e.g. PROMPT_TUNING
    config           adapter_config.json as it is
    tokens           (P, d) float32, in the space of the embedding module's output; None for a prefix
    prefix           (P, W) float32, a row per position: [layer][key, value][head][number]; None for virtual tokens
    frozen           number of rows at the beginning of the prefix that were not trained
    base_model_name  None: the config does not say
    other_tensors    the other tensors of the file, by name: a trained head (`modules_to_save`)
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

    folder     that PEFT wrote
    adapter    name of the sub-folder, if PEFT saved several adapters; a single one is found without it
    peft_task  number of a multitask prompt's task, from 0; a single one is found without it

    A config with `peft_type`, `task_type` and `num_virtual_tokens` alone is enough.
    Raises PromptFileError, saying what was found, if there is no such prompt, if its type is unknown here, or if the files
    are damaged or contradict each other.
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
        peft_type=peft_type,
        config=config,
        tokens=_of_task(content.tokens, peft_task, str(folder)),
        prefix=content.prefix,
        frozen=content.frozen,
        base_model_name=base if isinstance(base, str) and base else None,
        other_tensors={key: tensor.clone() for key, tensor in tensors.items() if key != PROMPT},
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

    folder               to write
    tokens               (P, d), in the space of the embedding module's output; written as float32. MULTITASK_PROMPT_TUNING
                         holds the prompts of K tasks, (K, P, d): PEFT takes the one that a row's `task_ids` says
    base_model_name      of the model; None: not recorded
    num_layers           of the model, written for tools that read it; for an encoder-decoder, of the encoder
    num_attention_heads  likewise
    task_type            PEFT's name for what the model does
    peft_type            PROMPT_TUNING and P_TUNING hold the same tokens. PEFT can train the first further, but not the
                         second, whose encoder is not saved
    overwrite            whether the folder may be replaced

    The folder is written whole or not at all. Raises ValueError for tokens of another shape, for an unknown task type and
    for a multitask prompt of an encoder-decoder; FileExistsError and OSError as `softprompt.store.save` does.
    """
    several = peft_type == "MULTITASK_PROMPT_TUNING"
    if tokens.dim() != 2 + several or 0 in tokens.shape or not tokens.is_floating_point():
        expected = "(K, P, d), a prompt for each task" if several else "(P, d)"
        raise ValueError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; {peft_type} holds floating-point {expected}"
        )
    content = PeftContent(tokens=tokens.detach().to("cpu", torch.float32).contiguous())
    shape = PeftShape(task_type, num_layers, num_attention_heads)
    _write(
        Path(folder),
        content,
        shape,
        peft_type=peft_type,
        base_model_name=base_model_name,
        card=peft_card(base_model_name, *tokens.shape[-2:]),
        overwrite=overwrite,
    )


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

    folder               to write
    prefix               (P, W), a row per position: [layer][key, value][head][number]; written as float32
    base_model_name      of the model; None: not recorded
    num_layers           of the model
    num_key_value_heads  of the model
    frozen               None writes PREFIX_TUNING; a number writes CARTRIDGE, whose first `frozen` rows PEFT does not train
    task_type            PEFT's name for what the model does
    head                 tensors of a trained head, under PEFT's names ("base_model.classifier.weight")
    overwrite            whether the folder may be replaced

    Raises ValueError for a prefix that does not fit these numbers, and otherwise as `write_peft`.
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
    _write(
        Path(folder),
        content,
        shape,
        peft_type="PREFIX_TUNING" if frozen is None else "CARTRIDGE",
        base_model_name=base_model_name,
        card=peft_prefix_card(base_model_name, len(prefix), num_layers),
        overwrite=overwrite,
    )


def _write(
    folder: Path,
    content: PeftContent,
    shape: PeftShape,
    *,
    peft_type: str,
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
    """The virtual tokens of one task: (K, P, d) -> (P, d).

    tokens  (P, d) if there is one prompt; None: there are none
    task    number of the task; None: the only one
    folder  its path, for errors
    """
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
    """The folder of an adapter. PEFT writes one that is not called "default" into a sub-folder of that name."""
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
        raise PromptFileError(f"{folder} is in softprompt's own format; read it with sp.load")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise PromptFileError(f"{folder} holds no {CONFIG}, so it is no PEFT folder; found {found}")


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, JSON_LIMIT if path.name == CONFIG else None)
    except OSError as error:
        raise PromptFileError(f"{path} cannot be read: {error.strerror}; copy the folder again") from error
    except ValueError as error:  # endless or too large
        raise PromptFileError(f"{error}; copy the folder again") from error


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
    except (
        Exception
    ) as error:  # the parsers raise many kinds of errors, and each means that the file is damaged
        reason = str(error).partition("\n")[0]
        raise PromptFileError(f"{path} cannot be read ({reason}); copy the folder again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    ):
        raise PromptFileError(f"{path} holds something other than tensors by name")
    check_finite(tensors, str(path))
    return tensors
