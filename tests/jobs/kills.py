"""A study killed hundreds of times, by hand: python -m tests.jobs.kills --count 200

The suite kills a dozen times (tests/studies/test_studies_conduct.py); this does the same for as long as is asked. A kill takes
about a second. After each round of kills the study is ended and compared, bit for bit, with one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch

from tests.cli.runs import as_json
from tests.kills import round_of_kills
from tests.studies.small import results, write_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a study again and again; it must lose nothing.")
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which a process is killed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dice, kills, rounds = random.Random(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as place:
        study = write_study(Path(place) / "study.yaml")
        as_json("compare", study, "-o", study.parent / "out", "--quiet")
        expected = results(study, study.parent / "out")
        while kills < arguments.count:
            out = Path(place) / f"out{rounds}"
            kills += round_of_kills(study, out, dice)
            if results(study, out) != expected:
                raise SystemExit(f"round {rounds} of seed {arguments.seed} ended with other results")
            rounds += 1
            print(f"{kills} kills in {rounds} rounds: the same results", flush=True)


if __name__ == "__main__":
    main()
