"""The end of the last layer runs only at the positions that are read."""

import pytest
import torch
from torch import nn

from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.tiny.encoders import CLS, SEP, Encoder, encoder_backbone
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer


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


@pytest.mark.parametrize(
    ("architecture", "end"),
    [("bert", "attention.output.dense"), ("distilbert", "ffn.lin1"), ("modernbert", "mlp.Wi")],
)
def test_of_an_encoder_only_the_places_that_are_read_reach_the_end_of_the_last_layer(
    architecture: Encoder, end: str
) -> None:
    backbone = encoder_backbone(architecture, head=False)
    assert backbone.packed
    width = backbone.spec.width  # it too runs a token
    seen: list[int] = []
    ends = [module for name, module in backbone.model.named_modules() if name.endswith(end)]
    handles = [
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
        for module in (ends[0], ends[-1])
    ]
    rows = [EncodedRow((CLS, -1, -2, 3, SEP), read=(0,)), EncodedRow((CLS, -1, -2, 7, 8, SEP), read=(0, 3))]
    backbone.states(rows, PromptOutput(tokens=torch.randn(1, 2, width).double()))
    for handle in handles:
        handle.remove()

    assert seen == [11, 3]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in backbone.model.modules())
