"""The error that reading a prompt from disk raises."""

from __future__ import annotations


class PromptFileError(ValueError):
    """A folder holds no prompt, or one that is damaged or in another format."""
