"""Values computed from tensors or weights are cached as long as these do not change."""

from __future__ import annotations

import gc

import torch
from torch import nn

from softprompt.backbones.unchanged import PerTensor, weights_mark


def test_a_value_stands_until_its_tensor_changes_or_goes() -> None:
    kept: PerTensor[str] = PerTensor()
    first, second = torch.zeros(2), torch.zeros(2)
    kept.put(first, "first")
    kept.put(second, "second")
    assert (kept.get(first), kept.get(second), len(kept)) == ("first", "second", 2)
    assert kept.get(torch.zeros(2)) is None
    first.add_(1)
    assert kept.get(first) is None
    kept.put(first, "changed")
    assert kept.get(first) == "changed"
    del second
    gc.collect()
    assert [*kept] == ["changed"]


def test_values_can_be_dropped() -> None:
    kept: PerTensor[int] = PerTensor()
    tensors = [torch.zeros(1) for _ in range(3)]
    for number, tensor in enumerate(tensors):
        kept.put(tensor, number)
    kept.drop(tensors[1])
    kept.drop(torch.zeros(1))
    assert [*kept] == [0, 2]
    kept.clear()
    assert not len(kept)


def test_tensors_that_do_not_say_when_they_change_have_no_value() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(2)
    kept: PerTensor[int] = PerTensor()
    kept.put(tensor, 1)
    assert kept.get(tensor) is None


def test_weights_that_are_changed_or_cast_have_another_mark() -> None:
    model = nn.Linear(2, 2)
    mark = weights_mark(model.parameters())
    assert weights_mark(model.parameters()) == mark
    with torch.no_grad():
        model.bias.add_(1)
    changed = weights_mark(model.parameters())
    assert changed != mark
    assert weights_mark(model.double().parameters()) not in (mark, changed)
