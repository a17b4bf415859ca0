"""What a model can do: tried out on short rows, not guessed from its name."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.backbones.causal.padded import padded_logits
from softprompt.backbones.engine.attention import TreeCall, tree_implementation
from softprompt.backbones.engine.packed import embed_tree
from softprompt.backbones.engine.tree import build_tree, shared_heads
from softprompt.outputs import EncodedRow, PromptOutput

log = logging.getLogger(__name__)

_TRIAL_ERRORS = (
    TypeError,
    NotImplementedError,
    AttributeError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
)


@torch.no_grad()
def can_pack(model: PreTrainedModel, name: str) -> bool:
    """Whether packed logits equal padded ones, and every layer with a sliding window tells it to the attention."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        return _say(name, f"it has layers of kind {sorted(kinds - {'full_attention', 'sliding_attention'})}")
    embedding = model.get_input_embeddings()
    table = embedding.weight
    assert isinstance(table, Tensor)
    ids = [(7 * i + 3) % table.shape[0] for i in range(11)]
    rows = [EncodedRow((-1, -2, *ids[:3]), ((1,),)), EncodedRow((-1, -2, *ids[3:8]), ((1,), (2, 1)))]
    tokens = embedding(torch.tensor(ids[8:10], device=model.device))[None].float()
    prompt = PromptOutput(tokens=tokens)
    try:
        expected = padded_logits(model, rows, prompt)
        tree = build_tree(rows, shared_heads(rows, 1), virtual_tokens=2, device=model.device)
        call = TreeCall(tree)
        with tree_implementation(model):
            found = model(
                inputs_embeds=embed_tree(model, tree, prompt),
                position_ids=tree.positions[None],
                use_cache=False,
                logits_to_keep=tree.scored,
                prompt_tree=call,
            ).logits[0]
    except _TRIAL_ERRORS as error:
        return _say(name, f"{type(error).__name__}: {error}")
    if not call.windows_seen:
        return _say(name, "its attention cannot be reached")
    windowed = sum(kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or [])
    if sum(window is not None for window in call.windows_seen) < windowed:
        return _say(name, "its sliding-window layers do not tell their window")
    got = replace(expected, logits=found, position=tree.position).token_log_likelihoods()
    want = expected.token_log_likelihoods()
    # bfloat16 rounds logits of size 20 to 1/16: the trial finds wrong attention, the test suite proves the rest.
    tolerance = 1e-3 if table.dtype in (torch.float32, torch.float64) else 0.5
    difference = (got - want).abs().max().item()
    if not difference <= tolerance * max(1.0, want.abs().max().item()):
        return _say(name, f"packed and padded rows differ by {difference:.2g}")
    return True


@torch.no_grad()
def check_embeddings(model: PreTrainedModel, name: str) -> None:
    """Raises ValueError where a model makes more of its tokens' ids than to look them up in its table.

    Virtual tokens stand beside the table's rows, which go in as `inputs_embeds`: a model that scales what it has looked up
    itself (Marian, Pegasus), or has further tables for each layer (Gemma 3n), answers otherwise then, and would silently.
    """
    config = model.config
    table = model.get_input_embeddings()
    last = config.get_text_config().vocab_size - 1
    reserved = {
        config.pad_token_id,
        config.get_text_config().pad_token_id,
    }  # has no position of its own in RoBERTa
    ids = torch.tensor([[i for i in range(last, -1, -1) if i not in reserved][:6]], device=model.device)
    beside = {"decoder_input_ids": ids[:, :2]} if config.is_encoder_decoder else {}
    try:
        by_ids = model(input_ids=ids, **beside)[0]
    except _TRIAL_ERRORS as error:
        log.warning("%s: six of its own tokens could not be run (%s: %s)", name, type(error).__name__, error)
        return
    try:
        by_vectors = model(inputs_embeds=table(ids), **beside)[0]
    except _TRIAL_ERRORS as error:
        raise ValueError(
            f"{name} ({type(model).__name__}) does not take its tokens as vectors, among which virtual tokens stand "
            f"({type(error).__name__}: {error}): take another model"
        ) from error
    difference = (by_ids - by_vectors).abs().max().item()
    # The arithmetic is the same, so it should be 0.
    tolerance = 1e-5 if by_ids.dtype in (torch.float32, torch.float64) else 1e-2
    if not difference <= tolerance * by_ids.abs().max().item():
        raise ValueError(
            f"{name} ({type(model).__name__}) answers otherwise when its tokens come as rows of its embedding table: its "
            f"outputs differ by {difference:.2g} of {by_ids.abs().max().item():.2g}. It scales them itself or has more "
            "tables, and virtual tokens have no place there: take another model"
        )


def _say(name: str, reason: str) -> bool:
    log.warning("%s: rows are padded and the prompt is run for each of them, because %s", name, reason)
    return False
