"""What the frozen backbone itself says of each row, for methods whose prompt is a function of it. B rows, d width."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.images import POOLINGS, ImagePooling
from softprompt.outputs import EncodedRow, PromptOutput

_Key = tuple[int, ImagePooling]


class RowFeatures:
    """The backbone's state of each row without any prompt, computed once for a row's media.

    keep: for so many media what was found is kept while they are there and unchanged (d numbers each); 0: none, so that
    every call computes it again, to the same bits. Changes that torch does not see (through NumPy) are not noticed.
    """

    def __init__(self, backbone: Backbone, keep: int = 65_536) -> None:
        self.backbone = backbone
        self.keep = keep
        self._kept: dict[_Key, tuple[ref[Tensor], int, Tensor]] = {}

    def __len__(self) -> int:
        """For how many media something is kept."""
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, rows: Sequence[EncodedRow], pooling: ImagePooling) -> Tensor:
        """(B, d), float32 or wider, without gradient. Raises ValueError for a row that has no media."""
        media = [_media(row) for row in rows]
        found = [self._known(one, pooling) for one in media]
        missing = [b for b, feature in enumerate(found) if feature is None]
        for b, feature in zip(missing, self._computed([media[b] for b in missing], pooling), strict=True):
            found[b] = feature
            self._remember(media[b], pooling, feature)
        return torch.stack([feature for feature in found if feature is not None])

    def _known(self, media: Tensor, pooling: ImagePooling) -> Tensor | None:
        entry = self._kept.get((id(media), pooling))
        if entry is None or entry[0]() is not media or entry[1] != media._version:
            return None
        return entry[2]

    def _remember(self, media: Tensor, pooling: ImagePooling, feature: Tensor) -> None:
        key = (id(media), pooling)
        # What is kept stays until its media go: with more rows than room, dropping the oldest would lose every one of
        # them before it is asked for again. Tensors of inference mode do not say when they change.
        if media.is_inference() or (len(self._kept) >= self.keep and key not in self._kept):
            return

        def forget(gone: ref[Tensor]) -> None:
            entry = self._kept.get(key)
            if entry is not None and entry[0] is gone:
                del self._kept[key]

        self._kept[key] = (ref(media, forget), media._version, feature)

    def _computed(self, media: Sequence[Tensor], pooling: ImagePooling) -> list[Tensor]:
        # Batches of one shape, whatever they hold: in others a row's last bits would depend on the rows beside it, and a
        # resumed run, which meets them in other company, would not end with the same bits.
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
                # Copies: a view would keep the whole batch.
                found |= {i: state.clone() for i, state in zip(part, states, strict=False)}
        return [found[i] for i in range(len(media))]


def _media(row: EncodedRow) -> Tensor:
    if row.media is None:
        raise ValueError(
            "the prompt is a function of the row's image, and a row has none: its `media` is None"
        )
    return row.media
