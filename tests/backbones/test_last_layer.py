"""The last layer's feed-forward network runs where logits are asked for, and nowhere else."""

import torch
from torch import nn

from softprompt.backbones.causal import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.tiny import tiny_causal_lm, tiny_tokenizer


def test_only_the_labelled_places_reach_the_last_feed_forward_network() -> None:
    backbone = CausalBackbone(tiny_causal_lm("llama").requires_grad_(False), tiny_tokenizer())
    assert backbone.packed  # found out now: the trial runs the model too
    seen: dict[int, int] = {}

    def note(layer: int) -> None:
        def count(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            seen[layer] = args[0].shape[1]

        handles.append(backbone.model.model.layers[layer].mlp.gate_proj.register_forward_pre_hook(count))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    note(0)
    note(-1)
    rows = [EncodedRow((-1, -2, 3, 4), ((5,), (6,)), 0), EncodedRow((-1, -2, 7), ((5,), (6,)), 1)]
    backbone.score(rows, PromptOutput(tokens=torch.randn(1, 2, backbone.spec.width)))
    for handle in handles:
        handle.remove()

    assert seen == {0: 5, -1: 2}  # two virtual tokens once and three of text; one labelled place a row
    last = backbone.model.model.layers[-1].mlp
    assert not last._forward_pre_hooks
    assert not last._forward_hooks
