"""Where the training, validation and test rows of a proposal come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.beginning.columns import GROUP_NAMES, SPLIT_NAMES
from softprompt.beginning.decisions import Asked, Proposal
from softprompt.data import balanced_part, names_file
from softprompt.data.image_folders import has_splits

_OTHER_NAMES = {
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "heldout", "holdout"),
}
_FEW = 50  # test rows below which a score says little


def sources(
    source: str, rows: Sequence[Mapping[str, Any]], asked: Asked, encoding: str | None, proposal: Proposal
) -> dict[str, Any]:
    """The `data` of a config: splits that are there already, else a split of our own."""
    if not names_file(source):
        return _own_splits(source, proposal)
    common: dict[str, Any] = {"source": source, **({"encoding": encoding} if encoding else {})}
    if (column := _split_column(rows)) is not None:
        return _by_column(common, column, rows, proposal)
    beside = _siblings(Path(source)) if Path(source).is_file() else {}
    if "validation" in beside and "test" in beside:
        proposal.decide(
            "data", f"the files beside it are its splits: {beside['validation'].name}, {beside['test'].name}"
        )
        others = {name: {**common, "source": str(path)} for name, path in beside.items()}
        return {"train": common, **others}
    how = _division(rows, asked, proposal)
    parts: dict[str, Any] = {
        part: {**common, "part": part, **how} for part in ("train", "validation", "test")
    }
    if beside:
        [path] = beside.values()
        parts["test"] = {**common, "source": str(path)}
        proposal.decide("data", f"the test rows are in the file beside it, {path.name}")
    _count(rows, asked, how, bool(beside), proposal)
    return parts


def _own_splits(source: str, proposal: Proposal) -> dict[str, Any]:
    folder = Path(source)
    names = ["train", "validation", "test"]
    if folder.is_dir() and has_splits(folder):
        found = [
            path.name.replace("val", "validation") if path.name == "val" else path.name
            for path in folder.iterdir()
        ]
        names = [name for name in names if name in found]
    proposal.decide("data", f"{source} has splits of its own: {', '.join(names)}")
    if "validation" not in names or "test" not in names:
        proposal.doubts.append(
            "without a validation and a test split no score is honest: hold rows out for both"
        )
    return {name: {"source": source} for name in names}


def _split_column(rows: Sequence[Mapping[str, Any]]) -> str | None:
    return next((name for name in rows[0] if name.casefold() in SPLIT_NAMES), None)


def _by_column(
    common: Mapping[str, Any], column: str, rows: Sequence[Mapping[str, Any]], proposal: Proposal
) -> dict[str, Any]:
    values = dict.fromkeys(str(row[column]) for row in rows)
    parts = {}
    for name, others in {"train": ("train", "training"), **_OTHER_NAMES}.items():
        mine = [value for value in values if value.casefold() in others]
        if mine:
            parts[name] = {**common, "only": {column: mine}}
    if "train" not in parts:
        raise ValueError(
            f"column {column!r} seems to say which part a row belongs to, and none of its values {list(values)[:8]} is"
            " 'train': rename it, or the values"
        )
    proposal.decide("data", f"column {column!r} says which part a row belongs to: {', '.join(parts)}")
    return parts


def _siblings(path: Path) -> dict[str, Path]:
    """Files beside `path`, which is called ...train..., that are called validation or test instead."""
    match = re.search(r"train(ing)?", path.name)
    if match is None:
        return {}
    found: dict[str, Path] = {}
    for part, names in _OTHER_NAMES.items():
        for name in names:
            other = path.with_name(path.name[: match.start()] + name + path.name[match.end() :])
            if other.is_file():
                found.setdefault(part, other)
    return found


def _division(rows: Sequence[Mapping[str, Any]], asked: Asked, proposal: Proposal) -> dict[str, Any]:
    group = next((name for name in rows[0] if name.casefold() in GROUP_NAMES), None)
    repeated = group is not None and len({str(row.get(group)) for row in rows}) < len(rows)
    together = [asked.fields[0], *([group] if group and repeated else [])]
    said = f"70, 15 and 15 percent of the rows train, validate and test; rows with the same {together[0]!r} stay in one part"
    if len(together) > 1:
        said += f", and so do those with the same {group!r}"
    if asked.balance:
        said += f"; every value of {asked.balance!r} keeps its share"
    proposal.decide("data", said)
    return {**({"balance": asked.balance} if asked.balance else {}), "together": together}


def _count(
    rows: Sequence[Mapping[str, Any]], asked: Asked, how: Mapping[str, Any], tested: bool, proposal: Proposal
) -> None:
    """Say how many rows each part gets, and doubt small ones. Raises ValueError where one would be empty."""
    counts = {
        part: len(balanced_part(rows, part, balance=how.get("balance"), together=how["together"]))
        for part in ("train", "validation", "test")
    }
    told = ", ".join(f"{count} {part}" for part, count in counts.items() if part != "test" or not tested)
    proposal.decide("data", f"that makes {told} rows")
    if not tested and counts["test"] < _FEW:
        proposal.doubts.append(
            f"{counts['test']} test rows: a score on so few is uncertain by {_margin(counts['test']):.0%} or so either way"
        )


def _margin(rows: int) -> float:
    """Half of a 95 % interval of an accuracy near 0.8."""
    return float(1.96 * (0.8 * 0.2 / rows) ** 0.5)
