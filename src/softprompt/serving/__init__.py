"""Serving: many saved prompts on one backbone, asked from Python's asyncio (`Engine`) or over HTTP (`server`, extra `serve`).

settings        limits and times, and how a text is sampled
errors          what a request can be refused with
registry        the prompts that are served, by name; compiled_cache: their keys and values; descriptions: for clients
score_lane      answers with labels, numbers, tags and spans: rows of any prompts in one pass
generate_lane   text by continuous batching; prompt_rows: virtual tokens as rows of the input table
grouped_lane    text by our own `generate`, grouped by prompt
requests        one request for a text; token_stream, texts: tokens on their way, and as text
engine          all of them together; trial: whether it answers

server          the app on a socket; app: the routes of routes/ on an engine; service: what they share
gate            what every request passes; keys: who may ask what; metrics
request_bodies  what is read of a request; data_urls: its images; refusals, event_streams: errors and streams as OpenAI has them
"""

from softprompt.serving.engine import Engine
from softprompt.serving.errors import (
    BadRequestError,
    PromptNotFoundError,
    QueueFullError,
    ServingError,
    TimedOutError,
)
from softprompt.serving.settings import Sampling, Settings

__all__ = [
    "BadRequestError",
    "Engine",
    "PromptNotFoundError",
    "QueueFullError",
    "Sampling",
    "ServingError",
    "Settings",
    "TimedOutError",
]
