"""What a method or its module may do besides `Method` and `PromptModule`, and few do.

Whoever needs it asks through the function beside the protocol. There is nothing to inherit: a class that has a method
of this name takes part. Methods that search for words have a protocol of their own, `softprompt.search.Searches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from softprompt.prompts.base import Method, PromptModule


@runtime_checkable
class Tallied(Protocol):
    """A module that counts while rows are scored."""

    def tallies(self) -> Mapping[str, Tensor]:
        """What training changes without a gradient: counts that grow in place. They are saved in checkpoints, and added up
        over processes."""
        ...


def tallies_of(module: PromptModule) -> Mapping[str, Tensor]:
    """The counts of a module by name; none where it does not count."""
    return module.tallies() if isinstance(module, Tallied) else {}


@runtime_checkable
class Continues(Protocol):
    """A module that must know when a new run begins with the tensors of an earlier one."""

    def goes_on(self) -> None:
        """Called when the tensors were just copied from an earlier run, before the first step."""
        ...


def continue_from_earlier(module: PromptModule) -> None:
    """Tell a module that its tensors are those of an earlier run."""
    if isinstance(module, Continues):
        module.goes_on()


@runtime_checkable
class LearnsInTasks(Protocol):
    """A method that is another one for each of the tasks that are learned one after the other."""

    def for_task(self, number: int) -> Method:
        """The method for one of the tasks, counted from 0."""
        ...


def method_for_task(method: Method, number: int) -> Method:
    """The method for one of the tasks, counted from 0; the method itself where all tasks are alike to it."""
    return method.for_task(number) if isinstance(method, LearnsInTasks) else method
