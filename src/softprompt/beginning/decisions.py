"""What is decided about rows before the first run, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wishes:
    """What the user says, which is never overruled; None: it is inferred.

    text       names of the columns that hold the text
    label      name of the column that holds the right answer
    task       name of a task, as in a config
    backbone   name of a backbone
    method     name of a method
    encoding   of a text file
    """

    text: Sequence[str] | None = None
    label: str | None = None
    task: str | None = None
    backbone: str | None = None
    method: str | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class Decision:
    """One decision.

    key   where it stands in the config, as in "task.labels"
    said  one line that says what was found and why
    """

    key: str
    said: str


@dataclass
class Proposal:
    """A config, the decisions that led to it, and what a person should look at.

    config    as `parse_config` reads it
    """

    config: dict[str, Any] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def decide(self, key: str, said: str) -> None:
        self.decisions.append(Decision(key, said))

    def said_about(self, key: str) -> list[str]:
        return [decision.said for decision in self.decisions if decision.key == key]


@dataclass(frozen=True)
class Asked:
    """What a task is made of, before a backbone is chosen.

    kind     classification, multi-label, regression, generation, chat, tagging, images
    fields   columns of the input, in order
    answer   column of the right answer
    labels   of a task that chooses; empty elsewhere
    balance  column whose values keep their shares in the split
    extra    further settings of the task that the data decide
    """

    kind: str
    fields: Sequence[str]
    answer: str | None
    labels: Sequence[str] = ()
    balance: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
