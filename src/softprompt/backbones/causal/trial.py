"""Whether a causal model can be packed: a trial on short rows tells, not the model's name."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from softprompt.backbones.causal.padded import padded_logits
from softprompt.backbones.engine import (
    TRIAL_ERRORS,
    LayersRunAgainError,
    PackedModel,
    TreeCall,
    build_tree,
    disagreement,
    shared_heads,
)
from softprompt.backbones.vocabulary import table_of
from softprompt.outputs import EncodedRow, PromptOutput

log = logging.getLogger(__name__)


@torch.no_grad()
def settle_last_layer(runner: PackedModel) -> PackedModel:
    """The runner, not `shortened` where the model runs its last layer more than once in a pass (HRM)."""
    row = EncodedRow((0, 0), ((0,),))
    tree = build_tree([row], [()], virtual_tokens=0, device=runner.model.device)
    try:
        runner.run(tree, PromptOutput(), tree.scored)
    except LayersRunAgainError:
        return replace(runner, shortened=False)
    return runner


@torch.no_grad()
def try_packing(runner: PackedModel, name: str) -> PackedModel | None:
    """The runner as it may be used: packed logits equal padded ones, and every sliding-window layer passes its window on.

    None: it may not be used. The very code that later calls take is tried.
    """
    model = runner.model
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        _say(name, f"it has layers of kind {sorted(kinds - {'full_attention', 'sliding_attention'})}")
        return None
    embedding = model.get_input_embeddings()
    table = table_of(embedding)
    ids = [(7 * i + 3) % table.shape[0] for i in range(11)]
    rows = [EncodedRow((-1, -2, *ids[:3]), ((1,),)), EncodedRow((-1, -2, *ids[3:8]), ((1,), (2, 1)))]
    tokens = embedding(torch.tensor(ids[8:10], device=model.device))[None].float()
    prompt = PromptOutput(tokens=tokens)
    try:
        expected = padded_logits(runner.plain, rows, prompt)
        tree = build_tree(rows, shared_heads(rows, 1), virtual_tokens=2, device=model.device)
        call = TreeCall(tree)
        runner = settle_last_layer(runner)
        found = runner.run(tree, prompt, tree.scored, call=call)
    except TRIAL_ERRORS as error:
        _say(name, f"{type(error).__name__}: {error}")
        return None
    windowed = sum(kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or [])
    if sum(window is not None for window in call.windows_seen) < windowed:
        _say(name, "its sliding-window layers do not tell their window")
        return None
    got = replace(expected, logits=found, position=tree.position).token_log_likelihoods()
    want = expected.token_log_likelihoods()
    # bfloat16 rounds logits of size 20 to 1/16.
    if (difference := disagreement(got, want, table.dtype, half=0.5)) is not None:
        _say(name, f"packed and padded rows differ by {difference:.2g}")
        return None
    return runner


def _say(name: str, reason: str) -> None:
    log.warning("%s: rows are padded and the prompt is run for each of them, because %s", name, reason)
