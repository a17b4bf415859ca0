"""The content of a saved prompt, and whether it belongs to a backbone."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from softprompt.store.fingerprint import BackboneIdentity
from softprompt.store.plain_json import plain
from softprompt.version import __version__

FORMAT_VERSION = 1


def library_versions() -> dict[str, str]:
    """The versions that a result may depend on, by name."""
    return {
        "softprompt": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


class WrongBackboneError(ValueError):
    """The prompt was trained on another backbone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedPrompt:
    """The content of a saved prompt. Everything but the tensors is plain JSON, copied from what is given.

    method          {"name": ..., and its settings}
    task            {"name": ..., and its settings}: template, labels and so on
    backbone        identity of the backbone that the prompt was trained on
    tensors         a module's `state_dict()`, copied to the CPU; floating-point tensors are float32
    recipe          how the prompt was trained: data, optimizer, steps, seed
    metrics         results by name, possibly nested (by data split); undefined numbers (nan) become None
    versions        of the libraries that it was made with
    notes           anything else to save
    format_version  of the file that it was read from, or will be written as

    Raises TypeError or ValueError for values that cannot be saved and read back.
    """

    method: Mapping[str, Any]
    task: Mapping[str, Any]
    backbone: BackboneIdentity
    tensors: Mapping[str, Tensor]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=library_versions)
    notes: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("method", "task", "recipe", "metrics", "versions", "notes"):
            object.__setattr__(self, name, plain(getattr(self, name), name))
        for name in ("method", "task"):
            if not isinstance(getattr(self, name).get("name"), str):
                raise ValueError(f"{name} has no name: give {{'name': ..., and its settings}}")
        object.__setattr__(self, "tensors", {key: _kept(key, value) for key, value in self.tensors.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SavedPrompt):
            return NotImplemented
        rest = [entry.name for entry in fields(self) if entry.name != "tensors"]
        return (
            all(getattr(self, name) == getattr(other, name) for name in rest)
            and self.tensors.keys() == other.tensors.keys()
            and all(_same(value, other.tensors[key]) for key, value in self.tensors.items())
        )

    __hash__ = None  # type: ignore[assignment]  # it holds dictionaries

    @property
    def parameter_count(self) -> int:
        """Number of floating-point numbers in `tensors`."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.is_floating_point())


def check_backbone(saved: SavedPrompt, identity: BackboneIdentity) -> None:
    """Raise WrongBackboneError unless the prompt was trained on this backbone. Names may differ."""
    trained, found = saved.backbone, identity
    differences = []
    if trained.family != found.family:
        differences.append(f"family {found.family!r}, trained on {trained.family!r}")
    if trained.width != found.width:
        differences.append(f"width {found.width}, trained on {trained.width}")
    if trained.vocabulary != found.vocabulary:
        differences.append(f"{found.vocabulary} rows in the embedding table, trained on {trained.vocabulary}")
    elif trained.width == found.width and trained.table_digest != found.table_digest:
        differences.append(
            f"other weights in the embedding table (digest {found.table_digest[:12]}, trained on "
            f"{trained.table_digest[:12]})"
        )
    if trained.config_digest != found.config_digest:
        differences.append(
            f"another config (digest {found.config_digest[:12]}, trained on {trained.config_digest[:12]})"
        )
    both = trained.tokenizer_digest is not None and found.tokenizer_digest is not None
    if both and trained.tokenizer_digest != found.tokenizer_digest:
        differences.append("another tokenizer vocabulary, or images prepared in another way")
    if differences:
        raise WrongBackboneError(
            f"the prompt was trained on {trained.name!r}, and {found.name!r} differs from it:\n  - "
            + "\n  - ".join(differences)
            + f"\nLoad {trained.name!r} instead, or train a new prompt on {found.name!r}."
            + _hint(saved, identity)
        )


def _hint(saved: SavedPrompt, found: BackboneIdentity) -> str:
    trained = saved.backbone
    if trained.table_digest == found.table_digest:
        transformers = saved.versions.get("transformers", "an unknown version")
        return (
            " The embedding tables are equal: this may be a fine-tuned or edited copy, or one model whose "
            f"config was read differently by transformers {transformers}, with which the prompt was trained. "
            "If you know that it is the same model, dataclasses.replace(saved, backbone=identity) says so."
        )
    if trained.width == found.width and trained.vocabulary != found.vocabulary:
        return " Was the vocabulary resized? A prompt must be loaded before or after it, as it was trained."
    return ""


def _kept(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensors[{name!r}] is a {type(tensor).__name__}; give a module's state_dict()")
    if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
        raise ValueError(
            f"tensors[{name!r}] is {str(tensor.dtype).removeprefix('torch.')}; prompts are saved in float32: call .float()"
        )
    # Each tensor gets memory of its own: safetensors refuses shared memory, and the original may be trained further.
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
