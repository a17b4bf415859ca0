"""Features: the hidden states of each row in the frozen layers, computed once for a run and cached on disk for later runs.

A method says up to which layer the backbone is frozen (`Method.frozen_layers`): up to there a row has the same states in
every step. Images are never augmented, so they stay the same too. The last bits of a row's states may depend on the
rows computed beside it; once cached they are bit-identical in every step.
"""

from __future__ import annotations

import hashlib
import logging
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
from softprompt.files import replacing
from softprompt.images import POOLINGS, ImagePooling
from softprompt.outputs import EncodedRow, Known, PromptOutput, windows_of
from softprompt.store.identity import identity_of, settings_of

log = logging.getLogger(__name__)

FORMAT = 1
_SUFFIX = ".features.safetensors"


@dataclass(frozen=True)
class FeatureCache:
    """Where features are cached.

    folder  holds them for later runs; None: they are in memory only, for this run
    memory  bytes that the features of one data set may take; a larger data set is not cached at all
    disk    bytes that the folder may take; the files that were used longest ago are evicted first
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
    """A backbone that gives the hidden states in front of a layer."""

    def hidden(self, rows: Sequence[EncodedRow], layer: int) -> list[Tensor]:
        """The states of each row, (T, d), without any prompt and without gradient."""
        ...


def with_features(
    backbone: Backbone,
    rows: Sequence[EncodedRow],
    layers: int | None,
    cache: FeatureCache,
    *,
    batch_size: int = 16,
) -> list[EncodedRow]:
    """The same rows, each with its states as `known`.

    rows        encoded rows, long ones with their windows
    layers      the states are those behind so many layers; None: those that a head reads
    cache       where the states are looked up and cached
    batch_size  rows that are computed at once
    Returns the rows unchanged where no layer is frozen, the backbone cannot start at a layer, or memory does not suffice.
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
    """Preload the features of these rows from the cache folder, if present; else compute them.

    features  of a prompt that is a function of its rows; filled
    rows      rows without media are skipped
    pooling   which state of a row the prompt reads
    cache     a probe that reads the same state shares its files
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
    """The states of each row, on the CPU; None where they would take more than `memory` bytes."""
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
                "features are not cached: those of %d rows would take about %.1f GiB, the limit is %.1f GiB; raise"
                " FeatureCache(memory=...)",
                len(rows),
                size / 2**30,
                memory / 2**30,
            )
            return None
        # A copy: a view would hold the memory of the whole batch.
        found |= {i: part.to("cpu", copy=True).contiguous() for i, part in zip(batch, parts, strict=True)}
    return [found[i] for i in range(len(rows))]


def _key(backbone: Backbone, rows: Sequence[EncodedRow], layers: int | None) -> str:
    """A digest of everything that features depend on: weights, preparation of images, rows, precision.

    It reads every frozen weight: the fingerprint of the embedding table does not tell a fine-tuned model from its origin.
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
        for picture in row.pictures:
            digest.update(picture.digest)
    return digest.hexdigest()[:40]


def _add(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)


def _read(path: Path, count: int) -> list[Tensor] | None:
    """The states in a file; None where there is no file or it is damaged."""
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
    path.touch()  # the files that were used longest ago are evicted first
    return list(states.split(lengths.tolist()))


def _checksum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        _add(digest, tensor)
    return digest.hexdigest()


def _write(path: Path, states: Sequence[Tensor], room: int) -> None:
    """Write the file completely or not at all. An error is only logged: the next run computes the features again."""
    tensors = {
        "states": torch.cat(list(states)),  # (sum of T, d)
        "lengths": torch.tensor([len(state) for state in states]),
    }
    if tensors["states"].nbytes > room:
        log.warning(
            "features are not written: they take %d bytes, the limit is %d",
            tensors["states"].nbytes,
            room,
        )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            safetensors.torch.save_file(
                tensors, file.name, {"sha256": _checksum(tensors["states"], tensors["lengths"])}
            )
        _evict(path, room)
    except (OSError, SafetensorError) as error:
        log.warning("features could not be written to %s: %s", path.parent, error)


def _evict(written: Path, room: int) -> None:
    """Remove the files that were used longest ago, parts of killed runs among them, until `room` bytes suffice."""
    files = [
        (path.stat().st_mtime_ns, path.stat().st_size, path) for path in written.parent.glob(f"*{_SUFFIX}*")
    ]
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total > room and path != written:
            path.unlink(missing_ok=True)
            total -= size
