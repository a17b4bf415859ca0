"""Baselines: methods that prompts are compared with. Their names stand in __init__.pyi and are imported at their first use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
