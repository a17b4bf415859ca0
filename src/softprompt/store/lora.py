"""LoRA in PEFT's format, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from softprompt.backbones.base import Backbone
from softprompt.baselines.lora import LoRA, lora_parameters
from softprompt.store._folders import replace_folder, standing
from softprompt.store._json import dumps, parse_object
from softprompt.store.errors import PromptFileError

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what PEFT calls the model inside of its own

# Settings of PEFT that change what the tensors mean; a folder with any other value of them is not read.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "exclude_modules": (None, []),
}


def is_lora(folder: str | Path) -> bool:
    """Whether the folder says that it holds LoRA in PEFT's format."""
    path = standing(Path(folder)) / _CONFIG
    return path.is_file() and parse_object(path.read_bytes(), str(path)).get("peft_type") == "LORA"


def write_lora(folder: str | Path, backbone: Backbone, *, overwrite: bool = False) -> None:
    """Write what LoRA trained in this copy so that `peft.PeftModel.from_pretrained(model, folder)` uses it.

    The folder is written whole or not at all. Raises FileExistsError and OSError as `softprompt.store.save` does.
    """
    tensors = {
        name: parameter.detach().to("cpu", torch.float32).contiguous()
        for name, parameter in _peft_names(backbone).items()
    }
    configs: Any = backbone.model.peft_config
    config: Mapping[str, Any] = configs["default"].to_dict()
    known = {
        **{key: sorted(value) if isinstance(value, set) else value for key, value in config.items()},
        "base_model_name_or_path": backbone.name,
        "inference_mode": True,
    }
    files = {
        _CONFIG: dumps(dict(sorted(known.items()))),
        _TENSORS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
    }
    replace_folder(Path(folder), files, overwrite=overwrite)


def read_lora(folder: str | Path, backbone: Backbone) -> tuple[LoRA, Backbone]:
    """LoRA that PEFT, or `write_lora`, wrote: its settings, and a copy of the backbone with its tensors in it.

    Raises PromptFileError for files that cannot be read, options that are not supported here (DoRA, patterns, whole
    modules), and tensors that do not fit the backbone.
    """
    folder = standing(Path(folder))
    try:
        config = parse_object((folder / _CONFIG).read_bytes(), str(folder / _CONFIG))
        tensors = safetensors.torch.load((folder / _TENSORS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise PromptFileError(f"{folder} does not hold LoRA that can be read: {error}") from error
    for key, allowed in _PLAIN.items():
        if config.get(key) not in allowed:
            raise PromptFileError(
                f"{folder}: {key}={config[key]!r} is an option of PEFT that is not supported"
            )
    targets = config.get("target_modules")
    try:
        method = LoRA(
            rank=config.get("r"),  # type: ignore[arg-type]  # checked by pydantic
            alpha=config.get("lora_alpha"),  # type: ignore[arg-type]
            targets=tuple(sorted(targets)) if isinstance(targets, list) else targets,
            rank_stabilised=bool(config.get("use_rslora")),
        )
        prepared = method.prepare(backbone, torch.Generator())
    except (ValidationError, ValueError) as error:
        raise PromptFileError(f"{folder}: {error}") from error
    own = _peft_names(prepared)
    if differing := sorted(own.keys() ^ tensors.keys()):
        raise PromptFileError(
            f"{folder} has {len(tensors)} tensors, {backbone.name} needs {len(own)}, and {differing[0]} is only on one side: "
            "it is of another model or of other layers"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise PromptFileError(
                    f"{folder}: {name} has shape {tuple(tensors[name].shape)}, {backbone.name} needs {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])
    return method, prepared


def _peft_names(backbone: Backbone) -> dict[str, nn.Parameter]:
    found = lora_parameters(backbone.model)
    return {_PREFIX + name.replace(".default.", "."): parameter for name, parameter in found.items()}
