"""Tuned prompts for other servers: one file a form, each a line in FORMS."""

from softprompt.exports.catalogue import FORMS, export

__all__ = ["FORMS", "export"]
