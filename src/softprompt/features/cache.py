"""What a frozen backbone says of each row, computed once for a run, and kept on disk for the runs that follow.

A method says how far up the backbone is frozen (`Method.frozen_layers`); up to there a row gives the same in every
step. Rows are images as they were read: there is no augmentation that would make them others. A batch of other rows may
change the last bits of a row's states, as everywhere; what was computed once stays the same to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.data import by_length
from softprompt.images import POOLINGS, ImagePooling
from softprompt.outputs import EncodedRow, Known, PromptOutput, windows_of
from softprompt.store.identity import identity_of, settings_of

log = logging.getLogger(__name__)

FORMAT = 1
_SUFFIX = ".features.safetensors"


@dataclass(frozen=True)
class FeatureCache:
    """Where features are kept.

    folder  for the runs that follow; None: in memory alone, for this one
    memory  bytes that those of one data set may take; more are not kept at all
    disk    bytes that the folder may take; the files that were used longest ago go first
    """

    folder: Path | None = None
    memory: int = 4 * 2**30
    disk: int = 16 * 2**30

    @staticmethod
    def of(asked: bool | str | Path | FeatureCache) -> FeatureCache | None:
        """True: in memory; a folder: there too; False: None."""
        if isinstance(asked, FeatureCache):
            return asked
        if isinstance(asked, bool):
            return FeatureCache() if asked else None
        return FeatureCache(Path(asked))


@runtime_checkable
class Layered(Protocol):
    """A backbone that says what its rows are in front of a layer."""

    def hidden(self, rows: Sequence[EncodedRow], layer: int) -> list[Tensor]:
        """Of each row (T, d), without any prompt and without gradient."""
        ...


def with_features(
    backbone: Backbone,
    rows: Sequence[EncodedRow],
    layers: int | None,
    cache: FeatureCache,
    *,
    batch_size: int = 16,
) -> list[EncodedRow]:
    """The same rows, each with what it is behind the first `layers` layers (None: what a head reads) as its `known`.

    Rows as they are where nothing is frozen, the backbone cannot be entered at a layer, or there is no room.
    """
    if not rows or layers == 0 or (layers is not None and not isinstance(backbone, Layered)):
        return list(rows)
    parts = [part for row in rows for part in windows_of(row)]
    path = None if cache.folder is None else cache.folder / f"{_key(backbone, parts, layers)}{_SUFFIX}"
    states = None if path is None else _read(path, len(parts))
    if states is None:
        states = _computed(backbone, parts, layers, cache.memory, batch_size)
        if states is None:
            return list(rows)
        if path is not None:
            _write(path, states, cache.disk)
    known = (replace(part, known=Known(layers, state)) for part, state in zip(parts, states, strict=True))
    return [replace(next(known), windows=tuple(islice(known, len(row.windows)))) for row in rows]


def recall(
    features: RowFeatures, rows: Sequence[EncodedRow], pooling: ImagePooling, cache: FeatureCache
) -> None:
    """Have at hand what a prompt that is a function of its rows is given of these, from the folder where it is there.

    It is what a probe that reads the same has, and one file serves both.
    """
    read = (POOLINGS.index(pooling),)
    queries = [EncodedRow((), read=read, media=row.media) for row in rows if row.media is not None]
    for row in with_features(features.backbone, queries, None, cache):
        if row.known is not None and row.media is not None:
            state = row.known.states[0].to(features.backbone.device)  # (1, d) -> (d,)
            features.remember(row.media, pooling, state.to(torch.promote_types(state.dtype, torch.float32)))


@torch.no_grad()
def _computed(
    backbone: Backbone, rows: Sequence[EncodedRow], layers: int | None, memory: int, batch_size: int
) -> list[Tensor] | None:
    """Of each row its states, on the CPU; None where they would take more memory than they may."""
    found: dict[int, Tensor] = {}
    for batch in by_length([len(row.context) for row in rows], batch_size):
        mine = [rows[i] for i in batch]
        if layers is None:
            parts = backbone.states(mine, PromptOutput()).split([len(row.read) for row in mine])
        else:
            assert isinstance(backbone, Layered)
            parts = tuple(backbone.hidden(mine, layers))
        # The longest rows come first: the rest is not larger.
        size = len(rows) * sum(part.numel() * part.element_size() for part in parts) / len(batch)
        if not found and size > memory:
            log.warning(
                "features are not kept: those of %d rows would take about %.1f GiB, and %.1f GiB may be taken; raise"
                " FeatureCache(memory=...)",
                len(rows),
                size / 2**30,
                memory / 2**30,
            )
            return None
        # Copies: a view would keep the whole batch.
        found |= {i: part.to("cpu", copy=True).contiguous() for i, part in zip(batch, parts, strict=True)}
    return [found[i] for i in range(len(rows))]


def _key(backbone: Backbone, rows: Sequence[EncodedRow], layers: int | None) -> str:
    """A digest of all that features depend on: the model's weights, how images are prepared, the rows, the precision.

    Every frozen weight, not the table's fingerprint: a fine-tuned model with its origin's embeddings is another one.
    """
    about = settings_of(identity_of(backbone))
    about.pop("name")
    digest = hashlib.sha256(repr((FORMAT, sorted(about.items()), layers, str(backbone.dtype))).encode())
    for name, tensor in [*backbone.model.named_parameters(), *backbone.model.named_buffers()]:
        if not tensor.requires_grad:
            digest.update(name.encode())
            _add(digest, tensor)
    for row in rows:
        digest.update(f"{row.read} {len(row.context)}".encode())
        digest.update(array("q", row.context).tobytes())
        if row.media is not None:
            _add(digest, row.media)
    return digest.hexdigest()[:40]


def _add(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)


def _read(path: Path, count: int) -> list[Tensor] | None:
    """The states in a file; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            states, lengths = file.get_tensor("states"), file.get_tensor("lengths")
    except (SafetensorError, OSError) as error:
        log.warning("%s is damaged (%s): its features are computed again", path, error)
        return None
    if metadata.get("sha256") != _checksum(states, lengths) or len(lengths) != count:
        log.warning("%s is damaged (its checksum is wrong): its features are computed again", path)
        return None
    path.touch()  # when it was used last
    return list(states.split(lengths.tolist()))


def _checksum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        _add(digest, tensor)
    return digest.hexdigest()


def _write(path: Path, states: Sequence[Tensor], room: int) -> None:
    """The file whole or not at all; a disk that cannot take it costs the next run time, and this one nothing."""
    tensors = {
        "states": torch.cat(list(states)),  # (sum of T, d)
        "lengths": torch.tensor([len(state) for state in states]),
    }
    if tensors["states"].nbytes > room:
        log.warning(
            "features are not written: they take %d bytes, and %d may be taken",
            tensors["states"].nbytes,
            room,
        )
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            tensors, temporary, {"sha256": _checksum(tensors["states"], tensors["lengths"])}
        )
        temporary.replace(path)
        _make_room(path, room)
    except (OSError, SafetensorError) as error:
        log.warning("features could not be written to %s: %s", path.parent, error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _make_room(kept: Path, room: int) -> None:
    """Remove the files that were used longest ago until the folder takes no more than it may; so do parts of killed runs."""
    files = [
        (path.stat().st_mtime_ns, path.stat().st_size, path) for path in kept.parent.glob(f"*{_SUFFIX}*")
    ]
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total > room and path != kept:
            path.unlink(missing_ok=True)
            total -= size
