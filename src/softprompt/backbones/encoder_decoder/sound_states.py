"""What a frozen encoder makes of a sound, kept from epoch to epoch: a prompt on the decoder does not change it.

Letters: S sounds, T encoder positions, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt.backbones.unchanged import PerTensor

KEPT_BYTES = 2**30  # 450 sounds of Whisper tiny in float32 (1500 x 384 numbers each)


class SoundStates:
    """Encoder states by spectrogram.

    limit  bytes that may be kept, on the model's device; 0: nothing, every call computes everything. What is kept stays
           until its spectrogram goes or changes: with more sounds than room, dropping the oldest would lose each of them
           before it is asked for again. Changes that torch does not see (through NumPy) are not noticed.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._kept: PerTensor[Tensor] = PerTensor()
        self._of: Any = None

    def __len__(self) -> int:
        """For how many spectrograms something is kept."""
        return len(self._kept)

    def forget(self) -> None:
        """Drop all that is kept."""
        self._kept.clear()

    @torch.no_grad()
    def __call__(
        self, media: Sequence[Tensor], encode: Callable[[Tensor], Tensor], of: Any, *, together: int = 1
    ) -> Tensor:
        """States (S, T, d) without gradient.

        encode    spectrograms (n, mel bins, frames) -> (n, T, d)
        of        what they depend on beside the sound: when it changes, all is dropped
        together  how many are computed at once
        """
        if of != self._of:
            self.forget()
            self._of = of
        found = [self._kept.get(one) for one in media]
        missing = [s for s, states in enumerate(found) if states is None]
        # Batches of one shape, whatever they hold: in others a sound's last bits would depend on those beside it, and a
        # resumed run, which meets them in other company, would not end with the same bits.
        for start in range(0, len(missing), together):
            part = missing[start : start + together]
            filled = part + part[-1:] * (together - len(part))
            for s, states in zip(part, encode(torch.stack([media[s] for s in filled])), strict=False):
                found[s] = states
                self._remember(media[s], states)
        return torch.stack([states for states in found if states is not None])

    def _remember(self, media: Tensor, states: Tensor) -> None:
        if states.is_inference():  # it could not be used in training
            return
        self._kept.drop(media)
        if sum(one.nbytes for one in self._kept) + states.nbytes <= self.limit:
            self._kept.put(media, states.clone())  # a view would keep the whole batch
