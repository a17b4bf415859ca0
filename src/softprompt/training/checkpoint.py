"""Checkpoints: the state of a training run in one safetensors file, with plain JSON in its header.

The file appears whole or not at all (`softprompt.files`).
A checksum over everything is in the header, so damage is an error and never a slightly different run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from softprompt.errors import CheckpointError
from softprompt.files import replacing
from softprompt.later import without_later
from softprompt.outputs import EncodedRow
from softprompt.training.progress import Record
from softprompt.training.recipe import Recipe
from softprompt.version import __version__

FILE = "checkpoint.safetensors"
FORMAT = 2  # 1 said less about the run

# Settings that change nothing in the tensors: they may differ when a run is resumed.
_FREE_SETTINGS = {"trackers", "checkpoint_every", "gradient_checkpointing"}

_COLUMNS = ("step", "loss", "lr", "gradient_norm", "tokens", "seconds")


@dataclass
class RunState:
    """Everything that changes during a run, except the parameters and the optimizer.

    No state of a random generator is needed: each step is seeded from the recipe's seed and the number of the step.

    step       optimizer steps done
    evaluated  the step after which the last evaluation was made; 0: none yet
    stale      evaluations since the best one
    best       trained tensors at the best evaluation, by name; empty before the first
    tallies    counts that grew while rows were scored, after the last whole step
    """

    step: int = 0
    evaluated: int = 0
    stale: int = 0
    best_step: int | None = None
    best_metric: float | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    tallies: dict[str, Tensor] = field(default_factory=dict)


def run_identity(
    recipe: Recipe,
    groups: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, nn.Parameter],
    rows: Sequence[EncodedRow],
    main_metric: str | None,
    start: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
    content: str | None = None,
) -> dict[str, Any]:
    """The facts that a run must share with the checkpoint that it resumes from, as JSON values.

    recipe       settings that change no tensor are left out
    groups       optimizer groups over the parameters
    rows         the training rows
    main_metric  which metric decides what is best
    start        the initial values, where they are not those that the recipe's seed gives
    facts        what else the tensors depend on, by name
    content      sha256 of the rows before they were encoded, which stands for that of the encoded rows; None: there are few
    """
    names = {parameter: name for name, parameter in parameters.items()}
    begun = None
    if start is not None:
        begun = _checksum("", {name: tensor.detach().cpu().contiguous() for name, tensor in start.items()})
    settings = without_later(recipe, asdict(recipe))
    return {
        **(facts or {}),
        "start": begun,
        "recipe": {name: value for name, value in settings.items() if name not in _FREE_SETTINGS},
        "groups": [
            {**group, "params": [names[parameter] for parameter in group["params"]]} for group in groups
        ],
        "rows": rows_identity(rows) if content is None else {"count": len(rows), "content": content},
        "main_metric": main_metric,
    }


def rows_identity(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """The number of rows, and the sha256 of everything that a model reads in them and is asked about them."""
    digest = hashlib.sha256()
    targets: Any = None  # rows of images may all have the very same thousand texts
    lengths, content = "", b""
    for row in rows:
        if row.targets is not targets:
            targets = row.targets
            lengths = str([len(target) for target in targets])
            content = b"".join(array("q", target).tobytes() for target in targets)
        digest.update(f"{row.gold} {row.prompt} {lengths}".encode())
        if row.read:
            digest.update(f"{row.read} {row.pooled} {row.answer}".encode())
        digest.update(array("q", row.context).tobytes())
        digest.update(content)
        if row.media is not None:
            digest.update(row.media.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {"count": len(rows), "sha256": digest.hexdigest()}


def save_checkpoint(
    folder: Path,
    state: RunState,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> Path:
    """Write a checkpoint to `folder/checkpoint.safetensors` and return that path.

    folder      is made if it does not exist
    state       where the run stands
    parameters  all trained tensors, by name
    optimizer   over these parameters
    identity    from `run_identity`
    Raises CheckpointError, naming the folder, if it cannot be written; an older checkpoint there is left unchanged.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
    tensors = {f"parameters/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    tensors |= {f"tallies/{name}": tally for name, tally in state.tallies.items()}
    for parameter, values in optimizer.state.items():
        tensors |= {f"optimizer/{names[parameter]}/{key}": value for key, value in values.items()}
    # Numbers of every step as a tensor: as JSON they would outgrow what a safetensors header may hold.
    tensors["history"] = torch.tensor(
        [[getattr(record, column) for column in _COLUMNS] for record in state.history], dtype=torch.float64
    ).reshape(-1, len(_COLUMNS))
    if any(record.penalty for record in state.history):
        tensors["penalties"] = torch.tensor([record.penalty for record in state.history], dtype=torch.float64)
    facts = {
        "format": FORMAT,
        "softprompt": __version__,
        "step": state.step,
        "evaluated": state.evaluated,
        "stale": state.stale,
        "best_step": state.best_step,
        "best_metric": state.best_metric,
        "metrics": {record.step: record.metrics for record in state.history if record.metrics},
        "identity": identity,
    }
    # A copy each: safetensors refuses tensors that share memory, as tied parameters do.
    tensors = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    content = safetensors.torch.save(tensors, {"facts": text, "sha256": _checksum(text, tensors)})
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        before = "the earlier checkpoint is unchanged" if path.exists() else "there was none before"
        raise CheckpointError(
            f"cannot write a checkpoint to {folder}: {error.strerror or error}; {before}. "
            "Free some space or give another folder, then start again to resume"
        ) from error
    return path


def load_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    rows: Sequence[EncodedRow] = (),
) -> RunState | None:
    """Resume: copy the checkpoint in `folder` into parameters and optimizer, and return its state.

    parameters, optimizer  of the run that is resumed, overwritten in place
    identity               of that run, from `run_identity`
    rows                   that are trained on
    Returns None where there is no checkpoint.
    Raises CheckpointError if the file is damaged or of another run (another recipe, other rows, other
    parameters, another method, task or backbone), and then leaves parameters and optimizer unchanged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    tensors, facts = _read(path)
    if "content" in identity["rows"] and "content" not in facts["identity"]["rows"]:
        # Earlier versions encoded all rows first, however many.
        identity = {**identity, "rows": rows_identity(rows)}
    differences = _differences(facts["identity"], json.loads(json.dumps(identity)))
    differences += _shape_differences(tensors, parameters)
    if differences:
        raise CheckpointError(
            f"{path} is of another run: {'; '.join(differences)}. "
            "Give another folder, or resume=False to start anew and replace it"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameters/{name}"])
    _load_optimizer(optimizer, tensors, parameters)
    metrics = facts["metrics"]
    penalties = tensors.get("penalties", torch.zeros(len(tensors["history"]))).tolist()
    return RunState(
        step=facts["step"],
        evaluated=facts["evaluated"],
        stale=facts["stale"],
        best_step=facts["best_step"],
        best_metric=facts["best_metric"],
        best={
            name: tensors[f"best/{name}"].to(parameter.device)
            for name, parameter in parameters.items()
            if f"best/{name}" in tensors
        },
        history=[
            Record(int(step), loss, lr, norm, int(tokens), seconds, metrics.get(str(int(step)), {}), penalty)
            for (step, loss, lr, norm, tokens, seconds), penalty in zip(
                tensors["history"].tolist(), penalties, strict=True
            )
        ],
        tallies={
            name.removeprefix("tallies/"): tensor
            for name, tensor in tensors.items()
            if name.startswith("tallies/")
        },
    )


def begun_with(folder: Path) -> dict[str, Any]:
    """What a folder's checkpoint says of its run, see `run_identity`; empty if nothing can be read."""
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        return dict(facts["identity"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return {}  # `load_checkpoint` will say what is wrong


def discard_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of an earlier run, so that one that starts anew is never resumed from it."""
    with contextlib.suppress(NotADirectoryError):  # the first save explains it
        (folder / FILE).unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    advice = "Delete it or give another folder, and start anew"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}). {advice}") from error
    text = metadata.get("facts", "")
    if metadata.get("sha256") != _checksum(text, tensors):
        raise CheckpointError(f"{path} is damaged or no checkpoint: its checksum is wrong. {advice}")
    facts = json.loads(text)
    if facts["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {facts['format']} (softprompt {facts['softprompt']}); this is softprompt "
            f"{__version__}, which reads format {FORMAT}. Finish the run with the release that began it, or "
            "give another folder"
        )
    return tensors, facts


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _differences(found: Any, expected: Any, name: str = "") -> list[str]:
    """The differences of two JSON values, each as a sentence with the name and both values."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(found.keys() | expected.keys())
        return [
            line
            for key in keys
            for line in _differences(found.get(key), expected.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == expected else [f"{name} is {found} in it and {expected} now"]


def _shape_differences(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    found = {
        name.removeprefix("parameters/"): f"{tuple(tensor.shape)} {tensor.dtype}"
        for name, tensor in tensors.items()
        if name.startswith("parameters/")
    }
    expected = {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in parameters.items()}
    return _differences({"parameters": found}, {"parameters": expected})


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {parameter: i for i, parameter in enumerate(every)}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith("optimizer/"):
            name, _, key = full_name.removeprefix("optimizer/").rpartition("/")
            state.setdefault(index[parameters[name]], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
