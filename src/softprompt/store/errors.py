"""The error of everything that reads a prompt from disk."""

from __future__ import annotations


class PromptFileError(ValueError):
    """A folder that should hold a prompt does not, or holds one that is damaged or of another format."""
