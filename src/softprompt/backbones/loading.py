"""load_backbone: a carrier name, a hub id, a local folder or a model object, all to the same interface."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from softprompt import carriers
from softprompt.backbones.causal import CausalBackbone
from softprompt.backbones.precision import Precision, resolve_dtype

log = logging.getLogger(__name__)


def load_backbone(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: Precision | torch.dtype = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    packed: bool | None = None,
) -> CausalBackbone:
    """A frozen model with its tokenizer.

    source    a carrier's name (`softprompt fetch --list`), a local folder, a hub id, or a model of transformers, which
              is used as it is: its weights are frozen, its dtype and device kept
    dtype     of the weights; "auto" is bfloat16 where the hardware is good at it, else float32
    device    where to; by default the first GPU, else the CPU
    revision  of a hub model
    packed    False runs the plain padded path instead of sharing prompts; by default found out by a trial

    Raises ValueError for a model that is no causal language model, misses weights or has damaged ones, FileNotFoundError
    for a source that is neither a carrier, nor a folder, nor to be had from the hub.
    """
    if isinstance(source, PreTrainedModel):
        _check_family(source.config, type(source).__name__)
        if tokenizer is None:
            raise ValueError("a model object comes without its tokenizer: pass tokenizer=")
        return CausalBackbone(source.eval().requires_grad_(False), tokenizer, packed=packed)

    name = str(source)
    folder = str(carriers.fetch(name)) if name in carriers.names() else name
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted = resolve_dtype(dtype, where)
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision)
        _check_family(config, name)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, revision=revision)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, revision=revision, dtype=wanted, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model, report = loaded  # its type does not know of output_loading_info
    except SafetensorError as error:
        raise ValueError(
            f"{name}: the weights cannot be read ({error}): the file is damaged or cut off, copy it again"
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{name!r} is not a carrier ({', '.join(carriers.names())}), and as a local folder or hub id it failed: {error}"
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{name}: {len(missing)} weights are not in the file and would be random, such as {missing[0]}: "
            "this is not a whole causal language model"
        )
    if report["mismatched_keys"]:
        weight, found, expected = sorted(report["mismatched_keys"])[0]
        raise ValueError(
            f"{name}: {len(report['mismatched_keys'])} weights have another shape than config.json says, such as "
            f"{weight}: found {tuple(found)}, expected {tuple(expected)}; the files are of different models"
        )
    log.info("%s: %s on %s", name, str(wanted).removeprefix("torch."), where)
    return CausalBackbone(model.to(where).eval().requires_grad_(False), tokenizer, name=name, packed=packed)


def _check_family(config: PreTrainedConfig, name: str) -> None:
    # BERT and its kin have a causal head too, but look both ways unless they were trained as decoders.
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not causal or encoder or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}, which is no causal language model: "
            "softprompt tunes prompts for decoders (Llama, Qwen, GPT-2, Gemma ...) so far"
        )
