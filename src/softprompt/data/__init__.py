"""Data sets become rows, rows become batches. A row is a dictionary from column name to value."""

from softprompt.data.batching import batches, by_length
from softprompt.data.drawing import few_shot, rows_of_part, subsample
from softprompt.data.loading import load_rows, names_file, read_rows
from softprompt.data.rows import Row, Rows

__all__ = [
    "Row",
    "Rows",
    "batches",
    "by_length",
    "few_shot",
    "load_rows",
    "names_file",
    "read_rows",
    "rows_of_part",
    "subsample",
]
