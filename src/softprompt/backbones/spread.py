"""Which large models can be trained through as they were loaded: offloaded, sharded and quantised ones may only serve."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from transformers import PreTrainedModel

from softprompt.backbones.engine import TRIAL_ERRORS


def check_trainable(model: PreTrainedModel, name: str, processes: int) -> None:
    """Raise ValueError for a model that no prompt can be trained through as it was loaded.

    model      frozen
    name       of the backbone, for the error
    processes  that rows are dealt to
    """
    weights = dict(model.named_parameters())
    if any(hasattr(weight, "ds_id") for weight in weights.values()):
        raise ValueError(
            f"{name} was partitioned by DeepSpeed ZeRO-3, which gathers its weights module by module: load"
            " it without DeepSpeed (only the prompt has gradients and optimizer state, so the other stages save nothing either)"
        )
    if away := sorted(name for name, module in model.named_modules() if _is_offloaded(module)):
        raise ValueError(
            f"{name} has {len(away)} modules on the CPU or the disk that are fetched for each call, such as {away[0]},"
            " and whose weights are gone before the backward pass: it can serve prompts, not be trained through. Load it"
            " quantised, or with a device_map that names no cpu and no disk beside the GPUs"
        )
    sharded = sorted(key for key, weight in weights.items() if hasattr(weight, "device_mesh"))
    if sharded and processes > 1:
        raise ValueError(
            f"{name} is sharded over processes ({len(sharded)} weights, such as {sharded[0]}), and {processes} processes would"
            " each take their own rows through it: losses would be wrong, or the processes wait for each other for ever. Load"
            " the whole model in every process, quantised if need be, or train in one process"
        )
    if getattr(model, "is_quantized", False) and (why := missing_gradient(model)):
        raise ValueError(
            f"{name} is quantised, and no gradient comes back to its input ({why}): it can serve prompts, not be trained"
            " through. Load it unquantised, with dequantize=True, or as NF4 or int8 weights"
        )


def missing_gradient(model: PreTrainedModel) -> str | None:
    """Why a row's gradient does not come back to its vectors, by a forward and a backward pass.

    Returns None where it does, and for a model that takes no vectors, such as one of images.
    """
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return None
    table = model.get_input_embeddings()
    device = next(table.parameters()).device
    ids = torch.arange(1, 5, device=device)[None]  # (1, T)
    beside = {"decoder_input_ids": ids[:, :2]} if model.config.is_encoder_decoder else {}
    try:
        with torch.enable_grad():
            vectors = table(ids).detach().requires_grad_()  # (1, T, d)
            output = model(inputs_embeds=vectors, **beside)[0].float()
            [gradient] = torch.autograd.grad(output.square().mean(), [vectors])
    except TRIAL_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    if not gradient.isfinite().all():
        return "it is not finite"
    return None if gradient.any() else "it is zero"


def _is_offloaded(module: nn.Module) -> bool:
    """Whether a hook of accelerate fetches the module's weights for each call; several hooks come in a sequence."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))
