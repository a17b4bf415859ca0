"""A cache for the states of a frozen encoder of sounds: a prompt on the decoder does not change them.

Letters: S sounds, T encoder positions, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor

KEPT_BYTES = 2**30  # 450 sounds of Whisper tiny in float32 (1500 x 384 numbers each)


class SoundStates:
    """A cache of encoder states by spectrogram.

    limit  size of the cache in bytes, on the model's device; 0: nothing is cached. States stay until their spectrogram is
           deleted or changed: with more sounds than room, evicting the oldest would lose each one before it is needed
           again. Changes that torch does not see (through NumPy) go unnoticed
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._kept: dict[int, tuple[ref[Tensor], int, Tensor]] = {}
        self._bytes = 0
        self._of: Any = None

    def __len__(self) -> int:
        """Number of spectrograms in the cache."""
        return len(self._kept)

    def forget(self) -> None:
        """Empty the cache."""
        self._kept.clear()
        self._bytes = 0

    @torch.no_grad()
    def __call__(
        self, media: Sequence[Tensor], encode: Callable[[Tensor], Tensor], of: Any, *, together: int = 1
    ) -> Tensor:
        """States (S, T, d) without gradient.

        media     spectrograms, (mel bins, frames) each
        encode    spectrograms (n, mel bins, frames) -> (n, T, d)
        of        what the states depend on beside the sound: when it changes, the cache is emptied
        together  how many sounds are encoded at once
        """
        if of != self._of:
            self.forget()
            self._of = of
        found = [self._known(one) for one in media]
        missing = [s for s, states in enumerate(found) if states is None]
        # All batches have one shape. Otherwise a sound's last bits would depend on the batch that it was in, and a resumed
        # run, which batches sounds differently, would not be bit-identical.
        for start in range(0, len(missing), together):
            part = missing[start : start + together]
            filled = part + part[-1:] * (together - len(part))
            for s, states in zip(part, encode(torch.stack([media[s] for s in filled])), strict=False):
                found[s] = states
                self._remember(media[s], states)
        return torch.stack([states for states in found if states is not None])

    def _known(self, media: Tensor) -> Tensor | None:
        entry = self._kept.get(id(media))
        if entry is None or media.is_inference() or entry[0]() is not media or entry[1] != media._version:
            return None
        return entry[2]

    def _remember(self, media: Tensor, states: Tensor) -> None:
        # Tensors of inference mode do not say when they change, and cannot be used in training.
        if media.is_inference() or states.is_inference():
            return
        self._drop(id(media))
        size = states.numel() * states.element_size()
        if self._bytes + size > self.limit:
            return
        key = id(media)

        def gone(which: ref[Tensor]) -> None:
            entry = self._kept.get(key)
            if entry is not None and entry[0] is which:
                self._drop(key)

        self._kept[key] = (
            ref(media, gone),
            media._version,
            states.clone(),
        )  # a view would keep the whole batch
        self._bytes += size

    def _drop(self, key: int) -> None:
        entry = self._kept.pop(key, None)
        if entry is not None:
            self._bytes -= entry[2].numel() * entry[2].element_size()
