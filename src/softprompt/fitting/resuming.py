"""Resuming runs of an earlier version, which prepared the images of some processors in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from softprompt.backbones.base import Backbone
from softprompt.features.encodings import Encodings
from softprompt.fitting.preparation import Data
from softprompt.store.identity import reading_as_before
from softprompt.training.checkpoint import begun_with


def as_begun(backbone: Backbone, data: Data, folders: Sequence[str | Path | None]) -> tuple[Backbone, Data]:
    """Backbone and rows for runs that resume in these folders, with the pixels that the first of them began with.

    Warns with SoftpromptWarning where these are not the pixels of a new run.
    """
    for folder in folders:
        digest = (
            None if folder is None else begun_with(Path(folder)).get("backbone", {}).get("tokenizer_digest")
        )
        if digest is not None:
            as_it_was = reading_as_before(backbone, digest, f"the run in {folder} was begun")
            # Rows that other runs share were encoded with other pixels.
            return as_it_was, data if as_it_was is backbone else replace(data, encodings=Encodings())
    return backbone, data
