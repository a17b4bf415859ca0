"""How a causal model can be run: trials on short rows tell, not the model's name.

The judge is the plain model, one sequence at a time. What is tried is the very code that runs later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.backbones.causal.key_values import key_value_shapes, own_key_values
from softprompt.backbones.causal.padded import padded_logits, padded_states
from softprompt.backbones.engine import (
    TRIAL_ERRORS,
    LayersRunAgainError,
    PackedModel,
    PrefixTree,
    TreeCall,
    build_tree,
    compile_prompt,
    disagreement,
    pack,
    shared_heads,
    words_disagree,
)
from softprompt.backbones.vocabulary import table_of
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits


@dataclass(frozen=True)
class Packing:
    """What the packed pass of a model can do.

    packs     whether rows can be packed, with their prompts shared
    prefixes  whether keys and values can stand in front of packed rows: key-value prefixes and compiled prompts
    reason    why it cannot, for people; None: it can do both
    """

    packs: bool
    prefixes: bool
    reason: str | None = None


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
def try_packing(runner: PackedModel) -> tuple[Packing, PackedModel]:
    """Whether packed logits and states equal those of each row alone, with virtual tokens, behind prefixes, and compiled.

    Also returned is the runner as it was tried, with its last layer settled. The very code that later calls take is tried.
    """
    if (reason := _foreign_layers(runner)) is not None:
        return Packing(packs=False, prefixes=False, reason=reason), runner
    try:
        runner = settle_last_layer(runner)
    except TRIAL_ERRORS as error:
        return Packing(packs=False, prefixes=False, reason=f"{type(error).__name__}: {error}"), runner
    if (reason := _packs(runner)) is not None:
        return Packing(packs=False, prefixes=False, reason=reason), runner
    reason = _prefixes(runner)
    return Packing(packs=True, prefixes=reason is None, reason=reason), runner


@torch.no_grad()
def can_pad(runner: PackedModel) -> bool:
    """Whether rows can be padded on the right without a change to their logits."""
    rows, prompt = _trial_rows(runner.model)
    try:
        found = padded_logits(runner.plain, rows, prompt)
        return _difference(runner, found, _alone(runner, rows, prompt)) is None
    except TRIAL_ERRORS:
        return False


@torch.no_grad()
def check_order(runner: PackedModel, name: str) -> None:
    """Raise ValueError for a model whose logits depend on tokens that stand behind: it does not predict the next one.

    runner  the model
    name    for people
    """
    model = runner.model
    rows, prompt = _trial_rows(model)
    row = replace(rows[1], targets=((1, 2, 3), (1, 4, 5)))  # the same up to its second word
    try:
        scored = padded_logits(runner.plain, [row], prompt)
        expected, found = (scored.logits[scored.position].split(3)[n][:2] for n in (0, 1))
    except TRIAL_ERRORS as error:
        raise ValueError(
            f"{name} ({type(model).__name__}) cannot be run as a causal language model ({type(error).__name__}: {error}):"
            " take another model"
        ) from error
    difference = disagreement(found, expected, table_of(model.get_input_embeddings()).dtype, half=0.1)
    if difference is not None:
        raise ValueError(
            f"{name} ({type(model).__name__}) is no causal language model: its logits at a token differ by {difference:.2g}"
            " with what stands behind that token. Take a decoder (Llama, GPT-2), or a masked language model"
        )


def _trial_rows(model: PreTrainedModel) -> tuple[list[EncodedRow], PromptOutput]:
    """Two rows of different lengths that share virtual tokens, and the prompt."""
    embedding = model.get_input_embeddings()
    ids = [(7 * i + 3) % table_of(embedding).shape[0] for i in range(11)]
    # The rows' last states are read, and some places are not, so that the shortened last layer is tried too.
    rows = [
        EncodedRow((-1, -2, *ids[:3]), ((1,),), read=(4,)),
        EncodedRow((-1, -2, *ids[3:8]), ((1,), (2, 1)), read=(6,)),
    ]
    tokens: Tensor = embedding(torch.tensor(ids[8:10], device=model.device))[None]
    return rows, PromptOutput(tokens=tokens if tokens.dtype == torch.float64 else tokens.float())


def _alone(runner: PackedModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
    """Logits that predict each target token, from one plain pass for each sequence, (n, V)."""
    singles = [replace(row, targets=(target,)) for row in rows for target in row.targets]
    scored = (padded_logits(runner.plain, [row], prompt) for row in singles)
    return torch.cat([each.logits[each.position] for each in scored])


def _difference(runner: PackedModel, found: TargetLogits, expected: Tensor) -> float | None:
    dtype = table_of(runner.model.get_input_embeddings()).dtype
    return words_disagree(found.logits[found.position], expected, dtype, half=0.2)


def _reason(why: Callable[[], str | None]) -> str | None:
    try:
        return why()
    except TRIAL_ERRORS as error:
        return f"{type(error).__name__}: {error}"


def _foreign_layers(runner: PackedModel) -> str | None:
    """Why some layers cannot be packed whatever they compute; None: all may be tried."""
    kinds = set(_layer_types(runner))
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"it has layers of kind {sorted(kinds - {'full_attention', 'sliding_attention'})}"
    return None


def _layer_types(runner: PackedModel) -> list[str]:
    return getattr(runner.model.config.get_text_config(), "layer_types", None) or []


def _packs(runner: PackedModel) -> str | None:
    """Why rows of the model cannot be packed; None: they can."""
    model = runner.model
    rows, prompt = _trial_rows(model)

    def windows() -> str | None:
        tree = build_tree(rows, shared_heads(rows, 1), virtual_tokens=2, device=model.device)
        call = TreeCall(tree)
        runner.run(tree, prompt, tree.scored, call=call)
        windowed = sum(kind == "sliding_attention" for kind in _layer_types(runner))
        if sum(window is not None for window in call.windows_seen) < windowed:
            return "its sliding-window layers do not tell their window"
        return None

    def logits() -> str | None:
        tree = pack(rows, prompt, model.device)
        found = _scored(runner.run(tree, prompt, tree.scored), tree)
        if (difference := _difference(runner, found, _alone(runner, rows, prompt))) is not None:
            return f"packed rows and rows alone differ by {difference:.2g}"
        return None

    def states() -> str | None:
        try:
            expected = torch.cat([padded_states(runner.plain, [row], prompt) for row in rows])
        except TRIAL_ERRORS:  # no head can read this model either way
            return None
        found = runner.states(pack(rows, prompt, model.device), prompt)
        difference = disagreement(found, expected, expected.dtype, half=0.5)
        return (
            None if difference is None else f"states of packed rows and rows alone differ by {difference:.2g}"
        )

    return _reason(windows) or _reason(logits) or _reason(states)


def _prefixes(runner: PackedModel) -> str | None:
    """Why keys and values cannot stand in front of packed rows; None: they can."""
    model = runner.model
    rows, prompt = _trial_rows(model)

    def compiled() -> str | None:
        short = compile_prompt(runner, rows, prompt)
        tree = pack(rows, short.prompt, model.device, compiled=short.heads)
        found = _scored(runner.run(tree, short.prompt, tree.scored), tree)
        difference = _difference(runner, found, _alone(runner, rows, prompt))
        return None if difference is None else f"compiled and plain prompts differ by {difference:.2g}"

    def prefixed() -> str | None:
        if not key_value_shapes(runner.plain):  # the model takes no prefix
            return None
        pairs = own_key_values(runner.plain, torch.tensor([1, 2, 3]))
        prefix = tuple((key.to(model.device), value.to(model.device)) for key, value in pairs)
        behind = replace(prompt, prefix=prefix)
        tree = pack(rows, behind, model.device)
        found = _scored(runner.run(tree, behind, tree.scored), tree)
        difference = _difference(runner, found, _alone(runner, rows, behind))
        return (
            None if difference is None else f"packed and plain key-value prefixes differ by {difference:.2g}"
        )

    return _reason(compiled) or _reason(prefixed)


def _scored(logits: Tensor, tree: PrefixTree) -> TargetLogits:
    return TargetLogits(
        logits=logits, position=tree.position, token=tree.token, target=tree.target, counts=tree.counts
    )
