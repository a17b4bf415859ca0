"""Methods: one file each. Their names stand in __init__.pyi and are imported at their first use."""

import lazy_loader

from softprompt.deprecated import moved_names

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = moved_names(__name__, _load)
