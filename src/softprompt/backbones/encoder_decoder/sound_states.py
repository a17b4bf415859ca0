"""A cache for the states of a frozen encoder of sounds: a prompt on the decoder does not change them.

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
    """A cache of encoder states by spectrogram.

    limit  size of the cache in bytes, on the model's device; 0: nothing is cached. States stay until their spectrogram is
           deleted or changed: with more sounds than room, evicting the oldest would lose each one before it is needed
           again. Changes that torch does not see (through NumPy) go unnoticed
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._kept: PerTensor[Tensor] = PerTensor()
        self._of: Any = None

    def __len__(self) -> int:
        """Number of spectrograms in the cache."""
        return len(self._kept)

    def forget(self) -> None:
        """Empty the cache."""
        self._kept.clear()

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
        found = [self._kept.get(one) for one in media]
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

    def _remember(self, media: Tensor, states: Tensor) -> None:
        if states.is_inference():  # it could not be used in training
            return
        self._kept.drop(media)
        if sum(one.nbytes for one in self._kept) + states.nbytes <= self.limit:
            self._kept.put(media, states.clone())  # a view would keep the whole batch
