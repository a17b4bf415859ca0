"""The whole suite beside busy loops, by hand: python -m tests.jobs.busy

Other work on the machine may change how long a test takes, and nothing else. The arguments behind -- go to pytest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys


def spin() -> None:
    """Keep a core busy until the process is ended."""
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the suite beside busy loops.")
    parser.add_argument("--loops", type=int, default=2, help="busy loops, each in a process of its own")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest")
    arguments = parser.parse_args()
    loops = [multiprocessing.Process(target=spin, daemon=True) for _ in range(arguments.loops)]
    for loop in loops:
        loop.start()
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist=worksteal", *arguments.pytest]
        code = subprocess.run(command, check=False).returncode
    finally:
        for loop in loops:
            loop.kill()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
