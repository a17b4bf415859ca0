"""Whether a tensor, or the weights of a model, are what they were: what was computed from them then still holds.

Changes that torch does not see (through NumPy) are not noticed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar
from weakref import ref

from torch import Tensor

V = TypeVar("V")


class PerTensor(Generic[V]):
    """A value for each tensor, kept while the tensor is there and unchanged.

    Nothing is kept for tensors of inference mode, which do not say when they change.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ref[Tensor], int, V]] = {}  # by id: the tensor, its version, the value

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[V]:
        """The values, of tensors that are there."""
        return (value for _, _, value in [*self._kept.values()])

    def get(self, tensor: Tensor) -> V | None:
        """The tensor's value; None where there is none, or the tensor has changed since."""
        entry = self._kept.get(id(tensor))
        if entry is None or entry[0]() is not tensor or entry[1] != tensor._version:
            return None
        return entry[2]

    def put(self, tensor: Tensor, value: V) -> None:
        """Keep a value for the tensor as it is now."""
        if tensor.is_inference():
            return
        key = id(tensor)

        def forget(gone: ref[Tensor]) -> None:
            entry = self._kept.get(key)
            if entry is not None and entry[0] is gone:  # else another tensor has its id by now
                self._kept.pop(key, None)

        self._kept[key] = (ref(tensor, forget), tensor._version, value)

    def drop(self, tensor: Tensor) -> None:
        """Keep nothing for this tensor."""
        self._kept.pop(id(tensor), None)

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()


def weights_mark(parameters: Iterable[Tensor]) -> Hashable:
    """A mark that is another one once weights were changed in place, moved or cast. It says nothing beyond this process."""
    weights = [*parameters]
    places = {(weight.device, weight.dtype) for weight in weights}
    return sum(1 + weight._version for weight in weights), frozenset(places)
