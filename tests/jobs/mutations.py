"""Faults that a change could bring in, one at a time, and whether the tests notice: python -m tests.jobs.mutations

Each fault is a few words of the source put differently, in a copy of the package; the tests that should fail run against
that copy. Run by hand, some minutes: `--only NAME` takes one of them, `--table FILE` writes what was found as Markdown.
A fault whose words are gone from the source is an error: the code has moved, and the fault must be put anew.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HEADING = """# Which test notices which fault

Written by `python -m tests.jobs.mutations --table tests/jobs/mutations.md`: the first test that fails with the fault in the
source. Without a fault all of them pass.

| fault | in | caught by |
|---|---|---|
"""
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "softprompt"


@dataclass(frozen=True)
class Mutation:
    """A fault.

    name      what is wrong
    file      of the package, from its folder
    old, new  the words that stand there exactly once, and the wrong ones
    tests     files or folders of tests that should fail
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "positions count down",
        "backbones/engine/tree.py",
        "positions.append(position + i)",
        "positions.append(position - i)",
        ("tests/backbones/causal/test_backbone.py",),
    ),
    Mutation(
        "a sliding window is one token too wide",
        "backbones/engine/attention.py",
        "distance.abs() < window",
        "distance.abs() <= window",
        ("tests/backbones/causal/test_backbone.py",),
    ),
    Mutation(
        "a changed sound is answered from the cache",
        "backbones/unchanged.py",
        "entry[0]() is not tensor or entry[1] != tensor._version",
        "entry[0]() is not tensor",
        ("tests/backbones/encoder_decoder/test_sound_states.py",),
    ),
    Mutation(
        "texts of changed weights are answered from the cache",
        "backbones/unchanged.py",
        "sum(1 + weight._version for weight in weights)",
        "sum(1 for weight in weights)",
        ("tests/backbones/dual/test_kept_texts.py",),
    ),
    Mutation(
        "dropout draws without the step's seed",
        "training/randomness.py",
        "torch.default_generator.manual_seed(seed)",
        "torch.default_generator.seed()",
        ("tests/training",),
    ),
    Mutation(
        "keys and values of a prefix are swapped",
        "backbones/engine/attention.py",
        "above = prefix_grid(prefix_key.to(key.dtype)), prefix_grid(prefix_value.to(value.dtype))",
        "above = prefix_grid(prefix_value.to(value.dtype)), prefix_grid(prefix_key.to(key.dtype))",
        ("tests/backbones/causal/test_backbone_prefixes.py",),
    ),
    Mutation(
        "a trained prompt is not baked",
        "fitting/preparation.py",
        "baked = self.module.bake()",
        "baked = self.module",
        ("tests/prompts/test_prompts_parametrizations.py", "tests/prompts/test_p_tuning.py"),
    ),
    Mutation(
        "dropout stays in a baked prefix",
        "prompts/prefix.py",
        "return KeyValuePrefix(FreeRows(self.rows().detach()), self.shapes, self.frozen)",
        "return KeyValuePrefix(FreeRows(self.rows().detach()), self.shapes, self.frozen, self.dropout)",
        ("tests/prompts/test_prefix_tuning.py",),
    ),
    Mutation(
        "probabilities stand at other labels",
        "tasks/classification.py",
        "likeliest(self.verbalizer.labels, log_probabilities",
        "likeliest(self.verbalizer.labels[::-1], log_probabilities",
        ("tests/tasks/test_classification.py",),
    ),
    Mutation(
        "windows of a long text begin one token late",
        "tasks/alignment.py",
        "start += min(stride, room)",
        "start += min(stride, room) + 1",
        ("tests/tasks/test_alignment_windows.py",),
    ),
    Mutation(
        "accumulated gradients are not divided by the whole batch",
        "training/parallel.py",
        "parts = [part.sum() / len(step.batch)",
        "parts = [part.sum() / max(len(part), 1)",
        ("tests/training/test_loop.py", "tests/training/test_parallel.py"),
    ),
    Mutation(
        "rows are padded on the left and masked as on the right",
        "backbones/causal/padded.py",
        "pad_sequence([sequences[i] for i in members], batch_first=True)",
        'pad_sequence([sequences[i] for i in members], batch_first=True, padding_side="left")',
        ("tests/backbones/causal/test_backbone.py",),
    ),
    Mutation(
        "files are written in place, without another name",
        "files.py",
        "file = _new_file(path.parent)",
        'file = open(path, "wb")',
        ("tests/test_files.py",),
    ),
    Mutation(
        "a resumed run skips a batch",
        "training/ongoing.py",
        "first_epoch, skipped = divmod(step, math.ceil(n_rows / recipe.batch_size))",
        "first_epoch, skipped = divmod(step + (step > 0), math.ceil(n_rows / recipe.batch_size))",
        ("tests/training/test_checkpoint.py",),
    ),
    Mutation(
        "of two equally good evaluations the later one is kept",
        "training/ongoing.py",
        "is_best = metrics[main_metric] > (",
        "is_best = metrics[main_metric] >= (",
        ("tests/training/test_loop.py",),
    ),
    Mutation(
        "the second word of a label is read one token late",
        "backbones/engine/tree.py",
        "place = begins[stem_level + 1][leaf] + j - 1",
        "place = begins[stem_level + 1][leaf] + min(j, len(words) - 2)",
        ("tests/backbones/causal/test_backbone.py",),
    ),
)


def mutated(mutation: Mutation, place: Path) -> Path:
    """A copy of the package with the fault in it, in `place`. Raises SystemExit where its words are not in the source."""
    copy = place / "src" / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / mutation.file
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.name!r}: {mutation.file} holds {text.count(mutation.old)} times {mutation.old!r}, expected once; "
            "the code has changed, put the fault anew"
        )
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    return copy.parent


def tested(source: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """The exit code of pytest against a copy of the package, and its last lines."""
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def first_failure(output: str) -> str:
    """The name of the first test that failed, as pytest's summary has it."""
    lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" ", 1)[1].split(" - ")[0] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Put faults into a copy of the source and see that tests fail."
    )
    parser.add_argument("--only", help="the name of one fault")
    parser.add_argument(
        "--check", action="store_true", help="see whether all faults can be put in, run nothing"
    )
    parser.add_argument("--table", type=Path, help="a file of Markdown to write")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in (None, m.name)]
    if not chosen:
        raise SystemExit(f"no fault is called {arguments.only!r}: {', '.join(m.name for m in MUTATIONS)}")
    if not arguments.check:
        code, output = tested(PACKAGE.parent, tuple(sorted({test for m in chosen for test in m.tests})))
        if code:
            raise SystemExit(f"without any fault, pytest ended with {code}\n{output[-2000:]}")
    lines: list[str] = []
    missed = []
    for mutation in chosen:
        with tempfile.TemporaryDirectory() as place:
            source = mutated(mutation, Path(place))
            if arguments.check:
                continue
            started = time.perf_counter()
            code, output = tested(source, mutation.tests)
        if code not in (0, 1):  # 1: tests failed, which is what they are for
            raise SystemExit(f"{mutation.name!r}: pytest ended with {code}\n{output[-2000:]}")
        caught = first_failure(output) if code else "nothing"
        if not code:
            missed.append(mutation.name)
        print(f"{mutation.name}: caught by {caught} ({time.perf_counter() - started:.0f} s)", flush=True)
        lines.append(f"| {mutation.name} | `{mutation.file}` | {caught and f'`{caught}`'} |")
    if arguments.table is not None and not arguments.check:
        arguments.table.write_text(HEADING + "\n".join(lines) + "\n", encoding="utf-8")
    if missed:
        raise SystemExit(f"not caught: {', '.join(missed)}")


if __name__ == "__main__":
    main()
