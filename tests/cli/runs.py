"""A tiny backbone in a folder, rows that a prompt can learn from, and the command line in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from click.testing import Result
from typer.testing import CliRunner

from softprompt.cli import app
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer

ROWS = [
    {"text": f"the {thing} is {word}", "label": label}
    for thing in ("film", "book", "story", "plot")
    for word, label in (("good", "pos"), ("bad", "neg"), ("great", "pos"), ("awful", "neg"))
]


def softprompt(*arguments: str | Path, stdin: str | None = None) -> Result:
    """Run a command; an exception that it should have caught is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def as_json(*arguments: str | Path, stdin: str | None = None) -> dict[str, Any]:
    """The one JSON object that a command with --json leaves on stdout."""
    result = softprompt(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    return dict(json.loads(line))


def write_backbone(folder: Path, seed: int = 0) -> Path:
    tiny_causal_lm("llama", dtype=torch.float32, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_config(path: Path, **changes: Any) -> Path:
    """A run of a few steps; backbone and rows are those beside the config."""
    rows = str(write_rows(path.with_name("rows.jsonl")))
    config = {
        "backbone": {"name": str(path.parent / "backbone"), "dtype": "float32", "device": "cpu"},
        "task": {
            "name": "text-classification",
            "template": "{text} sentiment",
            "labels": {"neg": " negative", "pos": " positive"},
        },
        "method": {"name": "prompt-tuning", "length": 3},
        "data": {"train": rows, "validation": rows},
        "recipe": {"steps": 6, "batch_size": 4, "evaluate_every": 3},
        "seed": 1,
    }
    path.write_text(yaml.safe_dump(config | changes, sort_keys=False), encoding="utf-8")
    return path
