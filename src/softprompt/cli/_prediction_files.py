"""Predictions as files: the rows that were asked about, with their answers, written batch by batch."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from softprompt.files import finite, replacing, unwritable_explained

if TYPE_CHECKING:
    from softprompt.tuned import TunedPrompt

ANSWERS = ("prediction", "probability", "probabilities")
_BATCHES = 32  # batches of similar lengths are made of so many batches' rows, which are then written
_SIMPLE = (str, bool, int, float)

Write = Callable[[Sequence[Mapping[str, Any]]], None]


def check_suffix(path: Path, option: str = "--output") -> None:
    """Raise ValueError for a file that is not .csv, .jsonl or .parquet, so that nothing is computed in vain."""
    if path.suffix.lower() not in _WRITERS:
        raise ValueError(f"{option} is {path}, expected a file whose name ends in {', '.join(_WRITERS)}")


def write_predictions(
    path: Path,
    tuned: TunedPrompt,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Write each row's columns that are texts, numbers or truth values, then `prediction`, and for labels `probability`, that
    of the predicted label, and `probabilities`, of all labels (an object, in .csv and .parquet as JSON).

    In a .csv a text that a spreadsheet would run as a formula has an apostrophe in front; the other kinds repeat it as it is.
    The file gets its name when it is whole. Raises ValueError for rows that have one of these columns already, OSError if the
    file cannot be written, and what `predict` raises.
    """
    columns = dict.fromkeys(
        name for row in rows for name, value in row.items() if value is None or isinstance(value, _SIMPLE)
    )
    if taken := [name for name in ANSWERS if name in columns]:
        raise ValueError(
            f"the rows have a column {taken[0]!r}, which the predictions would replace: rename it"
        )
    labelled = bool(tuned.task.label_words)
    names = [*columns, *(ANSWERS if labelled else ANSWERS[:1])]
    step = batch_size * _BATCHES
    with (
        replacing(path) as file,
        _WRITERS[path.suffix.lower()](file, names, rows) as write,
    ):
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            found = tuned.predict(part, batch_size=batch_size)
            answered = [
                {**{c: _simple(row.get(c)) for c in columns}, **_answer(one)}
                for row, one in zip(part, found, strict=True)
            ]
            with unwritable_explained(path):
                write(answered)
            if on_batch is not None:
                on_batch(start + len(part))


def write_table(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of simple values under these columns; the file gets its name when it is whole."""
    with (
        replacing(path) as file,
        _WRITERS[path.suffix.lower()](file, names, rows) as write,
        unwritable_explained(path),
    ):
        write(rows)


def _simple(value: Any) -> Any:
    return value if isinstance(value, _SIMPLE) else None


def _answer(prediction: Any) -> dict[str, Any]:
    if hasattr(prediction, "labels"):
        return {
            "prediction": " | ".join(prediction.labels),
            "probability": None,
            "probabilities": dict(prediction.probabilities),
        }
    if hasattr(prediction, "probabilities"):
        shares = prediction.probabilities
        return {
            "prediction": prediction.label,
            "probability": shares[prediction.label],
            "probabilities": dict(shares),
        }
    if dataclasses.is_dataclass(prediction) and not isinstance(prediction, type):
        prediction = dataclasses.asdict(prediction)
    return {"prediction": prediction}


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(finite(value), ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in row.items()
    }


@contextlib.contextmanager
def _as_text(file: BinaryIO) -> Iterator[TextIO]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()  # writes what is left, and leaves the file open


@contextlib.contextmanager
def _csv(file: BinaryIO, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[Write]:
    from softprompt.studies.tables import (
        no_formula,  # it brings a study's results, which most commands never need
    )

    def shown(row: Mapping[str, Any]) -> dict[str, Any]:
        # People open a .csv in spreadsheets.
        return {k: no_formula(value) if isinstance(value, str) else value for k, value in _flat(row).items()}

    with _as_text(file) as text:
        writer = csv.DictWriter(text, names)
        writer.writerow({name: no_formula(name) for name in names})
        yield lambda part: writer.writerows(map(shown, part))


@contextlib.contextmanager
def _jsonl(file: BinaryIO, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[Write]:
    with _as_text(file) as text:
        yield lambda part: text.writelines(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in part)


@contextlib.contextmanager
def _parquet(file: BinaryIO, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    kinds: dict[str, set[type]] = {name: set() for name in names}
    for row in rows:
        for name, seen in kinds.items():
            seen.update([kind for kind in _SIMPLE if isinstance(row.get(name), kind)][:1])
    arrow = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    types = {name: arrow[kind.copy().pop()] if len(kind) == 1 else arrow[str] for name, kind in kinds.items()}
    types |= {name: arrow[float] for name, kind in kinds.items() if kind == {int, float}}
    types["probability"] = arrow[float]
    schema = pyarrow.schema([(name, types[name]) for name in names])

    def plain(name: str, value: Any) -> Any:
        return str(value) if value is not None and types[name] == arrow[str] else value

    with pyarrow.parquet.ParquetWriter(file, schema) as writer:

        def write(part: Sequence[Mapping[str, Any]]) -> None:
            flat = map(_flat, part)
            table = [{name: plain(name, row.get(name)) for name in names} for row in flat]
            writer.write_table(pyarrow.Table.from_pylist(table, schema))

        yield write


_WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
