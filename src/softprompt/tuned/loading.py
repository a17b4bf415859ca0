"""Loading a tuned prompt: one that `save` wrote, or one of PEFT's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from softprompt import store
from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import load_backbone
from softprompt.binding import new_head
from softprompt.catalogue import methods
from softprompt.errors import explain
from softprompt.exchange.heads import TanhHead
from softprompt.exchange.lora import is_lora, read_lora
from softprompt.exchange.prompts import read_peft_folder
from softprompt.prompts import Method
from softprompt.prompts.restoring import restore
from softprompt.state import copy_tensors, plain_name
from softprompt.store.identity import identity_of, reading_as_before, recognised
from softprompt.surroundings import undisturbed
from softprompt.tasks import TASKS
from softprompt.tasks.base import Task
from softprompt.tuned.prompt import TunedPrompt, has_control_tokens


@undisturbed
def from_peft(
    folder: str | Path,
    backbone: Backbone,
    task: Task,
    *,
    max_tokens: int | None = None,
    peft_task: int | None = None,
) -> TunedPrompt:
    """Load a prompt that PEFT wrote, for a task of softprompt.

    peft_task: which of a multitask prompt's tasks, from 0; found alone if there is just one.

    PEFT puts its virtual tokens before everything, BOS included: a template without slots is read that way.
    Raises PromptFileError for a folder that cannot be read, ValueError for a prompt of another width.
    """
    if is_lora(folder):
        lora, own = read_lora(folder, backbone)
        module = lora.restore(own.spec, {"tokens": torch.zeros(0, own.spec.width)}).to(own.device)
        return TunedPrompt(
            backbone=own,
            task=task,
            method=lora,
            module=module,
            max_tokens=max_tokens,
            identity=identity_of(backbone),
        )
    method, module, head = read_peft_folder(folder, backbone, task, peft_task)
    if module.length:
        task = task.with_prompt_in_front(backbone.tokenizer)
    module = module.to(backbone.device).requires_grad_(False)
    if head is not None:
        head = head.to(backbone.device).requires_grad_(False)
    return TunedPrompt(
        backbone=backbone, task=task, method=method, module=module, max_tokens=max_tokens, head=head
    )


@undisturbed
def load(folder: str | Path, backbone: Backbone | None = None) -> TunedPrompt:
    """A prompt that `save` wrote, or that of a run's folder, on its backbone, which is loaded by its name unless it is given.

    Raises FileNotFoundError if there is no backbone of this name, PromptFileError for a damaged or foreign folder,
    WrongBackboneError if the backbone is another one.
    """
    folder = Path(folder)
    if not (folder / "prompt.json").exists() and (folder / "prompt" / "prompt.json").exists():
        folder = folder / "prompt"  # of a run
    saved = store.load(folder)
    if backbone is None:
        backbone = _trained_on(saved.backbone)
    backbone = reading_as_before(backbone, saved.backbone.tokenizer_digest, "the prompt was trained")
    store.check_backbone(saved, recognised(saved.backbone, backbone))
    return restore_saved(saved, backbone, folder)


@undisturbed
def restore_saved(saved: store.SavedPrompt, backbone: Backbone, folder: str | Path) -> TunedPrompt:
    """The prompt that a folder's content describes, on a backbone that was checked to be its own.

    Raises PromptFileError, which names the folder, for settings or tensors that are not valid.
    """
    method = _from_settings(methods(), saved.method, folder, "method")
    # A file that says nothing of control tokens was written before there was a choice.
    before = {"control_tokens": "tokens"} if has_control_tokens(TASKS.get(saved.task["name"])) else {}
    task = _from_settings(TASKS, {**before, **saved.task}, folder, "task")
    of_prompt, of_head, changed = (_named(saved.tensors, part) for part in ("prompt.", "head.", "backbone."))
    if changed:
        backbone = _with_changed_weights(method, backbone, changed, folder)
    module = restore(method, backbone.spec, of_prompt, str(folder))
    head: nn.Module | None = TanhHead.restore(of_head)
    if head is None and (head := new_head(method, task, backbone.spec, torch.Generator())) is not None:
        try:
            head.load_state_dict(of_head)
        except RuntimeError as error:
            raise store.PromptFileError(f"{folder}: the head is not that of its task: {error}") from error
    if head is not None:
        head = head.to(backbone.device).requires_grad_(False)
    return TunedPrompt(
        backbone=backbone,
        task=task,
        method=method,
        module=module.to(backbone.device).requires_grad_(False),
        max_tokens=_checked_max_tokens(saved.notes.get("max_tokens"), folder),
        recipe=saved.recipe,
        metrics=saved.metrics,
        identity=saved.backbone if changed else None,
        head=head,
    )


def _checked_max_tokens(found: Any, folder: str | Path) -> int | None:
    if found is not None and (type(found) is not int or found < 1):
        raise store.PromptFileError(
            f"{folder}: max_tokens is {found!r}, expected a number of tokens or null: the file was edited by hand"
        )
    return found


def _trained_on(identity: store.BackboneIdentity) -> Backbone:
    """The backbone of this name. Raises FileNotFoundError, saying who needs it, where it is not found."""
    try:
        is_prefix = identity.family == "prefix-lm"
        return load_backbone(
            identity.name,
            revision=identity.revision,
            prefix_lm=is_prefix,
            family="causal-lm" if is_prefix else identity.family,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"the prompt was trained on {identity.name!r}, which was not found from this folder: give the backbone, as in"
            f" sp.load(folder, sp.load_backbone(...)), or --backbone on the command line. {error}"
        ) from error


def _with_changed_weights(
    method: Method, backbone: Backbone, changed: Mapping[str, Tensor], folder: str | Path
) -> Backbone:
    """The method's copy of the backbone with the saved weights, which are those that require a gradient."""
    own = method.prepare(backbone, torch.Generator())
    parameters = {plain_name(name): p for name, p in own.model.named_parameters()}
    saved = {plain_name(name): tensor for name, tensor in changed.items()}
    if unknown := sorted(saved.keys() - parameters.keys()):
        raise store.PromptFileError(
            f"{folder}: the backbone that {method.name} prepares has no weight {unknown[0]!r}"
        )
    for name, tensor in saved.items():
        if tensor.shape != parameters[name].shape or not tensor.is_floating_point():
            raise store.PromptFileError(
                f"{folder}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected floating-point numbers of shape"
                f" {tuple(parameters[name].shape)}"
            )
    copy_tensors(saved, into=parameters)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in saved)
    return own


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _from_settings(known: Mapping[str, type], saved: Mapping[str, Any], folder: str | Path, kind: str) -> Any:
    name = saved["name"]
    if name not in known:
        raise store.PromptFileError(
            f"{folder}: unknown {kind} {name!r}; this version knows {', '.join(sorted(known))}"
        )
    settings = {key: value for key, value in saved.items() if key != "name"}
    try:
        return TypeAdapter(known[name]).validate_python(settings)
    except ValidationError as error:
        raise store.PromptFileError(
            f"{folder}: the settings of {kind} {name!r} are not valid: {explain(error)}"
        ) from error
