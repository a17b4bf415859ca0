"""Text by transformers' continuous batching: requests join and leave a running batch token by token.

It takes ids alone, so that virtual tokens become rows of the input table (prompt_rows.py). It works on a view of the model,
whose attention it may set without touching the user's. Prompts of other kinds are the grouped lane's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from softprompt.backbones.base import Backbone
from softprompt.backbones.engine import View
from softprompt.outputs import EncodedRow
from softprompt.serving.errors import ServingError
from softprompt.serving.prompt_rows import PromptRows, RowTable
from softprompt.serving.registry import Entry
from softprompt.serving.settings import Sampling
from softprompt.serving.token_stream import TokenStream

log = logging.getLogger(__name__)

_PAGE = 16  # tokens; prompts are shared between requests by whole pages
_LATE = 10.0  # seconds after which no token of a cancelled request comes any more
_SHARED = {"auto_switch_to_flash": False, "use_cuda_graph": False, "page_size": _PAGE}


@dataclass(eq=False)
class _Loaded:
    """An entry's rows, and how many requests use them."""

    ids: list[int]
    users: int = 0
    dropped: bool = False


@dataclass(eq=False)
class _Request:
    name: str
    manager: Any
    stream: TokenStream
    loaded: _Loaded
    seen: int = 0
    over: bool = field(default=False)


class GenerateLane:
    """Continuous batching over virtual tokens.

    backbone  a causal language model
    tokens    whose keys and values there is room for
    requests  of one batch
    """

    def __init__(self, backbone: Backbone, *, tokens: int, requests: int) -> None:
        self.backbone = backbone
        self.vocabulary = len(backbone.table)
        self.tokens, self.requests = tokens, requests

        def with_rows(model: Any) -> None:
            model.set_input_embeddings(RowTable(model.get_input_embeddings(), self.vocabulary))

        self._model = View(backbone.model, with_rows).model
        self._rows = PromptRows(self._model.get_input_embeddings())
        self._loaded: dict[Entry, _Loaded] = {}
        self._managers: dict[bool, Any] = {}
        self._lock = RLock()
        self._names = itertools.count()
        self._running: dict[str, _Request] = {}

    def takes(self, entry: Entry) -> bool:
        """Whether an entry's prompt is virtual tokens alone."""
        tuned = entry.tuned
        if tuned.backbone.model is not self.backbone.model or tuned.module.reads is not None:
            return False
        output = tuned.module()
        return output.count == 1 and not output.beside_tokens

    async def check(self, entry: Entry) -> bool:
        """Whether this lane writes the tokens that the model's own `generate` writes: words given as rows, and as text.

        entry: the backbone without a prompt
        """
        ids = [i for i in range(self.vocabulary) if i not in self.backbone.spec.special_ids][
            :: max(1, self.vocabulary // 12)
        ]
        ids = ids[:10]
        try:
            rows = self._rows.load(self.backbone.spec.embed(torch.tensor(ids[:4])))
            stream = self._open([*rows, *ids[4:]], Sampling(max_new_tokens=4), (), _Loaded([], users=1))
            found = [token async for token in stream]
            self._rows.free(rows)
            model = entry.tuned.model
            expected = await asyncio.to_thread(
                model.generate, [EncodedRow(tuple(ids))], max_new_tokens=4, do_sample=False, eos_token_id=None
            )
        except Exception as error:
            log.warning(
                "continuous batching does not run %s: text is generated in groups. %s",
                self.backbone.name,
                error,
            )
            return False
        if found != expected[0]:
            log.warning(
                "continuous batching writes other tokens than generate() of %s: text is generated in groups",
                self.backbone.name,
            )
        return found == expected[0]

    def open(self, entry: Entry, row: EncodedRow, sampling: Sampling, ends: tuple[int, ...]) -> TokenStream:
        """Begin to write. Called in the event loop.

        ends: tokens that end the text
        """
        with self._lock:
            loaded = self._loaded.get(entry)
            if loaded is None:
                tokens = entry.tuned.module().tokens
                loaded = _Loaded([] if tokens is None else self._rows.load(tokens[0].detach()))
                self._loaded[entry] = loaded
            loaded.users += 1
        ids = [atom if atom >= 0 else loaded.ids[-1 - atom] for atom in row.context]
        return self._open(ids, sampling, ends, loaded)

    def _open(
        self, ids: list[int], sampling: Sampling, ends: tuple[int, ...], loaded: _Loaded
    ) -> TokenStream:
        manager = self._manager(sampling.temperature > 0)
        request = _Request(f"softprompt-{next(self._names)}", manager, TokenStream(), loaded)
        request.stream.on_cancel(lambda: self._cancel(request))
        manager.register_result_handler(request.name, lambda result: self._receive(request, result))
        drawn: dict[str, Any] = {}
        if sampling.temperature > 0:
            drawn = {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p)}
            drawn["top_k"] = sampling.top_k or self.vocabulary
        self._running[request.name] = request
        accepted = manager.add_request(
            ids,
            request_id=request.name,
            max_new_tokens=sampling.max_new_tokens,
            streaming=True,
            eos_token_id=list(ends) or -1,
            **drawn,
        )
        if accepted is None:
            request.stream.fail(ServingError("continuous batching has stopped; try again", retry_after=1))
            self._end(request)
        return request.stream

    def drop(self, entry: Entry) -> None:
        """Free the rows of an entry that is no longer served, once no request uses them."""
        with self._lock:
            loaded = self._loaded.pop(entry, None)
            if loaded is not None:
                loaded.dropped = True
                self._free(loaded)

    def close(self) -> None:
        """End all requests and the threads."""
        for request in list(self._running.values()):
            request.stream.fail(ServingError("the server is stopping"))
        with self._lock:
            managers, self._managers = self._managers, {}
        if managers:  # each takes up to a second to notice
            with ThreadPoolExecutor(len(managers)) as pool:
                list(pool.map(_stop, managers.values()))

    def _receive(self, request: _Request, result: Any) -> None:
        """Take what the engine's thread has delivered; called in the event loop."""
        if request.over:
            return
        for token in result.generated_tokens[request.seen :]:
            request.stream.push(token)
        request.seen = len(result.generated_tokens)
        if result.is_finished():
            if result.error is not None:
                request.stream.fail(ServingError(f"the text could not be generated: {result.error}"))
            else:
                request.stream.end()
            self._end(request)

    def _cancel(self, request: _Request) -> None:
        if not request.over:
            request.manager.cancel_request(request.name)
            # A token may still be on its way: without a handler it would lie in the engine's queue for ever.
            router = request.manager.output_router
            asyncio.get_running_loop().call_later(_LATE, router.result_handlers.pop, request.name, None)
            request.stream.end()
            self._end(request)

    def _end(self, request: _Request) -> None:
        request.over = True
        self._running.pop(request.name, None)
        with self._lock:
            request.loaded.users -= 1
            self._free(request.loaded)

    def _free(self, loaded: _Loaded) -> None:
        if loaded.dropped and loaded.users == 0:
            self._rows.free(loaded.ids)
            loaded.ids = []

    def _manager(self, draws: bool) -> Any:
        """The engine for the likeliest tokens, or for drawn ones: what it does to logits is fixed when it is made."""
        with self._lock:
            dead = draws in self._managers and not self._managers[draws].is_running()
            if dead:
                log.error("continuous batching had stopped, and is started again")
            if draws not in self._managers or dead:
                pad = self.backbone.tokenizer.pad_token_id
                drawn = {"temperature": 0.7, "top_p": 0.9, "top_k": 50} if draws else {}
                config = GenerationConfig(
                    max_new_tokens=16,
                    do_sample=draws,
                    pad_token_id=0 if pad is None else pad,
                    eos_token_id=-1,
                    **drawn,
                )
                batching = ContinuousBatchingConfig(
                    num_blocks=max(16, self.tokens // _PAGE),
                    max_batch_tokens=max(256, min(self.tokens, 2048)),
                    max_requests_per_batch=self.requests,
                    per_request_processors=draws,
                    drop_unsupported_processors=False,
                    **_SHARED,  # type: ignore[arg-type]
                )
                manager = self._model.init_continuous_batching(
                    generation_config=config, continuous_batching_config=batching
                )
                manager.start()
                self._managers[draws] = manager
            return self._managers[draws]


def _stop(manager: Any) -> None:
    manager.stop(block=True, timeout=10, hard_stop=True)
    manager.destroy()
