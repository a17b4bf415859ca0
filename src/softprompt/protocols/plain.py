"""The plain run: train on all training rows, choose the best checkpoint on validation rows, read the test rows once."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from softprompt.protocols.base import STRICT
from softprompt.protocols.fit_and_test import FitAndTest


@dataclass(frozen=True, config=STRICT)
class PlainProtocol(FitAndTest):
    """One training and one test: the protocol of a study that names no other."""

    name: ClassVar[str] = "plain"
