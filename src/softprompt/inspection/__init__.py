"""What a prompt has learned: nearest words, attention, pictures."""

from typing import TYPE_CHECKING

from softprompt.deprecated import moved_names

if not TYPE_CHECKING:  # type checkers know the new names alone
    __getattr__ = moved_names(__name__)
