"""Virtual tokens as further rows of a model's input table, so that an engine which takes ids can be given prompts.

The output layer keeps its V rows: a row of a prompt can never be generated, and no probability changes. The ids come from
here and never from the tokenizer, so that no text of a user can name them. Letters: V vocabulary, d width, P virtual tokens.
"""

from __future__ import annotations

from collections import deque
from threading import Lock

import torch
from torch import Tensor, nn

CAPACITY = 2**20
"""Rows that ids are counted round: id = V + row + CAPACITY * (how often the row was used before). An id is never used twice,
so that keys and values which an engine cached by ids are never those of an earlier prompt."""

_LAST_ID = 2**31 - 1  # engines hold ids as 32-bit numbers


class RowTable(nn.Module):
    """An embedding of V words with the rows of prompts behind them. These are given as the model uses them: unscaled.

    words  the model's own embedding, scaling included
    """

    def __init__(self, words: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.words = words
        self.vocabulary = vocabulary
        like: Tensor = words.weight  # type: ignore[assignment]
        self.rows = nn.Parameter(like.new_zeros(1, like.shape[1]), requires_grad=False)  # (rows, d)

    @property
    def weight(self) -> Tensor:
        """The table of words, which others look at."""
        table: Tensor = self.words.weight  # type: ignore[assignment]
        return table

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.words(ids.clamp(max=self.vocabulary - 1))  # (..., d)
        theirs = ids >= self.vocabulary
        if not theirs.any():
            return embedded
        rows = self.rows  # another thread may replace it by a longer one
        places = ((ids - self.vocabulary) % CAPACITY).clamp(max=len(rows) - 1)
        return torch.where(theirs[..., None], rows[places].to(embedded.dtype), embedded)


class PromptRows:
    """Gives virtual tokens their rows and ids. It may be used from several threads.

    table  the model's
    """

    def __init__(self, table: RowTable) -> None:
        self.table = table
        self._free: deque[int] = deque()
        self._used = 0  # rows that were ever given out
        self._times: list[int] = []  # how often each row was given out
        self._lock = Lock()

    def load(self, tokens: Tensor) -> list[int]:
        """Write virtual tokens (P, d) and return their ids. Raises RuntimeError if there is no row left."""
        with self._lock:
            places = [self._place() for _ in range(len(tokens))]
            self._make_room()
            rows = self.table.rows
            with torch.no_grad():
                rows[torch.tensor(places, device=rows.device)] = tokens.to(rows)
            ids = []
            for place in places:
                ids.append(self.table.vocabulary + place + CAPACITY * self._times[place])
                self._times[place] += 1
            return ids

    def free(self, ids: list[int]) -> None:
        """Give rows back. Nothing may use their ids any longer."""
        with self._lock:
            for number in ids:
                place = (number - self.table.vocabulary) % CAPACITY
                if self.table.vocabulary + place + CAPACITY * self._times[place] < _LAST_ID:
                    self._free.append(place)

    def _place(self) -> int:
        # The oldest first, so that all rows are used equally often.
        if self._free:
            return self._free.popleft()
        if self._used == CAPACITY:
            raise RuntimeError(f"all {CAPACITY:,} rows of virtual tokens are in use: remove prompts")
        self._used += 1
        self._times.append(0)
        return self._used - 1

    def _make_room(self) -> None:
        rows = self.table.rows
        if self._used > len(rows):
            longer = rows.new_zeros(max(2 * len(rows), self._used), rows.shape[1])
            longer[: len(rows)] = rows
            self.table.rows = nn.Parameter(longer, requires_grad=False)
