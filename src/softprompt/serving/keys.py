"""API keys: who may ask which prompts, and how much. Keys are compared by their SHA-256 in constant time."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from softprompt.serving.errors import NotAuthorisedError, PromptNotFoundError, QueueFullError


class Key(BaseModel):
    """A key of the file. Raises ValueError (pydantic's) for an unknown setting."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64)
    """What logs call it."""
    key: str | None = Field(default=None, min_length=16, repr=False)
    """The key itself, or else:"""
    sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None
    """The SHA-256 of the key, so that the file holds no secret."""
    prompts: tuple[str, ...] = ("*",)
    """Names that may be asked; `*` stands for any letters."""
    manage: bool = False
    """Whether prompts may be added and removed."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    rows_at_once: int | None = Field(default=None, ge=1)
    """Rows and texts that may be under way."""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError(f"the key {self.name!r} needs either key or sha256")
        return self

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key."""
        return hashlib.sha256(self.key.encode()).digest() if self.key else bytes.fromhex(self.sha256 or "")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: tuple[Key, ...] = Field(min_length=1)


class Caller:
    """Someone with a key, and what is left of the key's limits. A server without keys has one caller, who may do all.

    key  None: there are no keys
    """

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.name = "" if key is None else key.name
        self.under_way = 0
        self._left = float(0 if key is None else key.requests_per_minute or 0)
        self._since = time.monotonic()

    @property
    def may_manage(self) -> bool:
        return self.key is None or self.key.manage

    @property
    def is_restricted(self) -> bool:
        """Whether there are prompts that it may not know of."""
        return self.key is not None and "*" not in self.key.prompts

    def may_ask(self, name: str) -> bool:
        return self.key is None or any(fnmatchcase(name, pattern) for pattern in self.key.prompts)

    def check(self, name: str) -> None:
        """Raise PromptNotFoundError for a prompt that this key may not ask: it does not learn whether there is one."""
        if not self.may_ask(name):
            raise PromptNotFoundError(
                f"there is no prompt {name[:128]!r} for this key; GET /v1/models lists those that there are",
                param="model",
            )

    def take_request(self) -> None:
        """Count a request. Raises QueueFullError, with the seconds to wait, if there were too many within a minute."""
        if self.key is None or self.key.requests_per_minute is None:
            return
        limit, now = self.key.requests_per_minute, time.monotonic()
        self._left = min(limit, self._left + (now - self._since) * limit / 60)
        self._since = now
        if self._left < 1:
            raise QueueFullError(
                f"this key may send {limit} requests a minute",
                retry_after=math.ceil((1 - self._left) * 60 / limit),
            )
        self._left -= 1

    @contextmanager
    def rows(self, count: int) -> Iterator[None]:
        """Within the block `count` more rows are under way. Raises QueueFullError where these are too many for the key."""
        limit = None if self.key is None else self.key.rows_at_once
        if limit is not None and self.under_way + count > limit:
            raise QueueFullError(f"this key may have {limit} rows under way", retry_after=1)
        self.under_way += count
        try:
            yield
        finally:
            self.under_way -= count


class Keyring:
    """All keys. Without any, everybody may do everything."""

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._callers = [(key.digest, Caller(key)) for key in keys]
        self._anybody = Caller(None)

    def __bool__(self) -> bool:
        return bool(self._callers)

    def caller(self, authorization: str | None) -> Caller:
        """Whose key an Authorization header holds. Raises NotAuthorisedError."""
        if not self._callers:
            return self._anybody
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise NotAuthorisedError("a key is needed: send the header Authorization: Bearer KEY")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, caller in self._callers:  # all of them, so that the time does not say which
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise NotAuthorisedError("this key is not known here")
        return found


def read_keys(file: Path) -> Keyring:
    """The keys of a YAML or JSON file. Raises ValueError for what it should not hold, without showing any value of it."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{file}: this is no YAML; expected keys: [{{name: ..., sha256: ...}}]") from None
    try:
        keys = _File.model_validate(content).keys
    except ValidationError as error:
        # Not as other errors are told, with what was found: that may be a key.
        told = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)
        ]
        raise ValueError(f"{file}: " + "\n".join(told)) from None
    for what, values in (("name", [key.name for key in keys]), ("key", [key.digest for key in keys])):
        if len(set(values)) < len(values):
            raise ValueError(f"{file}: two keys have the same {what}")
    return Keyring(keys)
