"""Rows behind a key-value prefix against a model whose cache was filled by hand, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from softprompt import PrefixTuning, SoftpromptWarning
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.model import carrying, stack_prompts
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput
from tests.naive import causal as naive_tokens
from tests.naive import prefix as naive
from tests.tiny.language import ARCHITECTURES, WINDOW, Architecture, tiny_tokenizer
from tests.tiny.task import tiny_backbone

P = 5
SLIDING = ("mistral", "gemma3_text")
LABELS = ((40,), (41, 42), (41, 42, 43), (50, 51))
ROWS = [  # a shared opening, rows of unequal length, labels of unequal length
    EncodedRow((20, 21, 30), LABELS),
    EncodedRow((20, 21, 31, 32, 33, 34, 35, 36, 37, 38, 39, 60, 61, 62), LABELS),
    EncodedRow((20, 21, 31, 32, 90), LABELS),
]

pytestmark = pytest.mark.filterwarnings("ignore:.* layers attend to the last:softprompt.SoftpromptWarning")


def random_prefix(backbone: CausalBackbone, length: int = P, seed: int = 1) -> tuple[KeyValue, ...]:
    """Keys and values for each layer, (1, Hkv, P, D), float64, each a leaf."""
    generator = torch.Generator().manual_seed(seed)

    def part(heads: int, size: int) -> Tensor:
        return torch.randn(1, heads, length, size, generator=generator, dtype=torch.float64).requires_grad_()

    return tuple((part(h, d), part(h, d)) for h, d in backbone.spec.key_values)


def leaves(prefix: Sequence[KeyValue]) -> list[Tensor]:
    return [part for pair in prefix for part in pair]


def expected_of(backbone: CausalBackbone, rows: Sequence[EncodedRow], prefix: Sequence[KeyValue]) -> Tensor:
    return torch.cat(
        [naive.target_log_likelihood(backbone.model, row, t, prefix) for row in rows for t in row.targets]
    )


def assert_same(
    backbone: CausalBackbone,
    rows: Sequence[EncodedRow],
    prefix: tuple[KeyValue, ...],
    tolerance: float = 1e-10,
) -> None:
    found = backbone.score(rows, PromptOutput(prefix=prefix)).token_log_likelihoods()
    expected = expected_of(backbone, rows, prefix)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), leaves(prefix)),
        torch.autograd.grad((expected * weights).sum(), leaves(prefix)),
        strict=True,
    ):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_behind_a_prefix_equal_a_cache_filled_by_hand(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    assert backbone.packed
    assert_same(backbone, ROWS, random_prefix(backbone))
    assert_same(backbone, ROWS[:1], random_prefix(backbone, length=1))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_hidden_states_behind_a_prefix_equal_a_cache_filled_by_hand(
    architecture: Architecture, packed: bool
) -> None:
    backbone = tiny_backbone(architecture)
    backbone = CausalBackbone(backbone.model, backbone.tokenizer, packed=packed)
    prefix = random_prefix(backbone)
    rows = [EncodedRow(row.context, read=(0, len(row.context) - 1)) for row in ROWS]
    found = backbone.states(rows, PromptOutput(prefix=prefix))
    expected = torch.cat([naive.states(backbone.model, row.context, prefix)[list(row.read)] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), leaves(prefix)),
        torch.autograd.grad(expected.square().sum(), leaves(prefix)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@pytest.mark.parametrize("architecture", SLIDING)
def test_a_prefix_longer_than_the_sliding_window_does_what_the_model_does(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    found = backbone.score(ROWS, PromptOutput(prefix=random_prefix(backbone, 2 * WINDOW)))
    expected = expected_of(backbone, ROWS, random_prefix(backbone, 2 * WINDOW))
    torch.testing.assert_close(found.token_log_likelihoods(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_gradient_checkpointing_gives_a_prefix_the_same_gradient(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    assert_same(backbone.with_settings(gradient_checkpointing=True), ROWS, random_prefix(backbone))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3_text"])
def test_the_padded_path_carries_a_prefix_too(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    padded = CausalBackbone(backbone.model, backbone.tokenizer, packed=False)
    assert_same(padded, ROWS, random_prefix(backbone))


def test_a_model_that_cannot_be_packed_carries_a_prefix() -> None:
    config = BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    backbone = CausalBackbone(BloomForCausalLM(config).double().eval(), tiny_tokenizer(), packed=False)
    # Bloom takes its softmax in float32, whatever it is given.
    assert_same(backbone, ROWS, random_prefix(backbone), tolerance=1e-4)
    prefix = random_prefix(backbone)
    for row in ROWS:
        found = backbone.generate([row], PromptOutput(prefix=prefix), max_new_tokens=4, do_sample=False)
        assert found == [naive.greedy(backbone.model, row.context, prefix, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_prefixes_of_different_lengths_in_one_batch_equal_each_alone(
    architecture: Architecture, packed: bool
) -> None:
    backbone = tiny_backbone(architecture)
    backbone = CausalBackbone(backbone.model, backbone.tokenizer, packed=packed)
    prefixes = [random_prefix(backbone, length, seed=length) for length in (5, 2, 9)]
    prompt = stack_prompts([PromptOutput(prefix=prefix) for prefix in prefixes])
    rows = [row for n in (1, 0, 2, 1) for row in carrying(ROWS[: n + 1], n)]
    expected = torch.cat([expected_of(backbone, [row], prefixes[row.prompt]) for row in rows])
    for given in (prompt, backbone.compile(rows, prompt)):
        found = backbone.score(rows, given).token_log_likelihoods()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found = backbone.score(rows[:2], prompt).token_log_likelihoods()  # prompt 1 alone
    gradients = torch.autograd.grad(
        found.sum(), [part for p in prefixes for part in leaves(p)], allow_unused=True
    )
    sizes = [0.0 if g is None else g.abs().max().item() for g in gradients]
    layers = 2 * len(backbone.spec.key_values)
    assert max(sizes[:layers]) == max(sizes[2 * layers :]) == 0 < min(sizes[layers : 2 * layers])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_prefixes_and_virtual_tokens_in_one_batch_equal_each_alone(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    prefix = random_prefix(backbone)
    tokens = torch.randn(3, backbone.spec.width, dtype=torch.float64).requires_grad_()
    front = [EncodedRow((-1, -2, -3, *row.context), row.targets) for row in ROWS]
    prompt = stack_prompts([PromptOutput(tokens=tokens[None]), PromptOutput(prefix=prefix)])
    rows = [front[0], *carrying(ROWS, 1), *front[1:]]
    by_tokens = [
        [naive_tokens.target_log_likelihood(backbone.model, row, t, tokens) for t in row.targets]
        for row in front
    ]
    expected = torch.cat([*by_tokens[0], expected_of(backbone, ROWS, prefix), *by_tokens[1], *by_tokens[2]])
    for given in (prompt, backbone.compile(rows, prompt)):
        found = backbone.score(rows, given).token_log_likelihoods()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found = backbone.score(rows, prompt).token_log_likelihoods()
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), [tokens, *leaves(prefix)]),
        torch.autograd.grad(expected.square().sum(), [tokens, *leaves(prefix)]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2", "mistral", "gemma3_text"])
def test_a_batch_generates_behind_a_prefix_what_each_row_generates_alone(
    architecture: Architecture, packed: bool
) -> None:
    backbone = tiny_backbone(architecture)
    backbone = CausalBackbone(backbone.model, backbone.tokenizer, packed=packed)
    prefix = random_prefix(backbone)
    kept = [part.detach().clone() for part in leaves(prefix)]
    prompt = PromptOutput(prefix=prefix)
    expected = [naive.greedy(backbone.model, row.context, prefix, 6) for row in ROWS]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert backbone.generate(ROWS, prompt, **options) == expected
    with torch.no_grad():
        compiled = backbone.compile(ROWS, prompt)
    for _ in range(2):  # a cache that was generated from can be used again
        assert backbone.generate(ROWS, compiled, **options) == expected
    assert all(torch.equal(a, b) for a, b in zip(leaves(prefix), kept, strict=True))


def test_beams_behind_a_prefix_are_the_same_on_both_paths() -> None:
    backbone = tiny_backbone()
    prompt = PromptOutput(prefix=random_prefix(backbone))
    options = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    padded = CausalBackbone(backbone.model, backbone.tokenizer, packed=False)
    found = padded.generate(ROWS, prompt, **options)
    assert len(found) == 6
    assert found == backbone.generate(ROWS, prompt, **options)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_behind_a_prefix_may_be_asked_for_without_a_cache_and_with_a_static_one(
    architecture: Architecture,
) -> None:
    backbone = tiny_backbone(architecture)
    prompt = PromptOutput(prefix=random_prefix(backbone))
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = backbone.generate(ROWS, prompt, **options)
    assert backbone.generate(ROWS, prompt, use_cache=False, **options) == expected
    assert backbone.generate(ROWS, prompt, cache_implementation="static", **options) == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_models_own_keys_and_values_of_a_text_stand_for_the_text(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    spec = backbone.spec
    assert spec.key_values_of is not None
    text = torch.tensor([7, 20, 21])
    prefix = spec.key_values_of(text)
    assert [tuple(key.shape) for key, _ in prefix] == [(1, heads, 3, size) for heads, size in spec.key_values]
    assert all(part.dtype == torch.float32 and not part.requires_grad for pair in prefix for part in pair)
    found = backbone.score(ROWS, PromptOutput(prefix=prefix)).token_log_likelihoods()
    with_text = [EncodedRow((*text.tolist(), *row.context), row.targets) for row in ROWS]
    expected = backbone.score(with_text, PromptOutput()).token_log_likelihoods()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the prefix is rounded to float32


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("llama", (2, 12)), ("qwen3", (2, 16)), ("gpt2", (4, 12)), ("gemma3_text", (2, 16))],
)
def test_the_shape_of_a_prefix_is_that_of_the_cache(
    architecture: Architecture, shape: tuple[int, int]
) -> None:
    backbone = tiny_backbone(architecture)
    assert backbone.spec.key_values == (shape,) * backbone.model.config.num_hidden_layers


def test_one_key_value_head_for_all_queries_is_seen_though_no_config_field_has_its_number() -> None:
    config = FalconConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True,
        new_decoder_architecture=False,
    )  # fmt: skip
    backbone = CausalBackbone(FalconForCausalLM(config).double().eval(), tiny_tokenizer())
    assert backbone.spec.key_values == ((1, 8), (1, 8))
    assert_same(backbone, ROWS, random_prefix(backbone))


def test_a_prefix_for_a_model_without_keys_and_values_is_refused() -> None:
    config = MambaConfig(vocab_size=128, hidden_size=16, num_hidden_layers=1, state_size=4)
    spec = CausalBackbone(MambaForCausalLM(config).eval(), tiny_tokenizer(), packed=False).spec
    assert spec.key_values == ()
    assert spec.key_values_of is None
    assert "keys and values of its own" in (PrefixTuning().unsupported(spec) or "")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # torch.compile's own
def test_torch_compile_gives_a_prefix_the_same_loss_and_gradient() -> None:
    backbone = tiny_backbone("llama", dtype=torch.float32)
    prefix = tuple((k.detach().float(), v.detach().float()) for k, v in random_prefix(backbone))
    leaves = [part.requires_grad_() for pair in prefix for part in pair]
    torch._dynamo.reset()
    found, expected = (
        b.score(ROWS, PromptOutput(prefix=prefix)).token_log_likelihoods()
        for b in (backbone.with_settings(compiled=True), backbone)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(*(torch.autograd.grad(x.sum(), leaves) for x in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.filterwarnings("error")
def test_a_sliding_window_that_does_not_reach_back_to_the_prefix_is_a_warning() -> None:
    backbone = tiny_backbone("gemma3_text")
    prompt = PromptOutput(prefix=random_prefix(backbone, 4))
    short = [EncodedRow((20, 21, 30), ((40, 41),))]  # 4 + 3 + 1 = WINDOW
    long = [EncodedRow((20, 21, 30, 31), ((40, 41),))]
    backbone.score(short, prompt)
    said = "2 of 3 layers attend to the last 8 tokens only: in long rows they do not see all of a prefix of 4"
    for call in (backbone.score, backbone.compile):
        with pytest.warns(SoftpromptWarning, match=said):
            call(long, prompt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_backbone("llama").score(long, PromptOutput(prefix=random_prefix(tiny_backbone("llama"), 4)))
        backbone.compile(long, PromptOutput(tokens=torch.zeros(1, 9, 48)))  # no prefix of its own
