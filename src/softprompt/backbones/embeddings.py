"""Whether a model takes its tokens as vectors, as virtual tokens are: a trial on its own words tells."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from softprompt.backbones.engine import TRIAL_ERRORS

log = logging.getLogger(__name__)


@torch.no_grad()
def check_embeddings(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError if a model does more with token ids than to look them up in its table.

    Virtual tokens and rows of the table go in together as `inputs_embeds`. A model that scales what it has looked up
    (Marian, Pegasus) or has further tables for each layer (Gemma 3n) would silently give other answers then. One that looks
    for each vector in its table (Gemma 4) would fail at the first vector that has been trained.
    """
    config = model.config
    has_tables = any(hasattr(module, "get_per_layer_inputs") for module in model.modules())
    if has_tables and getattr(config.get_text_config(), "hidden_size_per_layer_input", None):
        # No trial: a search for vectors in a table of 262,000 rows takes gigabytes.
        raise ValueError(
            f"{name} ({type(model).__name__}) answers otherwise when its tokens come as rows of its embedding table: it has a"
            " further table that gives each token a vector for each layer, and virtual tokens have none: take another model"
        )
    table = model.get_input_embeddings()
    last = config.get_text_config().vocab_size - 1
    reserved = {
        getattr(config, "pad_token_id", None),  # CodeGen, RWKV and configs of several models name none
        getattr(config.get_text_config(), "pad_token_id", None),
    }  # has no position of its own in RoBERTa
    ids = torch.tensor([[i for i in range(last, -1, -1) if i not in reserved][:6]], device=model.device)
    beside = {"decoder_input_ids": ids[:, :2]} if config.is_encoder_decoder else {}
    weight = getattr(table, "weight", None)
    if weight is not None and not all(end.isfinite() for end in weight.aminmax()):
        raise ValueError(_not_finite(model, name))
    try:
        by_ids = model(input_ids=ids, **beside)[0]
    except TRIAL_ERRORS as error:
        log.warning("%s: six of its own tokens could not be run (%s: %s)", name, type(error).__name__, error)
        return
    try:
        rows = table(ids)  # (1, T, d)
        between = (rows + rows.roll(1, 1)) / 2  # virtual tokens are no rows once they are trained
        twice = {name: ids.expand(2, -1) for name, ids in beside.items()}
        by_vectors = model(inputs_embeds=torch.cat([rows, between]), **twice)[0][:1]
    except TRIAL_ERRORS as error:
        raise ValueError(
            f"{name} ({type(model).__name__}) does not take its tokens as vectors, among which virtual tokens stand "
            f"({type(error).__name__}: {error}): take another model"
        ) from error
    if not by_ids.isfinite().all() and (said := _not_finite(model, name)):
        raise ValueError(said)
    difference = (by_ids - by_vectors).abs().max().item()
    # The arithmetic is the same but for the size of the batch, so it should be next to 0.
    tolerance = 1e-5 if by_ids.dtype in (torch.float32, torch.float64) else 1e-2
    if not difference <= tolerance * by_ids.abs().max().item():
        raise ValueError(
            f"{name} ({type(model).__name__}) answers otherwise when its tokens come as rows of its embedding table: its "
            f"outputs differ by {difference:.2g} of {by_ids.abs().max().item():.2g}. It scales them itself or has more "
            "tables, and virtual tokens have no place there: take another model"
        )


def _not_finite(model: PreTrainedModel, name: str) -> str:
    """Which weights are NaN or infinite, as a sentence; empty: none is."""
    damaged = [key for key, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if not damaged:
        return ""
    rest = f" and {len(damaged) - 1} more weights" if len(damaged) > 1 else ""
    return (
        f"{name}: {damaged[0]}{rest} hold numbers that are NaN or infinite: the file is damaged, or its numbers do not fit"
        " into the precision that it was loaded in; copy it again, or give another dtype"
    )
