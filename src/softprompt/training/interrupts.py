"""Delay Ctrl-C until a step is complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block, also if an error ends it: a half-made step could not be resumed."""
    handler = signal.getsignal(signal.SIGINT)
    # Only the main thread is interrupted by Ctrl-C; None is a handler that was not set from Python.
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)
