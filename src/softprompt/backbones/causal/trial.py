"""Whether a causal model can be packed: a trial on short rows tells, not the model's name."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from softprompt.backbones.causal.padded import padded_logits
from softprompt.backbones.engine import (
    TRIAL_ERRORS,
    TreeCall,
    build_tree,
    disagreement,
    embed_tree,
    shared_heads,
    tree_implementation,
)
from softprompt.backbones.vocabulary import table_of
from softprompt.outputs import EncodedRow, PromptOutput

log = logging.getLogger(__name__)


@torch.no_grad()
def can_pack(model: PreTrainedModel, name: str) -> bool:
    """Whether packed logits equal padded ones, and every sliding-window layer passes its window to the attention."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        return _say(name, f"it has layers of kind {sorted(kinds - {'full_attention', 'sliding_attention'})}")
    embedding = model.get_input_embeddings()
    table = table_of(embedding)
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
    except TRIAL_ERRORS as error:
        return _say(name, f"{type(error).__name__}: {error}")
    if not call.windows_seen:
        return _say(name, "its attention cannot be reached")
    windowed = sum(kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or [])
    if sum(window is not None for window in call.windows_seen) < windowed:
        return _say(name, "its sliding-window layers do not tell their window")
    got = replace(expected, logits=found, position=tree.position).token_log_likelihoods()
    want = expected.token_log_likelihoods()
    # bfloat16 rounds logits of size 20 to 1/16.
    if (difference := disagreement(got, want, table.dtype, half=0.5)) is not None:
        return _say(name, f"packed and padded rows differ by {difference:.2g}")
    return True


def _say(name: str, reason: str) -> bool:
    log.warning("%s: rows are padded and the prompt is run for each of them, because %s", name, reason)
    return False
