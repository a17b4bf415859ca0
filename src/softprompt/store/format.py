"""The folder of a saved prompt: prompt.json, prompt.safetensors and a model card, README.md."""

from __future__ import annotations

import difflib
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from softprompt.store._folders import replace_folder, standing
from softprompt.store._json import digest, dumps, parse_object, plain
from softprompt.store.card import model_card
from softprompt.store.errors import PromptFileError
from softprompt.store.fingerprint import BackboneIdentity
from softprompt.version import __version__

FORMAT_VERSION = 1

_JSON, _TENSORS, _CARD = "prompt.json", "prompt.safetensors", "README.md"
_PEFT_CONFIG = "adapter_config.json"


def library_versions() -> dict[str, str]:
    """Versions that a result may depend on, by name."""
    return {
        "softprompt": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedPrompt:
    """What is kept of a tuned prompt. Everything but the tensors is plain JSON, copied from what is given.

    method          {"name": ..., and its settings}
    task            {"name": ..., and its settings}: template, labels ...
    backbone        the backbone that the prompt was trained on
    tensors         a module's `state_dict()`, copied to the CPU; floating-point tensors are float32
    recipe          how it was trained: data, optimizer, steps, seed
    metrics         results by name; nested by data split, say; undefined numbers (nan) become None
    versions        of the libraries it was made with
    notes           whatever else is worth keeping
    format_version  of the file it came from, or will be written as

    Raises TypeError or ValueError for what cannot be saved and read back.
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
        """Floating-point numbers in `tensors`."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.is_floating_point())


def save(folder: str | Path, saved: SavedPrompt, *, overwrite: bool = False) -> None:
    """Write the prompt's folder, whole or not at all: after an error or a crash the earlier content is there.

    Raises FileExistsError if the folder is not empty and `overwrite` is False, or holds files that are not a
    saved prompt's; OSError if it cannot be written (no permission, full disk).
    """
    folder = Path(folder)
    weights = safetensors.torch.save(dict(saved.tensors), metadata={"format": "pt"})
    record = {
        "format_version": saved.format_version,
        "method": saved.method,
        "task": saved.task,
        "backbone": asdict(saved.backbone),
        "recipe": saved.recipe,
        "metrics": saved.metrics,
        "versions": saved.versions,
        "notes": saved.notes,
        "tensors": {
            "sha256": hashlib.sha256(weights).hexdigest(),
            "entries": {key: _description(tensor) for key, tensor in saved.tensors.items()},
        },
    }
    record["digest"] = digest(record, ordered=True)
    card = model_card(saved, folder.resolve().name)
    replace_folder(
        folder, {_JSON: dumps(record), _TENSORS: weights, _CARD: card.encode()}, overwrite=overwrite
    )


def load(folder: str | Path) -> SavedPrompt:
    """Read a folder that `save` wrote.

    Raises PromptFileError, which says what was found and what to do, if the folder is none of ours, is of a
    format that this version does not know, or is damaged. What comes back is exactly what was saved.
    """
    folder = standing(Path(folder))
    content = parse_object(_read(folder, _JSON), str(folder / _JSON))
    record = _checked_record(content, str(folder / _JSON))
    tensors = _checked_tensors(_read(folder, _TENSORS), record.tensors, str(folder / _TENSORS))
    given = {name: content[name] for name in ("method", "task", "recipe", "metrics", "versions", "notes")}
    try:
        return SavedPrompt(
            **given,
            backbone=BackboneIdentity(**record.backbone.model_dump()),
            tensors=tensors,
            format_version=record.format_version,
        )
    except (TypeError, ValueError) as error:
        raise PromptFileError(f"{folder / _JSON}: {error}") from error


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Entry(_Strict):
    shape: list[Annotated[int, Field(ge=0)]]
    dtype: str


class _Tensors(_Strict):
    sha256: str
    entries: dict[str, _Entry]


class _Backbone(_Strict):
    name: str
    family: str
    width: int
    vocabulary: int
    config_digest: str
    table_digest: str
    tokenizer_digest: str | None


class _Record(_Strict):
    format_version: int
    method: dict[str, Any]
    task: dict[str, Any]
    backbone: _Backbone
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, Any]
    notes: dict[str, Any]
    tensors: _Tensors
    digest: str


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise PromptFileError(_why_unreadable(folder, name, error)) from error


def _why_unreadable(folder: Path, name: str, error: OSError) -> str:
    if not folder.exists():
        return f"{folder} does not exist; expected the folder of a saved prompt, with {_JSON} and {_TENSORS}"
    if not folder.is_dir():
        return f"{folder} is a file; pass the folder of a saved prompt, which holds {_JSON} and {_TENSORS}"
    if (folder / _PEFT_CONFIG).exists():
        return f"{folder} is in PEFT's format ({_PEFT_CONFIG}); read it with softprompt.store.read_peft"
    if (folder / name).exists():
        return f"{folder / name} cannot be read: {error.strerror}"
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    return (
        f"{folder} has no {name}; a saved prompt holds {_JSON} and {_TENSORS}, found {found}: copy it again"
    )


def _checked_record(content: dict[str, Any], name: str) -> _Record:
    found = content.get("format_version")
    if type(found) is int and found != FORMAT_VERSION:
        raise PromptFileError(
            f"{name} has format version {found}; this softprompt ({__version__}) reads version "
            f"{FORMAT_VERSION}: "
            + ("upgrade softprompt" if found > FORMAT_VERSION else "the file is damaged")
        )
    try:
        record = _Record.model_validate(content)
    except ValidationError as error:
        raise PromptFileError(
            f"{name} is no valid prompt:\n  - " + "\n  - ".join(_problems(error))
        ) from error
    rest = {key: value for key, value in content.items() if key != "digest"}
    try:
        actual = digest(rest, ordered=True)
    except RecursionError as error:
        raise PromptFileError(f"{name} is nested too deeply: it is damaged, copy it again") from error
    if record.digest != actual:
        raise PromptFileError(
            f"{name} was changed after it was saved: its digest says {record.digest[:12]}, its content "
            f"gives {actual[:12]}. Copy it again. To change a prompt, load it, use dataclasses.replace, save"
        )
    return record


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_url=False)[:5]:
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            problems.append(f"the field {place!r} is missing")
        elif item["type"] == "extra_forbidden":
            known = _Backbone if place.startswith("backbone.") else _Record
            near = difflib.get_close_matches(str(item["loc"][-1]), known.model_fields, n=1)
            problems.append(f"unknown key {place!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        else:
            problems.append(f"{place!r}: {item['msg']}, found {item['input']!r:.80}")
    return problems


def _checked_tensors(content: bytes, expected: _Tensors, name: str) -> dict[str, Tensor]:
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected.sha256:
        raise PromptFileError(
            f"{name} is damaged, or belongs to another prompt: its sha256 is {sha256[:12]}, {_JSON} expects "
            f"{expected.sha256[:12]} ({len(content)} bytes found); copy both files again"
        )
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # the parser raises many kinds, and with each of them the file is at fault
        raise PromptFileError(f"{name} is no readable safetensors file ({error}); copy it again") from error
    wanted = {key: (tuple(entry.shape), entry.dtype) for key, entry in expected.entries.items()}
    found = {key: (tuple(tensor.shape), _dtype_name(tensor)) for key, tensor in tensors.items()}
    if wanted != found:
        differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise PromptFileError(
            f"{name} does not hold the tensors that {_JSON} names:"
            + "".join(
                f"\n  - {key}: found {_told(found.get(key))}, expected {_told(wanted.get(key))}"
                for key in differing[:5]
            )
            + "\nThe two files are of different prompts; copy both again"
        )
    return {key: tensors[key] for key in wanted}  # safetensors gives them in no fixed order


def _told(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "no such tensor" if entry is None else f"{entry[1]} {entry[0]}"


def _description(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": _dtype_name(tensor)}


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kept(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensors[{name!r}] is a {type(tensor).__name__}; give a module's state_dict()")
    if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
        raise ValueError(
            f"tensors[{name!r}] is {_dtype_name(tensor)}; prompts are saved in float32: call .float()"
        )
    # Each its own memory: safetensors refuses tensors that share it, and training may go on in the original.
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
