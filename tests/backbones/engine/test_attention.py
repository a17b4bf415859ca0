"""The two ways to attend, and the soft cap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM

from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.backbones.engine.attention import _attend_by_products
from softprompt.outputs import PromptOutput
from tests.backbones.causal.test_backbone import FRONT, naive_tokens, virtual_tokens
from tests.tiny.language import tiny_tokenizer
from tests.tolerances import assert_equal_up_to_rounding


def test_plain_products_give_what_the_fused_attention_gives() -> None:
    shapes = [(2, 3, 6, 8), (2, 3, 5, 8), (2, 3, 5, 8)]
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    mask = torch.where(torch.rand(1, 3, 6, 5) < 0.7, 0.0, float("-inf")).double()
    mask[..., 0] = 0.0
    found = _attend_by_products(q, k, v, mask, 0.3, None)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    assert_equal_up_to_rounding(found, expected)
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), [q, k, v]),
        torch.autograd.grad((expected * weights).sum(), [q, k, v]),
        strict=True,
    ):
        assert_equal_up_to_rounding(a, b)


def test_a_model_with_a_soft_cap_is_packed_and_equal() -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=64, initializer_range=0.2, sliding_window=8, attn_logit_softcapping=2.0,
    )  # fmt: skip
    model = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    backbone = CausalBackbone(model, tokenizer)
    assert backbone.packed
    tokens = virtual_tokens(backbone).detach().float().requires_grad_()
    found = backbone.score(FRONT, PromptOutput(tokens=tokens)).token_log_likelihoods()
    expected = naive_tokens(backbone, FRONT, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    a, b = (torch.autograd.grad(x.sum(), tokens)[0] for x in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
