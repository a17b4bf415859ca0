"""A prompt in front of every row that a plain decoder of transformers is given, by two hooks on its forward.

The prompt is run once, and its keys and values are put into the cache of all rows. A row's own tokens follow without a
gap, with its padding at the end, so that a sliding window reaches as far back as it does for the row alone. A cache that
is returned for decoding has its padding on the far left instead, so that new tokens follow the text. Logits are moved
back to the places of the caller's tokens.

Letters: B rows, T tokens of the caller, F positions in front, G = 1 prompt, Hkv, D, V as everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import local
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from softprompt.backbones.causal.attached_calls import check_arguments, check_beginnings
from softprompt.backbones.causal.padded import embed_atoms
from softprompt.backbones.engine import shifted
from softprompt.outputs import KeyValue, PromptOutput


@dataclass(frozen=True)
class Front:
    """What stands in front of every row.

    prompt  returns the prompt, G = 1; it is called for each pass of text, unless it is `frozen`
    atoms   token ids, and -1 - k for virtual token k, between a key-value prefix and the text
    frozen  whether no part of the prompt is trained
    begin   the special token among `atoms` that a text must not begin with again; None: there is none
    """

    prompt: Callable[[], PromptOutput]
    atoms: tuple[int, ...]
    frozen: bool
    begin: int | None = None


@dataclass(frozen=True)
class _Pass:
    """A pass of text that has begun: what the hook behind the forward must know.

    cache    holds the rows, with padding at their ends
    target   the caller's cache, which is to be filled; None: a new one
    wanted   whether a cache is returned at all
    tuple    whether the caller asked for a tuple
    padding  (B,) number of padding tokens; None: there is none
    back     (B, T) the place of each of the caller's tokens
    places   (B, T) the place of its logits
    """

    cache: DynamicCache
    target: DynamicCache | None
    wanted: bool
    tuple: bool
    padding: Tensor | None = None
    back: Tensor | None = None
    places: Tensor | None = None


class Attached:
    """The two hooks with their state: the cached keys and values of a frozen prompt, and the caches that hold a prompt."""

    def __init__(self, model: PreTrainedModel, front: Front) -> None:
        self.model = model
        self.front = front
        self.names = list(inspect.signature(model.forward).parameters)
        self.filled: WeakSet[DynamicCache] = WeakSet()
        self.kept: Sequence[KeyValue] | None = None
        self._calls = local()  # threads call one model at the same time
        self.shifts: PromptOutput | None = (
            None  # the prompt last run, where it adds something to embeddings of text
        )
        self.words = sum(atom >= 0 for atom in front.atoms)
        with torch.no_grad():
            self.length = self._key_values()[0][0].shape[2]  # F

    def before(
        self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """The forward's arguments, with the prompt in them."""
        if module is not self.model:  # a view of it, which has its hooks: a call of softprompt's own
            return None
        self._calls.running = None
        values = dict(zip(self.names, args, strict=False)) | given
        check_arguments(self.model, values)
        cache = values.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return (), self._continued(values, cache)
        return (), self._begun(values)

    def after(self, module: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        """The forward's output as the caller expects it: for the caller's own tokens, in their order."""
        run = getattr(self._calls, "running", None) if module is self.model else None
        if run is None:
            return output
        self._calls.running = None
        fields = dict(output.items())
        if run.back is not None and run.places is not None:
            fields["logits"] = _rows_at(output.logits, run.places)
            if (states := fields.get("hidden_states")) is not None:
                fields["hidden_states"] = tuple(_rows_at(state, run.back) for state in states)
        fields.pop("past_key_values", None)
        if run.wanted:
            fields["past_key_values"] = self._settled(run)
        output = type(output)(**fields)
        return output.to_tuple() if run.tuple else output

    def _begun(self, values: dict[str, Any]) -> dict[str, Any]:
        """The arguments for a pass of text whose cache is still empty."""
        ids: Tensor = values["input_ids"]
        mask = values.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.long()
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask is {tuple(mask.shape)}, input_ids are {tuple(ids.shape)}: give the mask of your own tokens,"
                " the prompt's part is added"
            )
        check_beginnings(self.front.begin, ids, mask)
        positions = values.get("position_ids")
        if positions is not None:
            values["position_ids"] = positions.expand(ids.shape)
        run = _Pass(
            cache=DynamicCache(),
            target=values.get("past_key_values"),
            wanted=_setting(values, "use_cache", self.model.config.get_text_config(), True),
            tuple=not _setting(values, "return_dict", self.model.config, True),
        )
        values["attention_mask"] = mask
        if not bool(mask.all()):
            run = self._gathered(values, run)
            mask = values["attention_mask"]
        for layer, pair in enumerate(self._key_values()):
            key, value = (part.expand(len(ids), -1, -1, -1) for part in pair)  # (1, ...) -> (B, Hkv, F, D)
            run.cache.update(key, value, layer)
        self._place(values, (mask.cumsum(1) - 1).clamp(min=0))
        values["attention_mask"] = torch.cat(
            [mask.new_ones(len(ids), self.length), mask], dim=1
        )  # (B, F + T)
        values |= {"past_key_values": run.cache, "use_cache": True, "return_dict": True}
        self._calls.running = run
        return values

    def _gathered(self, values: dict[str, Any], run: _Pass) -> _Pass:
        """Move padding behind the tokens, in every argument that has a number for each token."""
        if values.get("output_attentions"):
            raise ValueError(
                "output_attentions of padded rows behind an attached prompt: run the rows one by one"
            )
        mask: Tensor = values["attention_mask"]
        order = mask.argsort(dim=1, descending=True, stable=True)
        back = order.argsort(dim=1)
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                values[name] = value.gather(1, order)
        places = back
        if "logits_to_keep" in self.names:  # the caller's last token has another place in each row
            keep = _kept(values.get("logits_to_keep"))
            values["logits_to_keep"], places = back[:, keep].unique(return_inverse=True)
        return replace(run, padding=(mask == 0).sum(1), back=back, places=places)

    def _continued(self, values: dict[str, Any], cache: DynamicCache) -> dict[str, Any]:
        """The arguments for a pass of text behind a filled cache, which holds the prompt: only mask and positions change."""
        ids: Tensor = values["input_ids"]
        held = cache.get_seq_length() - self.length
        if cache not in self.filled:
            raise ValueError(
                f"past_key_values holds {cache.get_seq_length()} positions without this prompt: inside attach(), pass the"
                " cache that the model returned there (or an empty one), not a copy"
            )
        mask, positions = values.get("attention_mask"), values.get("position_ids")
        if mask is None and positions is not None and bool((positions[..., 0] != held).any()):
            # generate() drops a mask of ones, and leaves out as many tokens as the cache holds, the prompt's included.
            raise ValueError(
                f"the new tokens begin at position {int(positions.flatten()[0])} behind {held} others, so that some are left"
                " out. Behind an attached prompt, generate() takes no past_key_values of earlier calls: give it the whole text"
            )
        mask = ids.new_ones(len(ids), held + ids.shape[1]) if mask is None else mask.long()
        if mask.shape != (len(ids), held + ids.shape[1]):
            raise ValueError(
                f"attention_mask is {tuple(mask.shape)} for {ids.shape[1]} new tokens behind {held} others of"
                f" {len(ids)} rows: give it for all of your own tokens. Behind an attached prompt,"
                " generate() takes no past_key_values of earlier calls"
            )
        if ids.shape[1] > 1 and not bool(mask[:, -ids.shape[1] :].all()):
            raise ValueError(
                "padding among tokens behind a cache: with an attached prompt give each row equally many new tokens, or the"
                " whole rows without past_key_values (leave prefill_chunk_size out)"
            )
        self._place(values, (mask.cumsum(1) - 1)[:, -ids.shape[1] :])
        left = (mask == 0).sum(1, keepdim=True)
        values["attention_mask"] = (
            torch.arange(self.length + mask.shape[1], device=mask.device) >= left
        ).long()
        return values

    def _place(self, values: dict[str, Any], number: Tensor) -> None:
        """Set positions, and what the prompt adds to embeddings.

        values  arguments of the forward
        number  (B, T) how many of the caller's tokens stand before each in its row
        """
        positions = values.pop("position_ids", None)
        if "position_ids" in self.names:  # other models derive positions from the mask
            values["position_ids"] = (number if positions is None else positions) + self.length
        if self.shifts is not None:
            embeds = self.model.get_input_embeddings()(values["input_ids"])  # (B, T, d)
            flat = (number + self.words).flatten()
            shift = shifted(embeds.flatten(0, 1), flat, torch.zeros_like(flat), self.shifts)
            values["inputs_embeds"] = shift.view_as(embeds)
            values["input_ids"] = None

    def _settled(self, run: _Pass) -> DynamicCache:
        """A cache that decoding can continue from, with padding on the far left."""
        target = DynamicCache(config=self.model.config) if run.target is None else run.target
        for number, (key, value) in enumerate(_held(run.cache)):
            if run.padding is not None:
                width = key.shape[2]
                places = (torch.arange(width, device=run.padding.device) - run.padding[:, None]) % width
                places = places[:, None, :, None].to(key.device).expand_as(key)
                key, value = key.gather(2, places), value.gather(2, places)
            target.update(key, value, number)
        self.filled.add(target)
        return target

    def _prompt(self) -> PromptOutput:
        output = self.front.prompt()
        tokens, offset = (
            None if part is None else part.to(self.model.device) for part in (output.tokens, output.offset)
        )
        output = replace(output, tokens=tokens, offset=offset)
        self.shifts = output if offset is not None or any(output.token_offset or ()) else None
        return output

    def _key_values(self) -> Sequence[KeyValue]:
        """Keys and values of what stands in front, per layer (1, Hkv, F, D). They are cached while nothing is trained."""
        if torch.is_grad_enabled():
            self.kept = None  # a caller who records gradients may change the model's own weights next
        if self.kept is not None and not self.model.training:
            return self.kept
        prompt = self._prompt()
        cache = DynamicCache()
        for number, pair in enumerate(prompt.prefix or ()):
            key, value = (part[:1].to(self.model.device, self.model.dtype) for part in pair)
            cache.update(key, value, number)
        if self.front.atoms:
            embeds = embed_atoms(self.model, self.front.atoms, prompt, 0)[None]
            mask = embeds.new_ones(1, cache.get_seq_length() + embeds.shape[1], dtype=torch.long)
            self.model.base_model(
                inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=True
            )
        found = _held(cache)
        if self.front.frozen and not torch.is_grad_enabled() and not self.model.training:
            self.kept = found
        return found


def _held(cache: DynamicCache) -> list[KeyValue]:
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]


def _setting(values: dict[str, Any], name: str, config: Any, default: bool) -> bool:
    value = values.get(name)
    return bool(getattr(config, name, default) if value is None else value)


def _kept(logits_to_keep: int | Tensor | None) -> slice | Tensor:
    """The places that transformers' `logits_to_keep` names: the last ones by number (0: all), or each by itself."""
    if isinstance(logits_to_keep, Tensor):
        return logits_to_keep
    return slice(-logits_to_keep, None) if logits_to_keep else slice(None)


def _rows_at(tensor: Tensor, places: Tensor) -> Tensor:
    """The rows of a tensor at some places: (B, N, n) at (B, T) -> (B, T, n)."""
    return tensor.gather(1, places[:, :, None].expand(-1, -1, tensor.shape[2]))
