"""A study in separate processes, which are killed while they work."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from softprompt.training import ongoing, steps
from tests.processes import fork_server

NEVER = 10**9


def _compare(study: str, out: str, moment: int) -> None:
    """`softprompt compare`, killed at the moment-th call of what is listed below."""
    from softprompt.cli import app

    left = moment

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return called

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as the tests have it
    # In steps, in evaluations, before a file is forced out and before it is renamed.
    os.replace, os.fsync, Path.mkdir = mortal(os.replace), mortal(os.fsync), mortal(Path.mkdir)  # type: ignore
    steps.backward, ongoing.count_tokens = mortal(steps.backward), mortal(ongoing.count_tokens)
    sys.argv = ["softprompt", "compare", study, "-o", out, "--quiet"]
    app()


def killed(study: Path, out: Path, how: Literal["in turn", "at once"], moments: Sequence[int]) -> int:
    """Run the study in processes that are killed at these moments; returns how many were."""
    context = fork_server()
    processes = []
    for moment in moments:
        process = context.Process(target=_compare, args=(str(study), str(out), moment))
        process.start()
        processes.append(process)
        if how == "in turn":
            process.join()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert set(codes) <= {0, -signal.SIGKILL}, codes
    return sum(code != 0 for code in codes)


def round_of_kills(study: Path, out: Path, dice: random.Random) -> int:
    """Four processes one after the other, two at once, each killed somewhere, and one that ends the study."""
    kills = killed(study, out, "in turn", [dice.randrange(1, 40) for _ in range(4)])
    kills += killed(study, out, "at once", [dice.randrange(1, 40) for _ in range(2)])
    killed(study, out, "in turn", [NEVER])
    return kills
