"""A study and a training interrupted hundreds of times, by hand: python -m tests.jobs.interrupts --count 300

A real SIGINT arrives before a write, a rename, a pass, a report, an evaluation, or within the hold of a step, whichever is
the drawn moment of the command. After a few interrupts the command is given once more and left alone; what it ends with
must be bit-identical to what nobody disturbed. The report of a study is interrupted and written again too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml

from softprompt.cli import app
from softprompt.fitting import preparation
from softprompt.studies.watching import Watcher
from softprompt.training import ongoing, steps
from softprompt.training.progress import ConsoleProgress
from tests.studies.small import results, write_study

INTERRUPTED = 130
_left = 0


def _disturbed(owner: Any, name: str) -> None:
    """Have a function of a module or class count down to the moment of the interrupt."""
    function: Callable[..., Any] = getattr(owner, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        global _left  # noqa: PLW0603 - one interrupt, wherever it comes
        _left -= 1
        if _left == 0:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **kwargs)

    setattr(owner, name, called)


def _command(*arguments: object, moment: int = 0) -> int:
    """The exit code of a command that is interrupted at the moment-th call of what is disturbed; 0: it is not."""
    global _left  # noqa: PLW0603
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore Ctrl-C
    sys.argv = ["softprompt", *map(str, arguments)]
    _left = moment
    told = io.StringIO()
    try:
        with redirect_stderr(told), redirect_stdout(told):
            app()
    except SystemExit as end:
        code = int(end.code or 0)
    except KeyboardInterrupt:
        code = INTERRUPTED
    else:
        code = 0
    finally:
        _left = 0
    if code not in (0, INTERRUPTED):
        raise SystemExit(f"{sys.argv} interrupted at {moment} ended with {code}:\n{told.getvalue()}")
    return code


def _trained(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    lines = map(json.loads, (out / "history.jsonl").read_text().splitlines())
    history = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    return (out / "prompt" / "prompt.safetensors").read_bytes(), history


def _page(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


class Job:
    """The commands, what they end with when nobody disturbs them, and how often they were interrupted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.study = write_study(place / "study.yaml")
        values = yaml.safe_load(self.study.read_text())
        run = {name: values[name] for name in ("backbone", "task", "data", "recipe")}
        self.run = place / "run.yaml"
        self.run.write_text(yaml.safe_dump(run | {"method": {"name": "prompt-tuning", "length": 2}}))
        for arguments in (("compare", self.study), ("train", self.run)):
            _command(*arguments, "--output", place / arguments[0], "--quiet")
        _command("report", place / "compare")
        self.results, self.tuned = results(self.study, place / "compare"), _trained(place / "train")
        self.files = _page(place / "compare")
        self.ends: Counter[str] = Counter()

    def _interrupted(self, moments: list[int], *arguments: object) -> None:
        for moment in moments:
            if _command(*arguments, moment=moment) == INTERRUPTED:
                self.ends[f"{arguments[0]} interrupted, then resumed"] += 1

    def round(self, number: int, dice: random.Random) -> None:
        """Each command interrupted a few times, then left alone. Raises SystemExit if it ends otherwise than undisturbed."""
        out, study = self.place / f"train{number}", self.place / f"study{number}"
        train = ("train", self.run, "--output", out, "--quiet")
        compare = ("compare", self.study, "--output", study, "--quiet")
        for moment in [dice.randrange(1, 50) for _ in range(3)]:
            if not (out / "metrics.json").exists():  # else a late moment did not come
                self._interrupted([moment], *train)
        if not (out / "metrics.json").exists():
            _command(*train)
        if _trained(out) != self.tuned:
            raise SystemExit(f"round {number}: the training ended with another result")
        self._interrupted([dice.randrange(1, 60) for _ in range(4)], *compare)
        _command(*compare)
        if results(self.study, study) != self.results:
            raise SystemExit(f"round {number}: the study ended with other results")
        self._interrupted([dice.randrange(1, 8)], "report", study)
        _command("report", study)
        if (found := _page(study)) != self.files:
            raise SystemExit(f"round {number}: files differ: {sorted(found ^ self.files)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Interrupt commands again and again; nothing may change.")
    parser.add_argument("--count", type=int, default=300, help="interrupts")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the moments at which a command is interrupted"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for owner, name in (
        (os, "replace"),
        (os, "fsync"),
        (Path, "mkdir"),
        (steps, "backward"),  # in a step
        (ongoing, "count_tokens"),  # while a step is held
        (ongoing, "replace"),  # while an evaluation is held
        (preparation, "evaluate"),
        (Watcher, "report"),
        (ConsoleProgress, "report"),
    ):
        _disturbed(owner, name)
    dice, rounds = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as place:
        job = Job(Path(place))
        while job.ends.total() < arguments.count:
            job.round(rounds, dice)
            rounds += 1
            print(
                f"{job.ends.total()} interrupts in {rounds} rounds, the same results: {dict(job.ends)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
