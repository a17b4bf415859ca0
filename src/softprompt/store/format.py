"""Reading and writing the folder of a saved prompt: prompt.json, prompt.safetensors and a model card, README.md."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from softprompt.files import JSON_LIMIT, named, read_bytes
from softprompt.store.card import model_card
from softprompt.store.errors import PromptFileError, check_finite
from softprompt.store.fingerprint import BackboneIdentity
from softprompt.store.folders import replace_folder, standing
from softprompt.store.places import portable, resolved
from softprompt.store.plain_json import digest, dumps, parse_object
from softprompt.store.saved import FORMAT_VERSION, SavedPrompt
from softprompt.version import __version__

_JSON, _TENSORS, _CARD = "prompt.json", "prompt.safetensors", "README.md"
_PEFT_CONFIG = "adapter_config.json"


def save(folder: str | Path, saved: SavedPrompt, *, overwrite: bool = False) -> None:
    """Write the folder of a prompt, whole or not at all: after an error or a crash it has its earlier content.

    folder     to write
    saved      the prompt
    overwrite  whether a saved prompt in this folder may be replaced

    Raises FileExistsError if the folder is not empty and `overwrite` is False, or holds files that are not a
    saved prompt's; OSError if it cannot be written (no permission, full disk).
    """
    folder = named(folder)
    weights = safetensors.torch.save(dict(saved.tensors), metadata={"format": "pt"})
    record = {
        "format_version": saved.format_version,
        "method": saved.method,
        "task": saved.task,
        "backbone": asdict(saved.backbone) | {"name": portable(saved.backbone.name, folder)},
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

    The result equals what was saved, exactly.
    Raises PromptFileError, which says what was found and what to do, if the folder holds no saved prompt, has a format
    that this version does not know, or is damaged.
    """
    folder = standing(Path(folder))
    content = parse_object(_read(folder, _JSON), str(folder / _JSON), ours=True)
    record = _checked_record(content, str(folder / _JSON))
    tensors = _checked_tensors(_read(folder, _TENSORS), record.tensors, str(folder / _TENSORS))
    check_finite(tensors, str(folder / _TENSORS))
    given = {name: content[name] for name in ("method", "task", "recipe", "metrics", "versions", "notes")}
    try:
        return SavedPrompt(
            **given,
            backbone=BackboneIdentity(
                **record.backbone.model_dump() | {"name": resolved(record.backbone.name, folder)}
            ),
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
    revision: str | None = None


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
        return read_bytes(folder / name, JSON_LIMIT if name == _JSON else None)
    except OSError as error:
        raise PromptFileError(_why_unreadable(folder, name, error)) from error
    except ValueError as error:  # endless or too large
        raise PromptFileError(f"{error}; copy the folder again") from error


def _why_unreadable(folder: Path, name: str, error: OSError) -> str:
    if not folder.exists():
        return f"{folder} does not exist; expected the folder of a saved prompt, with {_JSON} and {_TENSORS}"
    if not folder.is_dir():
        return f"{folder} is a file; pass the folder of a saved prompt, which holds {_JSON} and {_TENSORS}"
    if (folder / _PEFT_CONFIG).exists():
        return (
            f"{folder} is in PEFT's format ({_PEFT_CONFIG}); read it with sp.from_peft(folder, backbone, task); for its tensors"
            " alone read it with softprompt.exchange.read_peft"
        )
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
            f"{name} is not a valid prompt:\n  - " + "\n  - ".join(_problems(error))
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
    except (
        Exception
    ) as error:  # the parser raises many kinds of errors, and each means that the file is damaged
        raise PromptFileError(
            f"{name} is not a readable safetensors file ({error}); copy it again"
        ) from error
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
    return {key: tensors[key] for key in wanted}  # safetensors returns them in no fixed order


def _told(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "no such tensor" if entry is None else f"{entry[1]} {entry[0]}"


def _description(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": _dtype_name(tensor)}


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
