"""Features of rows from the frozen backbone, for methods whose prompt is a function of the row. B rows, d width."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.backbones.unchanged import PerTensor, weights_mark
from softprompt.images import POOLINGS, ImagePooling
from softprompt.outputs import EncodedRow, PromptOutput

_Key = tuple[bytes, ImagePooling, Hashable]


class RowFeatures:
    """A cache of the backbone's state of each row without any prompt. It is computed once for the content of a row's media.

    backbone  the frozen model
    keep      how many media the cache has room for (d numbers each), so that several runs over the same images share
              it; 0: nothing is cached and every call computes the states again, bit-identical

    Changes to media or weights that torch does not see (through NumPy) go unnoticed.
    """

    def __init__(self, backbone: Backbone, keep: int = 65_536) -> None:
        self.backbone = backbone
        self.keep = keep
        self._kept: dict[_Key, Tensor] = {}
        self._digests: PerTensor[bytes] = PerTensor()  # of media that are alive

    def __len__(self) -> int:
        """Number of media in the cache."""
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, rows: Sequence[EncodedRow], pooling: ImagePooling) -> Tensor:
        """(B, d), float32 or wider, without gradient. Raises ValueError for a row that has no media."""
        media = [_media(row) for row in rows]
        if not self.keep:
            return torch.stack(self._computed(media, pooling))
        weights = self._weights()
        keys = [(self._digest(one), pooling, weights) for one in media]
        missing = {key: one for key, one in zip(keys, media, strict=True) if key not in self._kept}
        found = dict(zip(missing, self._computed(list(missing.values()), pooling), strict=True))
        # Nothing is evicted: with more rows than room, evicting the oldest would lose each one before it is needed again.
        for key in list(found)[: max(0, self.keep - len(self._kept))]:
            self._kept[key] = found[key]
        return torch.stack([found[key] if key in found else self._kept[key] for key in keys])

    def remember(self, media: Tensor, pooling: ImagePooling, feature: Tensor) -> None:
        """Put a state (d,), float32 or wider, that was computed elsewhere into the cache, if there is room.

        media    of the row
        pooling  that the state was read with
        feature  the state
        """
        if len(self._kept) < self.keep:
            self._kept[self._digest(media), pooling, self._weights()] = feature

    def _digest(self, media: Tensor) -> bytes:
        """Digest of a tensor's content, computed once while the tensor is alive and unchanged."""
        known = self._digests.get(media)
        if known is not None:
            return known
        content = media.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        about = f"{media.dtype} {tuple(media.shape)}".encode()
        digest = hashlib.blake2b(
            content.numpy().data, key=hashlib.blake2b(about, digest_size=32).digest(), digest_size=16
        ).digest()
        self._digests.put(media, digest)
        return digest

    def _weights(self) -> Hashable:
        return weights_mark(self.backbone.model.parameters())

    def _computed(self, media: Sequence[Tensor], pooling: ImagePooling) -> list[Tensor]:
        # All batches have one shape. Otherwise a row's last bits would depend on the batch that it was in, and a resumed
        # run, which batches rows differently, would not be bit-identical.
        size = 32 if self.backbone.device.type == "cuda" else 1
        groups: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for i, one in enumerate(media):
            groups.setdefault((one.shape, one.dtype), []).append(i)
        found: dict[int, Tensor] = {}
        for members in groups.values():
            for start in range(0, len(members), size):
                part = members[start : start + size]
                filled = part + part[-1:] * (size - len(part))
                rows = [EncodedRow((), read=(POOLINGS.index(pooling),), media=media[i]) for i in filled]
                states = self.backbone.states(rows, PromptOutput())  # (size, d)
                states = states.to(torch.promote_types(states.dtype, torch.float32))
                # Copies, because a view would keep the whole batch alive.
                found |= {i: state.clone() for i, state in zip(part, states, strict=False)}
        return [found[i] for i in range(len(media))]


def _media(row: EncodedRow) -> Tensor:
    if row.media is None:
        raise ValueError(
            "the prompt is a function of the row's image, and a row has none: its `media` is None"
        )
    return row.media
