"""What a server allows, and how it samples."""

from __future__ import annotations

import dataclasses

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from softprompt.plain_settings import PlainSettings


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Settings(metaclass=PlainSettings):
    """Limits and times of an engine and its server. Raises ValueError for a value out of range."""

    max_rows: int = Field(default=64, ge=1)
    """Rows that are run together in one pass."""
    max_wait_ms: float = Field(default=2.0, ge=0)
    """Milliseconds that a row waits for others to be run with. A row that comes while a pass runs waits for its end anyway."""
    max_queue: int = Field(default=1024, ge=1)
    """Rows and texts that may wait or be under way; further requests are told to come back later (429)."""
    max_request_rows: int = Field(default=256, ge=1)
    """Rows or texts of one request."""
    max_characters: int = Field(default=100_000, ge=1)
    """Characters of all texts of one row."""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    """Bytes of a request's body, images included."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens that a request may ask for."""
    default_new_tokens: int = Field(default=128, ge=1)
    """Tokens that the backbone itself writes if a request does not say. A prompt has its task's own number."""
    compiled_bytes: int = Field(default=512 * 2**20, ge=0)
    """Bytes of keys and values of prompts that are cached; the least recently used are evicted first."""
    cache_tokens: int = Field(default=16_384, ge=256)
    """Tokens whose keys and values continuous batching has room for, of all requests together."""
    request_seconds: float = Field(default=120.0, gt=0)
    """Seconds that a request may take, the sending of its answer included."""
    body_seconds: float = Field(default=15.0, gt=0)
    """Seconds in which a request's body must have arrived."""
    stall_seconds: float = Field(default=30.0, gt=0)
    """Seconds after which a connection is closed that sends no complete request head, or does not read its answer."""
    max_connections: int = Field(default=1000, ge=1)
    """Connections at a time; requests on further ones are refused (503)."""
    max_pixels: int = Field(default=40_000_000, ge=1)
    """Pixels of an image."""
    max_texts: int = Field(default=16, ge=1)
    """Answers (`n`) that a request for texts may ask for."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """Seconds that running requests have to end when the server stops."""
    reload_seconds: float = Field(default=2.0, ge=0)
    """Seconds between two looks at the folder of prompts; 0: it is read once."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a text is continued.

    max_new_tokens  None: the task's own number
    temperature     0: the likeliest token, always
    top_p, top_k    as transformers has them; 1 and 0: all tokens
    seed            draws the same tokens again. Such a text is generated alone
    stop            texts that end the answer, which does not hold them
    logprobs        how many of the likeliest tokens are returned at each place with their log-probabilities, besides the
                    chosen one; None: none, and no log-probability
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
