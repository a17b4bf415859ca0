"""Key-value prefixes of encoder, decoder and cross-attention against attention written out, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import (
    LEDConfig,
    LEDForConditionalGeneration,
    LongT5Config,
    LongT5ForConditionalGeneration,
    PreTrainedModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from softprompt import PrefixTuning
from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput
from tests.backbones.encoder_decoder.test_backbone import START, WORDS, assert_same, backbone_of, row, scored
from tests.naive import seq2seq_prefix as naive
from tests.tiny.language import SEQ2SEQ, tiny_tokenizer

P = 3
ROWS = [
    row(20, 21, 2),
    row(*range(20, 40), 2),
    row(22, 2, targets=WORDS),
    row(23, 24, 2, targets=((60, 61, 62),)),
]


def prefix_of(backbone: EncoderDecoderBackbone, prompts: int = 1, **widths: int) -> tuple[KeyValue, ...]:
    generator = torch.Generator().manual_seed(3)

    def part(place: str, heads: int, size: int) -> Tensor:
        shape = (prompts, heads, widths.get(place, P), size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    spec = backbone.spec
    return tuple(
        (part(place, *shape), part(place, *shape))
        for place, shape in zip(spec.places, spec.key_values, strict=True)
    )


def naive_tokens(
    backbone: EncoderDecoderBackbone,
    rows: list[EncodedRow],
    prefix: tuple[KeyValue, ...],
    lengths: list[int] | None = None,
) -> Tensor:
    found = []
    start = START[backbone.name]
    for r in rows:
        taken = None if lengths is None else lengths[r.prompt]
        at = {
            place: [
                (keys[r.prompt, :, :taken], values[r.prompt, :, :taken])
                for (keys, values), where in zip(prefix, backbone.spec.places, strict=True)
                if where == place
            ]
            for place in ("encoder", "decoder", "cross")
        }
        for t in r.targets:
            logits = naive.logits(backbone.model, r, (*start, *t[:-1]), **at)[-len(t) :].log_softmax(-1)
            found += [logits[j, token] for j, token in enumerate(t)]
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_prefixes_of_all_three_attentions_equal_attention_written_out(
    architecture: str, checkpointing: bool
) -> None:
    backbone = backbone_of(architecture, layers=(2, 3)).with_settings(gradient_checkpointing=checkpointing)
    prefix = prefix_of(backbone)
    assert backbone.spec.places == ("encoder",) * 2 + ("decoder",) * 3 + ("cross",) * 3
    found = scored(backbone, ROWS, PromptOutput(prefix=prefix))
    leaves = [tensor for pair in prefix for tensor in pair]
    assert_same(found, naive_tokens(backbone, ROWS, prefix), leaves)
    assert backbone.model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_prefix_may_stand_at_one_place_only(architecture: str, place: str) -> None:
    backbone = backbone_of(architecture)
    prefix = prefix_of(backbone, **dict.fromkeys({"encoder", "decoder", "cross"} - {place}, 0))
    found = scored(backbone, ROWS, PromptOutput(prefix=prefix))
    leaves = [tensor for pair in prefix for tensor in pair if tensor.numel()]
    assert_same(found, naive_tokens(backbone, ROWS, prefix), leaves)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_prefixes_of_different_lengths_in_one_batch_equal_each_alone(architecture: str) -> None:
    backbone = backbone_of(architecture)
    prefix = prefix_of(backbone, prompts=2)
    rows = [replace(r, prompt=i % 2) for i, r in enumerate(ROWS)]
    found = scored(backbone, rows, PromptOutput(prefix=prefix, lengths=torch.tensor([3, 1])))
    leaves = [tensor for pair in prefix for tensor in pair]
    assert_same(found, naive_tokens(backbone, rows, prefix, [3, 1]), leaves)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_batch_generates_behind_prefixes_what_scoring_says(architecture: str) -> None:
    backbone = backbone_of(architecture)
    prefix = tuple((keys.detach(), values.detach()) for keys, values in prefix_of(backbone, prompts=2))
    prompt = PromptOutput(prefix=prefix, lengths=torch.tensor([3, 1]))
    rows = [row(20, 21, 2), row(*range(20, 40), 2, prompt=1), row(22, 7, 2)]
    answers = backbone.generate(rows, prompt, max_new_tokens=6, do_sample=False, eos_token_id=699)
    for r, answer in zip(rows, answers, strict=True):
        scores = backbone.score([replace(r, targets=(tuple(answer),))], prompt)
        assert scores.logits[scores.position].argmax(-1).tolist() == answer
    beams = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    alone = [backbone.generate([r], prompt, **beams)[0] for r in rows]
    assert backbone.generate(rows, prompt, **beams) == alone


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_the_keys_and_values_of_a_text_are_those_that_the_model_computes(architecture: str) -> None:
    backbone = backbone_of(architecture)
    assert backbone.spec.key_values_of is not None
    ids = torch.tensor([20, 21, 22])
    found = backbone.spec.key_values_of(ids)
    assert [tuple(keys.shape) for keys, _ in found] == [(1, h, 3, d) for h, d in backbone.spec.key_values]
    heard: list[Tensor] = []
    attention = next(m for m in backbone.model.get_encoder().modules() if hasattr(m, "is_causal"))
    projection = attention.k if architecture == "t5" else attention.k_proj
    with projection.register_forward_hook(lambda module, args, output: heard.append(output)):
        backbone.model(input_ids=ids[None], decoder_input_ids=torch.tensor([[0]]))
    heads, size = backbone.spec.key_values[0]
    torch.testing.assert_close(found[0][0], heard[0].view(1, 3, heads, size).transpose(1, 2).float())


def test_a_prefix_of_another_depth_is_an_error() -> None:
    backbone = backbone_of("t5")
    with pytest.raises(ValueError, match="for 2 layers, this model takes 6"):
        backbone.score(ROWS, PromptOutput(prefix=prefix_of(backbone)[:2]))


IDS = {
    "vocab_size": 800,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
T5_LIKE = {**IDS, "d_model": 48, "d_kv": 12, "num_heads": 4, "d_ff": 64, "num_layers": 2}


def long_t5(attention: str) -> PreTrainedModel:
    return LongT5ForConditionalGeneration(LongT5Config(**T5_LIKE, encoder_attention_type=attention))


def led() -> PreTrainedModel:
    sides = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
    }
    return LEDForConditionalGeneration(LEDConfig(**IDS, **sides, d_model=48, attention_window=8))


@pytest.mark.parametrize(
    "model",
    [partial(long_t5, "local"), partial(long_t5, "transient-global"), led],
    ids=["local", "global", "led"],
)
def test_an_encoder_whose_attention_cannot_be_reached_takes_virtual_tokens_and_no_prefix(
    model: Callable[[], PreTrainedModel],
) -> None:
    backbone = EncoderDecoderBackbone(model().eval(), tiny_tokenizer(closed=True), name="long")
    assert backbone.spec.key_values == ()
    assert "can be reached" in (PrefixTuning().unsupported(backbone.spec) or "")
    prompt = PromptOutput(tokens=torch.randn(1, 2, 48))
    assert backbone.score([EncodedRow((-1, -2, 20, 21, 2), ((40,),))], prompt).logits.shape == (1, 800)


def test_a_mixture_of_experts_is_refused_when_it_is_loaded() -> None:
    model = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**T5_LIKE, num_experts=2))
    with pytest.raises(ValueError, match=r"SwitchTransformers.* is a mixture of experts: .*without experts"):
        EncoderDecoderBackbone(model, tiny_tokenizer(closed=True))
