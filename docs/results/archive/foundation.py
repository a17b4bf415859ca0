"""Archive of a published figure, as of commit 3cfa151: the tables of docs/results/foundation.md, out of foundation.json.

python -m docs.results.archive.foundation
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOUND = Path(__file__).parents[1] / "foundation.json"
DATA = ("multiemo-products", "multiemo-hotels", "vitaminc", "bbc-news")
SEEDS = (0, 1, 2)
GRID = (0.03, 0.1, 0.3)  # peak learning rates, in standard deviations of the embedding table
DEFAULT = 0.1
WIDER, WIDER_ON = 1000, "vitaminc"  # validation rows where 200 left the default more than two points behind


def of_grid(runs: Mapping[str, Mapping[str, Any]], name: str, factor: float) -> list[float]:
    """Validation accuracy at a learning rate, points, seed by seed as far as it was run."""
    keys = [f"{name}/grid/{factor}", *(f"{name}/grid/{factor}/{seed}" for seed in SEEDS[1:])]
    if factor == DEFAULT:
        keys = [f"{name}/prompt-tuning/{seed}" for seed in SEEDS]
    return [100 * runs[key]["validation"]["accuracy"] for key in keys if key in runs]


def best_of_grid(runs: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """The learning rate with the best validation accuracy for seed 0; the default where it is as good."""
    return max(GRID, key=lambda factor: (of_grid(runs, name, factor)[0], factor == DEFAULT))


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The finished runs as Markdown: test accuracy in points, mean and sample standard deviation over seeds."""
    names = [name for name in DATA if f"{name}/majority" in runs]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for kind, label in KINDS.items():
        cells = []
        for name in names:
            found = [
                100 * r["accuracy"]
                for key, r in runs.items()
                if key == f"{name}/{kind}" or key.startswith(f"{name}/{kind}/")
            ]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


KINDS = {
    "majority": "always the commonest label",
    "zero-shot": "zero-shot",
    "manual": "hand-written prompt",
    "8-shot": "8 demonstrations",
    "peft": "PEFT's defaults",
    "prompt-tuning": "**Prompt Tuning, our defaults**",
    "full-tuning": "full fine-tuning",
}


def grid_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Validation accuracy over the learning-rate grid: seed 0, and the mean over all seeds where they were run."""
    names = [name for name in DATA if all(of_grid(runs, name, factor) for factor in GRID)]
    lines = ["| learning rate / table's std | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for factor in GRID:
        cells = []
        for name in names:
            found = of_grid(runs, name, factor)
            mean = f" ({len(found)} seeds: {statistics.mean(found):.1f})" if len(found) > 1 else ""
            cells.append(f"{found[0]:.1f}{mean}")
        lines.append(f"| {factor}{' (default)' if factor == DEFAULT else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def wider_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Validation accuracy of the rates that 200 rows could not tell apart, over more rows and all seeds."""
    lines = [f"| learning rate / table's std | {WIDER_ON}, {WIDER:,} rows |", "|---|---:|"]
    for factor in GRID:
        keys = [f"{WIDER_ON}/wider/{factor}/{seed}" for seed in SEEDS]
        found = [100 * runs[key]["validation"]["accuracy"] for key in keys if key in runs]
        if found:
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            label = f"{factor}{' (default)' if factor == DEFAULT else ''}"
            lines.append(f"| {label} | {statistics.mean(found):.1f}{spread} |")
    return "\n".join(lines)


def tables() -> str:
    runs = json.loads(FOUND.read_text(encoding="utf-8"))
    return "\n\n".join([table(runs), grid_table(runs), wider_table(runs)])


if __name__ == "__main__":
    print(tables())
