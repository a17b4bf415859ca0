"""The saved prompt on disk: our own folder, and PEFT's."""

from softprompt.store.errors import PromptFileError
from softprompt.store.fingerprint import BackboneIdentity, WrongBackboneError, check_backbone, fingerprint
from softprompt.store.format import FORMAT_VERSION, SavedPrompt, library_versions, load, save
from softprompt.store.peft import PeftPrompt, read_peft, write_peft
from softprompt.store.tokens import load_prefix, load_tokens

__all__ = [
    "FORMAT_VERSION",
    "BackboneIdentity",
    "PeftPrompt",
    "PromptFileError",
    "SavedPrompt",
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
]
