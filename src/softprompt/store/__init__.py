"""The saved prompt on disk: our own folder, and PEFT's."""

from softprompt.store.errors import PromptFileError
from softprompt.store.fingerprint import BackboneIdentity, fingerprint
from softprompt.store.format import load, save
from softprompt.store.peft import PeftPrompt, TaskType, read_peft, write_peft, write_peft_prefix
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
    "PeftPrompt",
    "PromptFileError",
    "SavedPrompt",
    "TaskType",
    "WrongBackboneError",
    "check_backbone",
    "fingerprint",
    "library_versions",
    "load",
    "load_prefix",
    "load_tokens",
    "read_peft",
    "save",
    "write_peft",
    "write_peft_prefix",
]
