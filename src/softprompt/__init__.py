"""softprompt tunes small prompts for large frozen models."""

__version__ = "0.1.0"
