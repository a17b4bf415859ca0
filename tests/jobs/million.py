"""A million rows of a file: python -m tests.jobs.million --rows 1000000 [--evaluate]

Each kind of file is trained on in a process of its own, on a tiny model, with a checkpoint folder. It prints the seconds from
the call of `fit` to the end of its first step, and how far the peak of the process's memory rose above what it was before.
With --evaluate the process evaluates a prompt on the file, and writes predictions for each of its rows, instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import softprompt as sp
from softprompt.cli._prediction_files import write_predictions
from softprompt.data import open_rows
from softprompt.training.progress import Record, Silent
from tests.processes import fork_server
from tests.tiny.task import TASK, tiny_backbone

_TEXT = "film by the river at night and again the house never now"


def rows(count: int) -> Iterator[dict[str, str]]:
    """Rows of a dozen words that the tiny tokenizer knows."""
    for i in range(count):
        yield {"text": f"{('dog', 'film')[i % 2]} {i} {_TEXT}", "label": ("neg", "pos")[i % 2]}


def _jsonl(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def _csv(path: Path, count: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows(count))


def _parquet(path: Path, count: int) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        made = list(rows(count))
        writer.write_table(pyarrow.Table.from_pylist(made, schema), row_group_size=100_000)


def _list(path: Path, count: int) -> None:
    path.write_text(str(count))


def _dataset(path: Path, count: int) -> None:
    import datasets

    _parquet(path, count)
    datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "cache")).save_to_disk(
        path.with_suffix(".saved")
    )


KINDS: dict[str, Callable[[Path, int], None]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".list": _list,
    ".dataset": _dataset,
}


class FirstStep(Silent):
    """Notes when the first step ended."""

    ended: float | None = None

    def update(self, record: Record) -> None:
        self.ended = self.ended or time.perf_counter()


def _trained(path: Path, out: str) -> None:
    torch.set_num_threads(1)
    data: Any = path
    if path.suffix == ".list":
        data = list(rows(int(path.read_text())))
    elif path.suffix == ".dataset":
        import datasets

        data = datasets.load_from_disk(str(path.with_suffix(".saved")))
    backbone, method, watcher = tiny_backbone(), sp.PromptTuning(length=2), FirstStep()
    sp.fit(
        backbone, TASK, method, list(rows(8)), steps=2, batch_size=4, folder=f"{out}/before", progress=False
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    sp.fit(backbone, TASK, method, data, steps=20, batch_size=16, folder=f"{out}/run", progress=watcher)
    ended = time.perf_counter()
    assert watcher.ended is not None
    _say(
        f"{path.suffix}: first step after {watcher.ended - began:.1f} s, 20 steps and their end after {ended - began:.1f} s",
        before,
    )


def _judged(path: Path, out: str) -> None:
    torch.set_num_threads(1)
    tuned = sp.fit(tiny_backbone(), TASK, sp.PromptTuning(length=2), list(rows(8)), steps=1, progress=False)
    tuned.evaluate(list(rows(20_000)), batch_size=256)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    tuned.evaluate(str(path), batch_size=256)
    _say(f"{path.suffix}: evaluated after {time.perf_counter() - began:.0f} s", before)
    began = time.perf_counter()
    write_predictions(Path(f"{out}.jsonl"), tuned, open_rows(path), batch_size=256)
    _say(f"{path.suffix}: predictions written after {time.perf_counter() - began:.0f} s", before)


def _say(text: str, before: int) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{text}, peak {peak // 1024} MiB, {(peak - before) // 1024} MiB above what it was before", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on a file of very many rows.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=list(KINDS), help="the only kind")
    parser.add_argument(
        "--evaluate", action="store_true", help="evaluate and predict, on .jsonl, .csv and .parquet"
    )
    arguments = parser.parse_args()
    do, kinds = (_judged, list(KINDS)[:3]) if arguments.evaluate else (_trained, list(KINDS))
    with tempfile.TemporaryDirectory() as place:
        for kind, write in KINDS.items():
            if kind not in kinds or arguments.kind not in (None, kind):
                continue
            path = Path(place) / f"rows{kind}"
            context = fork_server()
            for target, given in ((write, (path, arguments.rows)), (do, (path, f"{place}/{kind}"))):
                process = context.Process(target=target, args=given)
                process.start()
                process.join()
                if process.exitcode:
                    sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
