"""Random numbers of a training step, for one run or for several that share a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Streams:
    """The random numbers of each run in a step: they depend on its seed alone, not on the runs beside it.

    They come from torch's default generators, which dropout draws from. Callers fork these generators.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._states: dict[int, list[Tensor]] = {}

    def begin(self, seeds: Mapping[int, int]) -> None:
        """Begin a step. seeds: by the number of the run. With one run, torch's generators are left seeded for it."""
        self._states = {}
        for number, seed in seeds.items():
            self._seed(seed)
            self._states[number] = self._state()

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """In the block torch's generators are this run's, in the state in which its last block left them."""
        cpu, *rest = self._states[number]
        torch.default_generator.set_state(cpu)
        for state in rest:
            torch.cuda.set_rng_state(state, self.device)
        yield
        self._states[number] = self._state()

    def _seed(self, seed: int) -> None:
        """Seed the generators, the same on all processes: they run the same prompt, dropout included.

        Not torch.manual_seed: it seeds every kind of device, and takes a millisecond for those that are missing.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def _state(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.default_generator.get_state(), *cuda]
