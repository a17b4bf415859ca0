"""The saved prompt: softprompt's own folder format.

saved        what a folder holds, and whether it belongs to a backbone
format       reading and writing the folder (folders: whole or not at all; plain_json: its JSON)
fingerprint  how a backbone is recognised (identity: of a Backbone)
card         model cards
places       where a backbone lies, without the names of machines
tokens       virtual tokens and prefixes of saved prompts, as initial values
"""

from typing import TYPE_CHECKING

from softprompt.deprecated import moved_names
from softprompt.store.errors import PromptFileError
from softprompt.store.fingerprint import BackboneIdentity, fingerprint
from softprompt.store.format import load, save
from softprompt.store.places import shown_name
from softprompt.store.saved import (
    FORMAT_VERSION,
    SavedPrompt,
    WrongBackboneError,
    check_backbone,
    library_versions,
)
from softprompt.store.tokens import load_prefix, load_tokens

__all__ = [
    "FORMAT_VERSION",
    "BackboneIdentity",
    "PromptFileError",
    "SavedPrompt",
    "WrongBackboneError",
    "check_backbone",
    "fingerprint",
    "library_versions",
    "load",
    "load_prefix",
    "load_tokens",
    "save",
    "shown_name",
]

if not TYPE_CHECKING:  # type checkers know the new names alone
    __getattr__ = moved_names(__name__)
