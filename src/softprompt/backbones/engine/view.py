"""A backbone's view of a model: copied modules and configs around the same tensors.

What a backbone must change (the attention that a config names, the forward of a norm) it changes on its view, once. The
user's model is never touched, so their own calls, or other threads, may run it meanwhile. A view is always in eval mode,
whatever mode the model is in. What a single call needs travels in context variables, which each thread has for itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from operator import is_
from threading import RLock
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

_COPIED = (
    nn.Module,
    PreTrainedConfig,
    MethodType,
    partial,
)  # what refers to modules, or is changed on a view
_CONTENTS = ("_parameters", "_buffers", "_modules")


class View:
    """A copy of a model as it is now.

    model  the copy, in eval mode
    """

    def __init__(self, model: nn.Module, prepare: Callable[[Any], None]) -> None:
        """Copy a model. `prepare` is called with the copy and makes it what a backbone runs."""
        self._seen = [_Seen(module) for module in model.modules()]
        self._configs = [(config, dict(config.__dict__)) for config in configs_of(model)]
        self._compiled: dict[int, Any] = {}
        self.model: Any = _copied(model).eval()
        prepare(self.model)

    def is_current(self) -> bool:
        """Whether the model still has the modules, tensors and settings of the copy. Its training mode does not matter."""
        return all(seen.is_unchanged() for seen in self._seen) and all(
            _equal(config.__dict__, before) for config, before in self._configs
        )

    def compiled(self, module: nn.Module, **options: Any) -> Any:
        """A module of the copy, compiled by torch.compile when it is first asked for."""
        if id(module) not in self._compiled:
            self._compiled[id(module)] = torch.compile(module, **options)
        return self._compiled[id(module)]


class Views:
    """The views of one model by kind, made when they are first asked for and again when the model has changed.

    model  of the user
    """

    def __init__(self, model: Any, kinds: Mapping[str, Callable[[Any], None]]) -> None:
        """Promise views. `kinds` says for each kind of view what makes the copy of the model one."""
        self.model = model
        self._kinds = kinds
        self._made: dict[str, View] = {}
        self._lock = RLock()

    def __getitem__(self, kind: str) -> View:
        with self._lock:
            view = self._made.get(kind)
            if view is None or not view.is_current():
                view = self._made[kind] = View(self.model, self._kinds[kind])
            return view


def configs_of(model: nn.Module) -> list[PreTrainedConfig]:
    """The configs that a model's modules read, each once."""
    found = {
        id(config): config
        for module in model.modules()
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig)
    }
    return list(found.values())


class _Seen:
    """A module as it was when it was copied."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kind = type(module)
        self.attributes = dict(module.__dict__)
        self.contents = self._contents()

    def is_unchanged(self) -> bool:
        now = self.module.__dict__
        if type(self.module) is not self.kind:
            return False
        if not _equal(now, self.attributes):
            if not _equal({**now, "training": None}, {**self.attributes, "training": None}):
                return False
            self.attributes = dict(now)
        contents = self._contents()
        return len(contents) == len(self.contents) and all(map(is_, contents, self.contents))

    def _contents(self) -> list[Any]:
        now = self.module.__dict__
        return [*chain.from_iterable(now[name].values() for name in _CONTENTS)]


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays that are not the same objects
        return False


def _copied(model: nn.Module) -> Any:
    """The copy. Everything but modules, configs and what refers to them is shared: tensors, hooks, states of quantisation."""
    memo: dict[int, Any] = {}  # deepcopy treats what is in it as copied already
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name in _CONTENTS:
                memo |= {id(part): part for part in value.values() if isinstance(part, torch.Tensor)}
            elif "_hooks" in name or not _refers_to_modules(value):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)


def _refers_to_modules(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_refers_to_modules, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_refers_to_modules, value))
    return isinstance(value, _COPIED)
