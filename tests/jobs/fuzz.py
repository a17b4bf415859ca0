"""Ten thousand things through each door, by hand: python -m tests.jobs.fuzz --count 10000

The suite pushes some hundred (tests/test_fuzz.py), the same each time. This draws others for each seed; a thing that brings
anything but a value or an error of the library's own is made as small as it can be and shown.
"""

from __future__ import annotations

import argparse
import resource
import warnings

import torch

from softprompt import SoftpromptWarning
from tests.fuzz import DOORS, push


def main() -> None:
    parser = argparse.ArgumentParser(description="Push odd things through every door of the library.")
    parser.add_argument("--count", type=int, default=10_000, help="things for each door")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    parser.add_argument("--door", help="the only door, by its name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SoftpromptWarning)
    for door in DOORS:
        if arguments.door in (None, door.name):
            push(door, arguments.count, arguments.seed)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{door.name}: {arguments.count}, at most {memory} MiB by now", flush=True)


if __name__ == "__main__":
    main()
