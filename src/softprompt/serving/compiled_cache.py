"""Keys and values of prompts, cached up to a number of bytes. The least recently used are evicted first."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any

from torch import Tensor

from softprompt.backbones.engine import CompiledPrompt
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.serving.registry import Entry


class CompiledCache:
    """The compiled prompts of entries.

    limit  bytes of all of them
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[Entry, tuple[CompiledPrompt, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, entry: Entry, row: EncodedRow) -> CompiledPrompt:
        """The prompt of an entry, compiled for rows that begin with its virtual tokens as `row` does.

        A row that does not begin like the compiled prompt gets the prompt as it is.
        """
        with self._lock:
            if entry in self._kept:
                self._kept.move_to_end(entry)
                found = self._kept[entry][0]
                return found if begins(found, row) else plain(entry)
        compiled: Any = entry.tuned.backbone.compile([row], entry.tuned.module())
        if not isinstance(compiled, CompiledPrompt) or not compiled.heads[0]:
            return plain(entry)
        size = sum(_bytes(part) for layer in compiled.prompt.prefix or () for part in layer)
        if size <= self.limit:
            with self._lock:
                self._kept[entry] = compiled, size
                self.bytes += size
                while self.bytes > self.limit:
                    self.bytes -= self._kept.popitem(last=False)[1][1]
        return compiled

    def drop(self, entry: Entry) -> None:
        """Forget an entry, which is no longer served."""
        with self._lock:
            self.bytes -= self._kept.pop(entry, (None, 0))[1]


def plain(entry: Entry) -> CompiledPrompt:
    """An entry's prompt with nothing computed."""
    output: PromptOutput = entry.tuned.module()
    return CompiledPrompt(((),) * output.count, output)


def begins(compiled: CompiledPrompt, row: EncodedRow) -> bool:
    """Whether a row begins with the head of a single compiled prompt."""
    head = compiled.heads[0]
    return row.context[: len(head)] == head and min(row.read, default=len(row.context) - 1) >= len(head)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
