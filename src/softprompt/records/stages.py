"""Finished stages of a study that learns one task after the other, in a folder; it resumes after the last of them.

stages.json holds the settings and a record per stage, state-N.safetensors the tensors after stage N. The JSON is written
last: a stage that it does not name is not finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from softprompt.errors import CheckpointError
from softprompt.files import write_bytes
from softprompt.records.objects import Record, differing, read_object, write_object

FILE = "stages.json"


def write_stage(
    folder: Path, settings: Mapping[str, Any], records: Sequence[Record], state: Mapping[str, Tensor]
) -> None:
    """Write the records of all stages so far and the tensors after the last, in place of the earlier ones."""
    # A copy each: safetensors refuses tensors that share memory.
    content = safetensors.torch.save({name: t.to("cpu", copy=True).contiguous() for name, t in state.items()})
    path = _state_file(folder, len(records))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    digest = hashlib.sha256(content).hexdigest()
    write_object(folder / FILE, {"settings": settings, "stages": list(records), "state": digest})
    for other in folder.glob("state-*.safetensors"):
        if other != path:
            other.unlink()


def read_stages(folder: Path, settings: Mapping[str, Any]) -> tuple[list[Record], dict[str, Tensor] | None]:
    """The records of the finished stages and the tensors after the last; both are empty before the first.

    Raises ValueError for a study with other settings, CheckpointError for damaged tensors.
    """
    found = read_object(folder / FILE)
    if not found:
        return [], None
    if others := differing(settings, found["settings"]):
        raise ValueError(
            f"{folder} holds a study with other settings ({', '.join(others)}): name another folder, or delete this one "
            "to run everything again"
        )
    path = _state_file(folder, len(found["stages"]))
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != found["state"]:
        raise CheckpointError(
            f"{path} is {'damaged' if content else 'missing'}: delete the folder to run everything again"
        )
    return found["stages"], safetensors.torch.load(content)


def _state_file(folder: Path, stages: int) -> Path:
    return folder / f"state-{stages}.safetensors"
