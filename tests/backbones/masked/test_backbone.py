"""Encoders: packed rows with masks against plain concatenation, one row at a time, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache

from softprompt.backbones.engine.tree import build_tree
from softprompt.backbones.masked.backbone import MaskedBackbone
from softprompt.backbones.masked.rows import RowsCall, rows_attention
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput
from tests.naive import masked as naive
from tests.tiny.encoders import CLS, ENCODERS, SEP, Encoder, encoder_backbone, encoder_tokenizer, exact_rotary
from tests.tiny.language import POSITIONS, WINDOW

__all__ = ["exact_rotary"]
pytestmark = pytest.mark.usefixtures("exact_rotary")

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
PACKED: tuple[Encoder, ...] = ("bert", "roberta", "modernbert", "distilbert", "albert", "eurobert")
MASK = int(encoder_tokenizer().mask_token_id)
P = 4
SOFT = tuple(-1 - k for k in range(P))
WORDS = ((40,), (41,), (42, 43), (44, 45, 46), (47, 48))  # three lengths: three sequences

ROWS = [
    EncodedRow((CLS, *SOFT, 20, 21, 22, MASK, 23, SEP), WORDS),
    EncodedRow((CLS, *SOFT, *range(60, 60 + 2 * WINDOW), MASK, SEP), WORDS),  # longer than a window
    EncodedRow(
        (CLS, 30, -1, -2, MASK, -3, 31, SEP, 32, 33, -4, SEP), WORDS[:1]
    ),  # slots beside the mask; a pair
    EncodedRow((CLS, MASK, *SOFT, 24, MASK, SEP), ((50, 51), (52, 53))),  # as many masks as tokens
    EncodedRow((MASK,), ((9,),)),
]


def virtual_tokens(backbone: MaskedBackbone, prompts: int = 1, length: int = P, seed: int = 1) -> Tensor:
    shape = (prompts, length, backbone.spec.width)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def prefixes(backbone: MaskedBackbone, prompts: int = 1, length: int = 3) -> tuple[KeyValue, ...]:
    generator = torch.Generator().manual_seed(2)

    def part(heads: int, size: int) -> Tensor:
        shape = (prompts, heads, length, size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return tuple((part(*shape), part(*shape)) for shape in backbone.spec.key_values)


def types_of(backbone: MaskedBackbone, row: EncodedRow) -> list[int] | None:
    """1 behind the first separator, where the model has types."""
    if backbone.name not in ("tiny/bert", "tiny/albert"):
        return None
    return [int(SEP in row.context[:i]) for i in range(len(row.context))]


def of_row(prompt: PromptOutput, row: EncodedRow) -> dict[str, Any]:
    """What the naive implementation takes of a prompt: the part that this row carries."""
    g = row.prompt
    length = None if prompt.lengths is None else int(prompt.lengths[g])
    prefix = prompt.prefix and [(k[g, :, :length], v[g, :, :length]) for k, v in prompt.prefix]
    tokens = torch.zeros(0) if prompt.tokens is None else prompt.tokens[g]
    return {"tokens": tokens, "offset": None if prompt.offset is None else prompt.offset[g], "prefix": prefix}


def naive_scores(backbone: MaskedBackbone, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
    return torch.cat([
        naive.target_log_likelihood(
            backbone.model, row, target, MASK, **of_row(prompt, row), types=types_of(backbone, row)
        )
        for row in rows
        for target in row.targets
    ])  # fmt: skip


def assert_gradients_equal(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    assert_close(found, expected, **CLOSE)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 0
        assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


def assert_same(backbone: MaskedBackbone, rows: Sequence[EncodedRow], prompt: PromptOutput) -> None:
    leaves = [t for t in (prompt.tokens, prompt.offset) if t is not None]
    leaves += [part for pair in prompt.prefix or () for part in pair]
    found = backbone.score(rows, prompt).token_log_likelihoods()
    assert_gradients_equal(found, naive_scores(backbone, rows, prompt), leaves)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_batch_of_masked_rows_equals_each_row_alone(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    assert backbone.packed == (architecture in PACKED)
    assert_same(backbone, ROWS, PromptOutput(tokens=virtual_tokens(backbone)))


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_rows_of_each_length_run_together_give_the_same(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture, packed=False)
    assert_same(backbone, ROWS, PromptOutput(tokens=virtual_tokens(backbone)))
    with pytest.raises(ValueError, match="takes no key-value prefix"):
        backbone.score(ROWS, PromptOutput(prefix=prefixes(encoder_backbone(architecture))))


@pytest.mark.parametrize("architecture", PACKED)
def test_an_untied_head_is_the_models_own(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture, tied=False)
    assert_same(backbone, ROWS[:2], PromptOutput(tokens=virtual_tokens(backbone)))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PACKED)
def test_a_prefix_in_every_layer_is_seen_by_every_token_of_its_rows(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    rows = [EncodedRow(tuple(a for a in row.context if a >= 0), row.targets) for row in ROWS]
    assert_same(backbone, rows, PromptOutput(prefix=prefixes(backbone)))
    assert_same(backbone, ROWS, PromptOutput(prefix=prefixes(backbone), tokens=virtual_tokens(backbone)))
    assert_same(backbone, rows[:1], PromptOutput(prefix=prefixes(backbone)))  # nothing is padded


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_prefixes_of_different_lengths_share_a_batch(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    prompt = PromptOutput(prefix=prefixes(backbone, prompts=3, length=5), lengths=torch.tensor([5, 1, 3]))
    rows = [
        EncodedRow((CLS, *range(20, 20 + n), MASK, SEP), WORDS, prompt=g)
        for n, g in ((3, 1), (3, 0), (9, 2), (1, 1), (0, 0))
    ]
    assert_same(backbone, rows, prompt)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_prompts_of_different_lengths_share_a_batch(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    prompt = PromptOutput(tokens=virtual_tokens(backbone, prompts=3), lengths=torch.tensor([4, 1, 2]))
    rows = [
        EncodedRow((CLS, *SOFT[: (4, 1, 2)[g]], 20, MASK, 21 + g, SEP), WORDS, prompt=g) for g in (1, 0, 2, 1)
    ]
    assert_same(backbone, rows, prompt)
    with pytest.raises(ValueError, match="asks for virtual token 1, prompt 1 has 1"):
        backbone.score([EncodedRow((CLS, -1, -2, MASK), WORDS, prompt=1)], prompt)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2"])
def test_offsets_follow_the_text_not_the_prompt(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    offset = virtual_tokens(backbone, length=7, seed=3)  # shorter than some rows
    assert_same(backbone, ROWS, PromptOutput(tokens=virtual_tokens(backbone), offset=offset))


@pytest.mark.parametrize("architecture", PACKED)
def test_states_are_those_of_each_row_alone(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    prompt = PromptOutput(tokens=virtual_tokens(backbone), prefix=prefixes(backbone))
    reads = [(0, 6), (), (5, 3, 3), (1,), (0,)]
    rows = [EncodedRow(row.context, read=read) for row, read in zip(ROWS, reads, strict=True)]

    def alone(row: EncodedRow) -> Tensor:
        types = types_of(backbone, row)
        return naive.states(backbone.model, row.context, **of_row(prompt, row), types=types)[list(row.read)]

    found = backbone.states(rows, prompt)
    assert found.shape == (7, backbone.spec.state_width)
    leaves = [prompt.tokens, *(part for pair in prompt.prefix or () for part in pair)]
    assert_gradients_equal(found, torch.cat([alone(row) for row in rows]), leaves)  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [True, False])
def test_no_states_are_asked_for_no_states_come(packed: bool) -> None:
    backbone = encoder_backbone(packed=packed)
    assert backbone.states([EncodedRow((CLS, 20))], PromptOutput()).shape == (0, 48)


@pytest.mark.parametrize("window", [None, 3])
def test_queries_that_share_a_key_value_head_see_what_each_sees_alone(window: int | None) -> None:
    tree = build_tree(
        [EncodedRow((CLS, 20, SEP)), EncodedRow((CLS, *range(20, 25), SEP))], [()], virtual_tokens=0
    )
    generator = torch.Generator().manual_seed(3)
    shapes = ((1, 4, 10, 6), (1, 2, 10, 6), (1, 2, 10, 6))  # H = 4, Hkv = 2
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    before = [torch.randn(1, 2, 3, 6, generator=generator, dtype=torch.float64) for _ in range(2)]

    def attention(shared: int) -> Tensor:
        k, v, *prefix = (x.repeat_interleave(shared, dim=1) for x in (key, value, *before))
        call = RowsCall(tree, ((prefix[0], prefix[1]),), None)
        module = nn.Identity()
        return rows_attention(module, query, k, v, None, prompt_rows=call, sliding_window=window)[0]

    assert_close(attention(1), attention(2), **CLOSE)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_text_behind_a_prefix_begins_where_transformers_has_it_begin(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    prefix = prefixes(backbone)
    atoms = (CLS, 20, 21, MASK, SEP)
    length = prefix[0][0].shape[2]
    with torch.no_grad():
        theirs = backbone.model(
            input_ids=torch.tensor([atoms]),
            attention_mask=torch.ones(1, length + len(atoms), dtype=torch.long),
            past_key_values=DynamicCache(prefix),
        ).logits[0, 3]
        ours = backbone.score([EncodedRow(atoms, ((5,),))], PromptOutput(prefix=prefix)).logits[0]
    assert_close(ours, theirs, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PACKED)
def test_a_prefix_takes_positions_where_positions_are_embedded(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    assert backbone.spec.prefix_counts == (architecture not in ("modernbert", "eurobert"))
    limit = backbone.spec.positions
    assert limit is not None
    prompt = PromptOutput(prefix=prefixes(backbone, prompts=2), lengths=torch.tensor([1, 3]))
    room = limit - 3 if backbone.spec.prefix_counts else limit
    full = EncodedRow((CLS, *[20] * (room - 3), MASK, SEP), ((5,),), prompt=1)
    assert_same(backbone, [full, replace(full, prompt=0)], prompt)
    longer = replace(full, context=(*full.context, SEP))
    backbone.score([replace(longer, prompt=0)], prompt) if room < limit else None
    with pytest.raises(ValueError, match=f"takes {limit + 1} tokens.*the model has {limit} positions"):
        backbone.score([longer], prompt)


@pytest.mark.parametrize("architecture", ["bert", "albert", "modernbert", "eurobert"])
def test_key_values_of_a_text_are_those_its_model_computes(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    of = backbone.spec.key_values_of
    assert of is not None
    found = of(torch.tensor([CLS, 20, 21]))
    heads, size = (2, 16) if architecture == "eurobert" else (4, 12)
    assert backbone.spec.key_values == ((heads, size),) * backbone.model.config.num_hidden_layers
    assert [tuple(k.shape) for k, _ in found] == [(1, heads, 3, size)] * len(backbone.spec.key_values)
    assert all(part.dtype == torch.float32 and not part.requires_grad for pair in found for part in pair)
    # Told that it stands at position 0, as its keys and values do, a text sees everything twice: attention as alone.
    backbone._encoder = replace(backbone._encoder, prefix_counts=False)
    prefix = tuple((k.double(), v.double()) for k, v in found)
    row = EncodedRow((CLS, 20, 21), read=(0, 1, 2))
    alone, behind = (backbone.states([row], p) for p in (PromptOutput(), PromptOutput(prefix=prefix)))
    assert_close(alone, behind, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "distilbert", "albert", "eurobert"])
def test_checkpointed_layers_give_the_same_gradients(architecture: Encoder) -> None:
    backbone = encoder_backbone(architecture)
    prompt = PromptOutput(tokens=virtual_tokens(backbone), prefix=prefixes(backbone))
    leaves = [prompt.tokens, *(part for pair in prompt.prefix or () for part in pair)]
    plain = backbone.score(ROWS, prompt).token_log_likelihoods()
    saving = backbone.with_settings(gradient_checkpointing=True).score(ROWS, prompt).token_log_likelihoods()
    assert_gradients_equal(saving, plain, leaves)  # type: ignore[arg-type]


def test_layers_that_share_weights_cannot_be_recomputed_behind_a_prefix() -> None:
    backbone = encoder_backbone("albert")
    tree = build_tree([EncodedRow((CLS, SEP))], [()], virtual_tokens=0)
    call = RowsCall(tree, prefixes(backbone), None)
    shared = nn.Identity()
    assert [call.number(shared), call.number(shared)] == [0, 1]
    with pytest.raises(ValueError, match=r"layers of this model share their weights.*gradient_checkpointing"):
        call.number(shared)


def test_the_model_is_as_it_was_after_a_call() -> None:
    backbone = encoder_backbone()
    model = backbone.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention = model.config._attn_implementation
    ids = torch.tensor([[CLS, 20, MASK, SEP]])
    logits = model(input_ids=ids).logits
    backbone.score(ROWS, PromptOutput(tokens=virtual_tokens(backbone))).logits.sum().backward()
    assert model.config._attn_implementation == attention
    assert "forward" not in model.base_model.__dict__
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_head_is_run_at_the_masks_only() -> None:
    backbone = encoder_backbone()
    seen: list[tuple[int, ...]] = []
    decoder = backbone.model.get_output_embeddings()
    decoder.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    backbone.score(ROWS[:1], PromptOutput(tokens=virtual_tokens(backbone)))
    assert seen == [
        (1, 1 + 2 + 3, len(backbone.tokenizer))
    ]  # one mask, two, three; words of a length share them


@pytest.mark.parametrize(("architecture", "limit"), [("bert", POSITIONS), ("roberta", POSITIONS - 1)])
def test_rows_may_be_as_long_as_the_positions(architecture: Encoder, limit: int) -> None:
    backbone = encoder_backbone(architecture)
    assert backbone.spec.positions == limit
    full = EncodedRow((CLS, *[20] * (limit - 3), MASK, SEP), ((5,),))
    assert_close(
        backbone.score([full], PromptOutput()).token_log_likelihoods(),
        naive_scores(backbone, [full], PromptOutput()),
        **CLOSE,
    )
    with pytest.raises(ValueError, match=f"takes {limit + 1} tokens.*the model has {limit} positions"):
        backbone.score([EncodedRow(full.context, ((5, 6),))], PromptOutput())


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ((CLS, 20, SEP), r"no mask: .* write \{mask\} in the template"),
        ((CLS, MASK, MASK, MASK, SEP), "3 masks and an answer of 2 tokens"),
    ],
)
def test_masks_that_do_not_fit_are_said(context: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encoder_backbone().score([EncodedRow(context, ((5, 6),))], PromptOutput())


def test_an_encoder_does_not_generate() -> None:
    with pytest.raises(ValueError, match=r"masked-lm.*cannot continue it.*causal"):
        encoder_backbone().generate([EncodedRow((CLS, MASK, SEP))], PromptOutput(), max_new_tokens=3)


def test_a_text_encoder_gives_states_and_no_words() -> None:
    backbone = encoder_backbone(head=False)
    assert backbone.family == backbone.spec.family == "text-encoder"
    row = EncodedRow((CLS, 20, MASK, SEP), ((5,),), read=(0,))
    assert backbone.states([row], PromptOutput()).shape == (1, 48)
    with pytest.raises(ValueError, match="text encoder without a head over words"):
        backbone.score([row], PromptOutput())


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch.compile's own
def test_torch_compile_gives_the_same() -> None:
    backbone = encoder_backbone()
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    compiled = backbone.with_settings(compiled=True)
    with torch.no_grad():
        assert_close(
            compiled.score(ROWS[:2], prompt).logits, backbone.score(ROWS[:2], prompt).logits, **CLOSE
        )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_peft_s_virtual_tokens_and_prefixes_give_the_same(architecture: Encoder) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    backbone = encoder_backbone(architecture, head=False)
    ids = torch.tensor([[CLS, 20, 21, 30, SEP], [CLS, 22, SEP, 0, 0]])
    mask = (ids > 0).long()
    rows = [EncodedRow(tuple(row[row > 0].tolist())) for row in ids]

    def theirs(config: Any) -> tuple[Any, list[Tensor]]:
        model = get_peft_model(encoder_backbone(architecture, head=False).model, config).eval().double()
        with torch.no_grad():
            model.get_parameter("prompt_encoder.default.embedding.weight").normal_()
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            prompt = model.get_prompt(1)
        start = states.shape[1] - ids.shape[1]
        return prompt, [
            state[start : start + len(row.context)] for state, row in zip(states, rows, strict=True)
        ]

    def ours(start: tuple[int, ...], prompt: PromptOutput) -> list[Tensor]:
        whole = [start + row.context for row in rows]
        read = [EncodedRow(c, read=tuple(range(len(start), len(c)))) for c in whole]
        return list(backbone.states(read, prompt).split([len(row.read) for row in read]))

    common: dict[str, Any] = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 3}
    prompt, expected = theirs(PromptTuningConfig(**common))
    # PEFT puts them before the first token.
    for a, b in zip(ours((-1, -2, -3), PromptOutput(tokens=prompt)), expected, strict=True):
        assert_close(a, b, **CLOSE)

    prompt, expected = theirs(PrefixTuningConfig(**common))
    prefix = tuple((layer.keys, layer.values) for layer in prompt.layers)
    for a, b in zip(ours((), PromptOutput(prefix=prefix)), expected, strict=True):
        assert_close(a, b, **CLOSE)
