"""What is random in a training step, of one run or of several that share a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Streams:
    """What each run draws from in a step: nothing but its own seed says what it gets, whatever runs beside it.

    The numbers come out of torch's default generators, which dropout draws from: whoever uses streams, forks these.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._states: dict[int, list[Tensor]] = {}

    def begin(self, seeds: Mapping[int, int]) -> None:
        """A step of the runs with these numbers. If it is one run, torch's generators stand at its beginning."""
        self._states = {}
        for number, seed in seeds.items():
            self._seed(seed)
            self._states[number] = self._state()

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Within the block torch's generators are those of this run, where it left them the last time."""
        cpu, *rest = self._states[number]
        torch.default_generator.set_state(cpu)
        for state in rest:
            torch.cuda.set_rng_state(state, self.device)
        yield
        self._states[number] = self._state()

    def _seed(self, seed: int) -> None:
        """Alike on all processes, which run the same prompt, dropout included.

        Not torch.manual_seed: it seeds every kind of device, and takes a millisecond for those that are missing.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def _state(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.default_generator.get_state(), *cuda]
