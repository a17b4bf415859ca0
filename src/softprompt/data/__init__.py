"""Data sets become rows, rows become batches. A row is a dictionary from column name to value."""

from softprompt.data.batching import batches, by_length
from softprompt.data.drawing import few_shot, rows_of_part, subsample
from softprompt.data.indexed import MANY, IndexedRows, digest_of
from softprompt.data.loading import load_rows, names_file, open_rows, read_rows
from softprompt.data.rows import Row, Rows

__all__ = [
    "MANY",
    "IndexedRows",
    "Row",
    "Rows",
    "batches",
    "by_length",
    "digest_of",
    "few_shot",
    "load_rows",
    "names_file",
    "open_rows",
    "read_rows",
    "rows_of_part",
    "subsample",
]
