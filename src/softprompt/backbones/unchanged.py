"""Detection of changed tensors and weights, so that values computed from unchanged ones stay valid.

Changes that torch does not see (through NumPy) are not noticed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar
from weakref import ref

from torch import Tensor

V = TypeVar("V")


class PerTensor(Generic[V]):
    """A cache with a value for each tensor, valid while the tensor exists and is unchanged.

    Nothing is kept for tensors of inference mode, which do not say when they change.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ref[Tensor], int, V]] = {}  # by id: the tensor, its version, the value

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[V]:
        """The cached values of tensors that still exist."""
        return (value for _, _, value in [*self._kept.values()])

    def get(self, tensor: Tensor) -> V | None:
        """The tensor's value; None if there is none, or if the tensor has changed since."""
        entry = self._kept.get(id(tensor))
        if entry is None or entry[0]() is not tensor or entry[1] != tensor._version:
            return None
        return entry[2]

    def put(self, tensor: Tensor, value: V) -> None:
        """Cache a value for the tensor in its present state."""
        if tensor.is_inference():
            return
        key = id(tensor)

        def forget(gone: ref[Tensor]) -> None:
            entry = self._kept.get(key)
            if entry is not None and entry[0] is gone:  # else another tensor has its id by now
                self._kept.pop(key, None)

        self._kept[key] = (ref(tensor, forget), tensor._version, value)

    def drop(self, tensor: Tensor) -> None:
        """Evict the value of this tensor."""
        self._kept.pop(id(tensor), None)

    def clear(self) -> None:
        """Evict all values."""
        self._kept.clear()


def weights_mark(parameters: Iterable[Tensor]) -> Hashable:
    """A mark that differs after weights were changed in place, moved or cast. It is valid only in this process."""
    weights = [*parameters]
    places = {(weight.device, weight.dtype) for weight in weights}
    return sum(1 + weight._version for weight in weights), frozenset(places)
