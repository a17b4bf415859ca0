"""Reading and writing LoRA in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from softprompt.backbones.base import Backbone
from softprompt.baselines.lora import LoRA, lora_parameters
from softprompt.files import JSON_LIMIT, read_bytes
from softprompt.store.errors import PromptFileError, check_finite
from softprompt.store.folders import replace_folder, standing
from softprompt.store.plain_json import dumps, parse_object

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's name for the model inside its own

# Settings of PEFT that are read here, or do not affect the logits of a finished adapter. Any other setting must be off:
# PEFT adds options with every release, and most change what the tensors mean (DoRA, KaSA), which tokens or layers they act
# on (aLoRA, patterns), or what they are added to.
_KNOWN = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "target_modules", "use_rslora", "fan_in_fan_out", "inference_mode", "lora_dropout"),
    # Without effect unless another option is on.
    *("megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
_OFF: tuple[Any, ...] = (None, False, {}, [])
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    # The initial value of the low-rank tensors. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract it from the
    # model's own weights: the adapter belongs to those changed weights, which the folder does not hold.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
}


def is_lora(folder: str | Path) -> bool:
    """Whether the config of a folder says that it holds LoRA in PEFT's format."""
    path = standing(Path(folder)) / _CONFIG
    return path.is_file() and parse_object(read_bytes(path, JSON_LIMIT), str(path)).get("peft_type") == "LORA"


def write_lora(folder: str | Path, backbone: Backbone, *, overwrite: bool = False) -> None:
    """Write the LoRA of a backbone so that `peft.PeftModel.from_pretrained(model, folder)` uses it.

    folder     to write
    backbone   the copy in which LoRA was trained
    overwrite  whether the folder may be replaced

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
    """Read LoRA that PEFT or `write_lora` wrote: its settings, and a copy of the backbone with its tensors in it.

    Raises PromptFileError for files that cannot be read, for options that are not supported here (DoRA, patterns, whole
    modules, initial values that change the model's own weights), and for tensors that do not fit the backbone.
    """
    folder = standing(Path(folder))
    try:
        config = parse_object(read_bytes(folder / _CONFIG, JSON_LIMIT), str(folder / _CONFIG))
        tensors = safetensors.torch.load(read_bytes(folder / _TENSORS))
    except (OSError, SafetensorError) as error:
        raise PromptFileError(f"{folder} does not hold LoRA that can be read: {error}") from error
    check_finite(tensors, str(folder / _TENSORS))
    _check_options(config, folder)
    targets = config.get("target_modules")
    try:
        method = LoRA(
            rank=config.get("r"),  # type: ignore[arg-type]  # checked by pydantic
            alpha=config.get("lora_alpha"),  # type: ignore[arg-type]
            targets=tuple(sorted(targets)) if isinstance(targets, list) else targets,
            rank_stabilised=bool(config.get("use_rslora")),
        )
        prepared = method.prepare(backbone, torch.Generator())
    except ValueError as error:
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
            if not tensors[name].is_floating_point():
                raise PromptFileError(
                    f"{folder}: {name} is {tensors[name].dtype}, expected floating-point numbers"
                )
            parameter.copy_(tensors[name])
    return method, prepared


def _check_options(config: Mapping[str, Any], folder: Path) -> None:
    """Raise PromptFileError for a setting with which the tensors are not plain LoRA of the unchanged model."""
    for key, value in config.items():
        if key in _KNOWN or _is_any_of(value, _ALLOWED.get(key, _OFF)):
            continue
        remedy = "merge it into its model with PEFT's merge_and_unload and load that as the backbone"
        if key == "init_lora_weights":
            remedy += ", or save it again with path_initial_model_for_weight_conversion"
        raise PromptFileError(
            f"{folder}: {key}={value!r} is an option of PEFT that is not supported; expected plain LoRA of the model's own"
            f" weights: {remedy}"
        )


def _is_any_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is one of the allowed ones, of the same type: 0, a layer's number, equals False."""
    return any(type(value) is type(one) and value == one for one in allowed)


def _peft_names(backbone: Backbone) -> dict[str, nn.Parameter]:
    found = lora_parameters(backbone.model)
    return {_PREFIX + name.replace(".default.", "."): parameter for name, parameter in found.items()}
