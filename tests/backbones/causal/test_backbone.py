"""Packed rows behind a shared prompt against plain concatenation, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt import SoftpromptWarning, load_backbone
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import causal as naive
from tests.tiny.architectures import tiny_model
from tests.tiny.language import ARCHITECTURES, WINDOW, tiny_causal_lm, tiny_tokenizer

P = 5

# In mistral every layer has a window, and some rows are longer than all of them reach.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* attend to the last .* together they reach:softprompt.SoftpromptWarning"
)


def backbone_of(architecture: str, **settings: object) -> CausalBackbone:
    model = tiny_causal_lm(architecture, **settings).requires_grad_(False)  # type: ignore[arg-type]
    return CausalBackbone(model, tiny_tokenizer())


def virtual_tokens(backbone: CausalBackbone, prompts: int = 1, length: int = P, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (prompts, length, backbone.spec.width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def front(
    *ids: int, prompt: int = 0, length: int = P, targets: tuple[tuple[int, ...], ...] = ()
) -> EncodedRow:
    return EncodedRow(tuple(-1 - k for k in range(length)) + ids, targets, prompt=prompt)


LABELS = ((40,), (41, 42), (41, 42, 43), (50, 51))
FRONT = [  # a shared opening, rows of unequal length, labels of unequal length
    front(20, 21, 30, targets=LABELS),
    front(20, 21, 31, 32, 33, 34, 35, 36, 37, 38, 39, 60, 61, 62, targets=LABELS),
    front(20, 21, 31, 32, 90, targets=LABELS),
]
INLINE = [
    EncodedRow((-1, -2, 20, 21, -3, -4, -5, 22), ((60, 61, 62),)),
    EncodedRow((-1, -2, 25, -3, -4, -5, 22), ((63,),)),
    EncodedRow((30, -1, -2, -3, -4, -5), ((63, 9),)),
]
FIRST_LABEL = [front(targets=((30, 31, 32, 33),)), front(targets=((30, 35),)), front(targets=((36,),))]
SINGLE = [front(20, 21, targets=LABELS)]
LONG = [front(*range(20, 20 + n), targets=((90, 91),)) for n in (30, 17, 1)]
LAYOUTS = {"front": FRONT, "inline": INLINE, "first label": FIRST_LABEL, "single row": SINGLE, "long": LONG}


@torch.no_grad()
def naive_logits(
    backbone: CausalBackbone, rows: list[EncodedRow], tokens: Tensor, offset: Tensor | None
) -> Tensor:
    """Of each target token the logits that predict it, (M, V)."""
    found = []
    for row in rows:
        own = None if offset is None else offset[row.prompt]
        for target in row.targets:
            logits = naive.logits(backbone.model, row.context + target[:-1], tokens[row.prompt], own)
            found.append(logits[-len(target) :])
    return torch.cat(found)


def naive_tokens(
    backbone: CausalBackbone, rows: list[EncodedRow], tokens: Tensor, offset: Tensor | None = None
) -> Tensor:
    return torch.cat([
        naive.target_log_likelihood(backbone.model, row, t, tokens[row.prompt], None if offset is None else offset[row.prompt])
        for row in rows
        for t in row.targets
    ])  # fmt: skip


def assert_same(
    backbone: CausalBackbone, rows: list[EncodedRow], tokens: Tensor, offset: Tensor | None = None
) -> None:
    leaves = [tokens] if offset is None else [tokens, offset]
    scored = backbone.score(rows, PromptOutput(tokens=tokens, offset=offset))
    logits = scored.logits[scored.position]  # (M, V)
    torch.testing.assert_close(logits, naive_logits(backbone, rows, tokens, offset), rtol=1e-10, atol=1e-10)
    packed = scored.token_log_likelihoods()
    expected = naive_tokens(backbone, rows, tokens, offset)
    torch.testing.assert_close(packed, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((packed * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_equal_plain_concatenation(architecture: str, layout: str) -> None:
    backbone = backbone_of(architecture)
    assert backbone.packed
    assert_same(backbone, LAYOUTS[layout], virtual_tokens(backbone))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_of_different_lengths_in_one_batch_equal_each_alone(architecture: str) -> None:
    backbone = backbone_of(architecture)
    tokens = virtual_tokens(backbone, prompts=3)
    lengths = torch.tensor([5, 2, 4])
    rows = [
        front(20, 21, prompt=1, length=2, targets=LABELS),
        front(20, 21, 30, prompt=0, targets=LABELS),
        front(22, prompt=1, length=2, targets=LABELS),
        front(23, 24, 25, prompt=2, length=4, targets=LABELS),  # the only row of its prompt
        front(20, prompt=0, targets=LABELS),
    ]
    packed = backbone.score(rows, PromptOutput(tokens=tokens, lengths=lengths)).token_log_likelihoods()
    expected = naive_tokens(backbone, rows, tokens)
    torch.testing.assert_close(packed, expected, rtol=1e-10, atol=1e-10)
    start = sum(len(t) for t in LABELS)
    (gradient,) = torch.autograd.grad(packed[:start].sum(), [tokens])  # the first row's alone
    assert gradient[1, :2].abs().min() > 0
    assert gradient[0].abs().max() == gradient[2].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_offsets_follow_the_text_not_the_prompt(architecture: str) -> None:
    backbone = backbone_of(architecture)
    offset = virtual_tokens(backbone, length=6, seed=2)  # shorter than some rows: nothing is added beyond
    assert_same(backbone, FRONT, virtual_tokens(backbone), offset)
    assert_same(backbone, INLINE, virtual_tokens(backbone), offset)


def doubled_tanh(embeds: Tensor) -> Tensor:
    """A function of each token alone."""
    return 2 * torch.tanh(embeds)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_offsets_of_tokens_are_added_wherever_the_token_stands(packed: bool) -> None:
    backbone = backbone_of("gemma3_text")
    backbone = CausalBackbone(backbone.model, backbone.tokenizer, packed=packed)
    tokens, offset = (
        virtual_tokens(backbone, prompts=2),
        virtual_tokens(backbone, prompts=2, length=6, seed=2),
    )
    rows = FRONT + [front(20, 30, n, prompt=1, targets=LABELS) for n in (7, 30)]
    for functions in ((doubled_tanh, None), (torch.sin, doubled_tanh)):
        prompt = PromptOutput(tokens=tokens, offset=offset, token_offset=functions)
        found = backbone.score(rows, prompt).token_log_likelihoods()
        expected = torch.cat([
            naive.target_log_likelihood(
                backbone.model, row, t, tokens[row.prompt], offset[row.prompt], functions[row.prompt]
            )
            for row in rows for t in row.targets
        ])  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_generated_tokens_are_shifted_as_in_training(architecture: str, packed: bool) -> None:
    backbone = backbone_of(architecture)
    backbone = CausalBackbone(backbone.model, backbone.tokenizer, packed=packed)
    tokens = virtual_tokens(backbone).detach()
    offset = virtual_tokens(backbone, length=7, seed=2).detach()  # ends among the new tokens
    rows = [front(20, 21, 30), front(20, 21, 31, 32, 33), front(20, 90)]
    prompt = PromptOutput(tokens=tokens, offset=offset, token_offset=(doubled_tanh,))
    found = backbone.generate(rows, prompt, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    shifts = {"offset": offset[0], "token_offset": doubled_tanh}
    assert found == [naive.greedy(backbone.model, row.context, tokens[0], 6, **shifts) for row in rows]
    without = backbone.generate(
        rows, PromptOutput(tokens=tokens), max_new_tokens=6, do_sample=False, eos_token_id=-1
    )
    assert found != without
    beams = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    together = backbone.generate(rows, prompt, **beams)
    assert together == [sequence for row in rows for sequence in backbone.generate([row], prompt, **beams)]
    hooks = backbone.model.get_input_embeddings()._forward_hooks
    assert not hooks


def test_generation_goes_on_behind_virtual_tokens_at_the_end() -> None:
    backbone = backbone_of("llama")
    tokens = virtual_tokens(backbone).detach()
    rows = [EncodedRow((-1, -2, 20, 21, -3, -4, -5)), EncodedRow((-1, -2, 25, -3, -4, -5))]
    found = backbone.generate(
        rows, PromptOutput(tokens=tokens), max_new_tokens=6, do_sample=False, eos_token_id=-1
    )
    assert found == [naive.greedy(backbone.model, row.context, tokens[0], 6) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_compiled_prompt_gives_the_same_logits_in_every_later_call(architecture: str) -> None:
    backbone = backbone_of(architecture)
    tokens = virtual_tokens(backbone, prompts=2)
    prompt = PromptOutput(tokens=tokens.detach(), lengths=torch.tensor([5, 3]))
    rows = FRONT + [front(22, n, prompt=1, length=3, targets=LABELS) for n in (7, 8)]
    compiled = backbone.compile(rows, prompt)
    assert [len(head) for head in compiled.heads] == [7, 4]
    for batch in (rows, rows[1:2], rows[::-1]):
        found = backbone.score(batch, compiled).token_log_likelihoods()
        torch.testing.assert_close(found, naive_tokens(backbone, batch, tokens), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="does not begin with the compiled prompt"):
        backbone.score([front(99, targets=LABELS)], compiled)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_prompt_longer_than_the_sliding_window_does_what_the_model_does(architecture: str) -> None:
    backbone = backbone_of(architecture)
    length = 2 * WINDOW + 3
    tokens = virtual_tokens(backbone, length=length)
    prompt = PromptOutput(tokens=tokens.detach())
    rows = [front(*row.context[P:], length=length, targets=LABELS) for row in FRONT]
    assert_same(backbone, rows, tokens)
    compiled = backbone.compile(rows, prompt)
    found = backbone.score(rows, compiled).token_log_likelihoods()
    torch.testing.assert_close(found, naive_tokens(backbone, rows, tokens), rtol=1e-10, atol=1e-10)
    options = {"max_new_tokens": WINDOW + 2, "do_sample": False, "eos_token_id": -1}
    expected = [naive.greedy(backbone.model, row.context, tokens[0], WINDOW + 2) for row in rows]
    assert (
        backbone.generate(rows, prompt, **options) == backbone.generate(rows, compiled, **options) == expected
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_virtual_tokens_that_no_sliding_window_reaches_are_without_effect_and_a_warning(packed: bool) -> None:
    backbone = backbone_of("mistral")
    backbone = CausalBackbone(backbone.model, backbone.tokenizer, packed=packed)
    tokens = virtual_tokens(backbone)
    prompt = PromptOutput(tokens=tokens)
    reach = 2 * (WINDOW - 1)  # of two layers
    near = front(*range(20, 20 + reach), targets=((40, 41),))
    far = front(*range(20, 20 + reach + 1), targets=((40, 41),))
    (seen,) = torch.autograd.grad(backbone.score([near], prompt).logits[0].square().sum(), tokens)
    assert seen[0, -1].abs().max() > 0
    assert seen[0, :-1].abs().max() == 0
    said = "2 of 2 layers attend to the last 8 tokens only: together they reach 14 tokens back"
    with pytest.warns(SoftpromptWarning, match=said) as warned:
        (lost,) = torch.autograd.grad(backbone.score([near, far, far], prompt).logits[2:].sum(), tokens)
    assert lost.abs().max() == 0
    assert len(warned) == 1
    with pytest.warns(SoftpromptWarning, match=said):
        backbone.compile([far], prompt)
    # Read near its virtual tokens as well, without any, or through one layer that sees everything, nothing is lost.
    backbone.states([replace(far, targets=(), read=(P, len(far.context) - 1))], prompt)
    backbone.score([replace(far, context=far.context[P:])], prompt)
    backbone_of("gemma3_text").score([far], prompt)


@pytest.mark.slow
@pytest.mark.parametrize("compile_first", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_generates_what_each_row_generates_alone(architecture: str, compile_first: bool) -> None:
    backbone = backbone_of(architecture)
    tokens = virtual_tokens(backbone, prompts=2).detach()
    prompt = PromptOutput(tokens=tokens, lengths=torch.tensor([5, 3]))
    rows = [front(*row.context[P:]) for row in FRONT] + [
        front(22, n, 9, 8, prompt=1, length=3) for n in (7, 8)
    ]
    found = backbone.generate(
        rows,
        backbone.compile(rows, prompt) if compile_first else prompt,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=-1,
    )
    assert found == [naive.greedy(backbone.model, row.context, tokens[row.prompt], 12) for row in rows]


BEAMS = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_beams_and_samples_are_those_of_transformers_own_generate(architecture: str) -> None:
    backbone = backbone_of(architecture)
    tokens = virtual_tokens(backbone).detach()
    prompt = PromptOutput(tokens=tokens)
    rows = [front(*row.context[P:]) for row in (*FRONT, LONG[0])]  # the last is longer than a window
    compiled = backbone.compile(rows, prompt)

    def plain(row: EncodedRow, **settings: Any) -> list[list[int]]:
        words = backbone.model.get_input_embeddings()(torch.tensor(row.context[P:]))
        joined = torch.cat([tokens[0], words])[None]  # (1, P + T, d)
        mask = torch.ones(joined.shape[:2], dtype=torch.long)
        found = backbone.model.generate(  # type: ignore[operator]
            inputs_embeds=joined, attention_mask=mask, pad_token_id=0, eos_token_id=-1, **settings
        )
        return list(found.tolist())

    beams = {"max_new_tokens": 6, **BEAMS}
    expected = [sequence for row in rows for sequence in plain(row, **beams)]
    assert backbone.generate(rows, prompt, eos_token_id=-1, **beams) == expected
    assert backbone.generate(rows, compiled, eos_token_id=-1, **beams) == expected
    for row in rows:
        sample = {"max_new_tokens": 6, "do_sample": True, "top_k": 20}
        torch.manual_seed(0)
        drawn = plain(row, **sample)
        torch.manual_seed(0)
        assert backbone.generate([row], compiled, eos_token_id=-1, **sample) == drawn


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_static_cache_gives_the_same_words(architecture: str) -> None:
    backbone = backbone_of(architecture)
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    rows = [front(*row.context[P:]) for row in (*FRONT, LONG[0])]
    greedy = {"max_new_tokens": 12, "do_sample": False}
    for options in (greedy, {"max_new_tokens": 6, **BEAMS}):
        expected = backbone.generate(rows, prompt, eos_token_id=-1, **options)
        static = {"cache_implementation": "static", **options}
        assert backbone.generate(rows, prompt, eos_token_id=-1, **static) == expected
    padded = CausalBackbone(backbone.model, backbone.tokenizer, packed=False)
    expected = padded.generate(rows, prompt, eos_token_id=-1, **greedy)
    assert padded.generate(rows, prompt, eos_token_id=-1, cache_implementation="static", **greedy) == expected


def test_a_model_whose_generate_takes_no_embeddings_is_refused_with_that_reason() -> None:
    model = tiny_model("openai-gpt")
    backbone = load_backbone(model, tokenizer=tiny_tokenizer())
    with pytest.raises(
        ValueError, match="cannot generate: transformers' generate takes token ids alone for this"
    ):
        backbone.generate(
            SINGLE, PromptOutput(tokens=torch.zeros(1, 2, backbone.spec.width)), max_new_tokens=2
        )


def test_generation_refuses_what_a_filled_cache_cannot_do() -> None:
    backbone = backbone_of("llama")
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    with pytest.raises(ValueError, match="max_new_tokens"):
        backbone.generate(SINGLE, prompt, max_length=20)
    with pytest.raises(ValueError, match="sets \\['attention_mask'\\] itself"):
        backbone.generate(SINGLE, prompt, attention_mask=torch.ones(1, 1))
    with pytest.raises(ValueError, match="'quantized': behind a prompt it may be 'dynamic' or 'static'"):
        backbone.generate(SINGLE, prompt, max_new_tokens=2, cache_implementation="quantized")
    with pytest.raises(
        ValueError, match="the size of a static cache is fixed from the beginning: give max_new"
    ):
        backbone.generate(SINGLE, prompt, cache_implementation="static")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_nothing_but_memory(architecture: str) -> None:
    backbone = backbone_of(architecture)
    checkpointed = backbone.with_settings(gradient_checkpointing=True)
    assert_same(checkpointed, FRONT, virtual_tokens(backbone))

    def kept(backbone: CausalBackbone) -> int:
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: numbers.append(t.numel()) or t, lambda t: t):
            backbone.score(FRONT, PromptOutput(tokens=virtual_tokens(backbone)))
        return sum(numbers)

    assert kept(checkpointed) < 0.7 * kept(backbone)
    assert not any("forward" in vars(module) for module in backbone.model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_tied_and_untied_heads_are_scored_alike(architecture: str, tied: bool) -> None:
    backbone = backbone_of(architecture, tied=tied)
    assert_same(backbone, FRONT, virtual_tokens(backbone))


def test_the_model_is_left_as_it_was() -> None:
    backbone = backbone_of("gemma3_text")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    config = backbone.model.config.to_dict()
    tokens = virtual_tokens(backbone)
    backbone.score(FRONT, PromptOutput(tokens=tokens)).token_log_likelihoods().sum().backward()
    backbone.generate(FRONT, PromptOutput(tokens=tokens.detach()), max_new_tokens=3)
    assert backbone.model.config._attn_implementation == "sdpa"
    assert backbone.model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_the_gradient_reaches_the_prompt_after_an_evaluation_under_no_grad() -> None:
    backbone = backbone_of("llama")
    tokens = virtual_tokens(backbone)
    with torch.no_grad():
        backbone.score(FRONT, PromptOutput(tokens=tokens))
    assert_same(backbone, FRONT, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_padded_path_gives_the_same(architecture: str) -> None:
    backbone = backbone_of(architecture)
    padded = CausalBackbone(backbone.model, backbone.tokenizer, packed=False)
    offset = virtual_tokens(backbone, length=6, seed=2)
    assert_same(padded, FRONT, virtual_tokens(backbone), offset)
    assert_same(padded, INLINE, virtual_tokens(backbone), offset)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_padded_path_generates_the_same(architecture: str) -> None:
    backbone = backbone_of(architecture)
    padded = CausalBackbone(backbone.model, backbone.tokenizer, packed=False)
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    assert padded.generate(FRONT, prompt, **options) == backbone.generate(FRONT, prompt, **options)


def test_a_model_that_cannot_be_packed_is_found_out() -> None:
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    bloom = BloomForCausalLM(
        BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)
    ).eval()
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    ).eval()
    for model in (bloom, mamba):
        backbone = CausalBackbone(model.requires_grad_(False), tokenizer)
        assert not backbone.packed
        tokens = virtual_tokens(backbone)
        found = backbone.score(FRONT, PromptOutput(tokens=tokens)).token_log_likelihoods()
        expected = naive_tokens(backbone, FRONT, tokens.float())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_virtual_tokens_that_the_prompt_does_not_have_are_an_error() -> None:
    backbone = backbone_of("llama")
    with pytest.raises(ValueError, match="asks for virtual token 4, prompt 0 has 4"):
        backbone.score(FRONT, PromptOutput(tokens=virtual_tokens(backbone, length=4)))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # torch.compile's own
def test_torch_compile_gives_the_same_and_compiles_once_for_all_layouts() -> None:
    backbone = backbone_of("llama", dtype=torch.float32)
    assert backbone.packed
    compiled = backbone.with_settings(compiled=True)
    tokens = virtual_tokens(backbone).detach().float().requires_grad_()
    torch._dynamo.reset()
    frames = []
    for rows in (FRONT, [*FRONT, *FRONT[:1]], LONG, FRONT[:2], SINGLE):
        found, expected = (
            b.score(rows, PromptOutput(tokens=tokens)).token_log_likelihoods() for b in (compiled, backbone)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        a, b = (torch.autograd.grad(x.sum(), tokens)[0] for x in (found, expected))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert frames[-1] == frames[2]
