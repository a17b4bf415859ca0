"""A prompt attached to a plain transformers model, against the library's own backbone. All in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts import PromptModule
from softprompt.prompts.base import BuildContext
from softprompt.prompts.prefix import KeyValuePrefix
from softprompt.prompts.prompt_tuning import VirtualTokens
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer

MODELS = ["llama", "qwen3", "gpt2", "gemma3_text", "opt", "mistral"]
METHODS = {
    "tokens": sp.PromptTuning(length=4),
    "prefix": sp.PrefixTuning(length=4, hidden=8),
    "cartridge": sp.PrefixTuning(length=5, reparametrize=False, frozen=1),
    "dept": sp.DePT(length=3, rank=2, positions=5),
    "adept": sp.ADePT(length=3),
}
TASK = sp.TextGeneration("{text} is", target=" {label}", max_new_tokens=6)
TEXTS = ["the film is great", "it", "the old house and the river", "no no"]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")


def backbone_of(architecture: str) -> CausalBackbone:
    return CausalBackbone(tiny_causal_lm(architecture).requires_grad_(False), tiny_tokenizer())  # type: ignore[arg-type]


def noisy(module: PromptModule) -> PromptModule:
    """No number of a prompt where it started: some methods start at zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def tuned_prompt(backbone: CausalBackbone, method: str = "tokens", task: Any = TASK) -> sp.TunedPrompt:
    rows = lambda: [EncodedRow((5, 6, 7, 8), targets=((9,),))]  # noqa: E731
    module = METHODS[method].build(
        BuildContext(backbone.spec, rows=rows, generator=torch.Generator().manual_seed(1))
    )
    return sp.TunedPrompt(
        backbone, task, METHODS[method], noisy(module).double().requires_grad_(False).eval()
    )


def words(backbone: CausalBackbone, side: str, texts: Sequence[str] = TEXTS) -> tuple[Tensor, Tensor]:
    """Ids and mask of the texts, without special tokens."""
    ids = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, ids)) + 2 * (side != "none")
    pads = [[3] * (longest - len(row)) for row in ids]
    rows = [p + row if side == "left" else row + p for p, row in zip(pads, ids, strict=True)]
    masks = [
        [0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p)
        for p, r in zip(pads, ids, strict=True)
    ]
    return torch.tensor(rows), torch.tensor(masks)


def own_logits(tuned: sp.TunedPrompt, text: str) -> Tensor:
    """What the library gives behind each token of the text, one after the other."""
    head = tuned.encoder.encode({"text": "it"}, answer=False).context
    first = next(i for i in range(len(head)) if all(atom >= 0 for atom in head[i:]))
    front = head[: first + (head[first] == 1)]  # the BOS may stand behind
    ids = tuned.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    row = EncodedRow((*front, ids[0]), targets=((*ids[1:], 0),))
    with torch.no_grad():
        scored = tuned.backbone.score([row], tuned.module())
    return scored.logits[scored.position]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", MODELS)
def test_logits_are_those_of_the_backbone_whatever_the_padding(architecture: str, method: str) -> None:
    backbone = backbone_of(architecture)
    tuned = tuned_prompt(backbone, method)
    model = tiny_causal_lm(architecture)  # type: ignore[arg-type]
    expected = [own_logits(tuned, text) for text in TEXTS]
    with sp.attach(model, tuned):
        for side in ("left", "right"):
            ids, mask = words(backbone, side)
            found = model(ids, attention_mask=mask, output_hidden_states=True)
            assert found.logits.shape == (*ids.shape, model.config.vocab_size)
            assert found.hidden_states[-1].shape[:2] == ids.shape
            for row, there, logits in zip(found.logits, mask, expected, strict=True):
                assert_close(row[there.bool()], logits, **TOLERANCE)
            last = model(input_ids=ids, attention_mask=mask, logits_to_keep=2, use_cache=False)
            assert_close(
                last.logits[mask[:, -2:].bool()], found.logits[:, -2:][mask[:, -2:].bool()], **TOLERANCE
            )
            assert "past_key_values" not in last
        alone, _ = words(backbone, "none", TEXTS[:1])
        assert_close(model(alone, return_dict=False)[0][0], expected[0], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma3_text", "mistral"])
def test_generation_is_that_of_the_backbone(architecture: str, method: str) -> None:
    backbone = backbone_of(architecture)
    tuned = tuned_prompt(backbone, method)
    encoded = [tuned.encoder.encode({"text": text}, answer=False) for text in TEXTS]
    model = tiny_causal_lm(architecture)  # type: ignore[arg-type]
    ids, mask = words(backbone, "left", [text + " is" for text in TEXTS])
    settings = {"min_new_tokens": 12, "max_new_tokens": 12, "pad_token_id": 0}  # beyond the window
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}):
        expected = backbone.generate(encoded, tuned.module(), **settings, **options)
        with sp.attach(model, tuned):
            found = model.generate(ids, attention_mask=mask, **settings, **options)
        assert found[:, ids.shape[1] :].tolist() == expected


def test_sampling_is_that_of_the_backbone_with_the_same_seed() -> None:
    backbone = backbone_of("llama")
    tuned = tuned_prompt(backbone)
    encoded = [tuned.encoder.encode({"text": text}, answer=False) for text in TEXTS]
    ids, mask = words(backbone, "left", [text + " is" for text in TEXTS])
    settings = {"do_sample": True, "min_new_tokens": 5, "max_new_tokens": 5, "pad_token_id": 0}
    torch.manual_seed(3)
    expected = backbone.generate(encoded, tuned.module(), **settings)
    torch.manual_seed(3)
    with sp.attach(backbone.model, tuned):
        found = backbone.model.generate(ids, attention_mask=mask, **settings)
    assert found[:, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_a_returned_cache_goes_on_behind_the_prompt(architecture: str, side: str) -> None:
    backbone = backbone_of(architecture)
    tuned = tuned_prompt(backbone, "dept")
    model = backbone.model
    ids, mask = words(backbone, side)
    more = torch.tensor([[7, 8, 9], [10, 11, 12]])[[0, 1, 0, 1]]
    with sp.attach(model, tuned), torch.no_grad():
        cache = model(ids, attention_mask=mask).past_key_values
        mask_of_all = torch.cat([mask, torch.ones_like(more)], dim=1)
        parts = []
        for n in ((0, 2), (2, 3)):
            step = model(
                more[:, slice(*n)],
                attention_mask=mask_of_all[:, : ids.shape[1] + n[1]],
                past_key_values=cache,
            )
            parts.append(step.logits)
        for b, there in enumerate(mask):
            whole = torch.cat([ids[b][there.bool()], more[b]])[None]
            assert_close(torch.cat(parts, dim=1)[b], model(whole).logits[0, -3:], **TOLERANCE)


def test_words_between_the_slots_are_attached_and_those_behind_are_not() -> None:
    backbone = backbone_of("llama")
    task = sp.TextGeneration("{soft:2} film{bos}{soft} story: {text} is", target=" {label}")
    tuned = tuned_prompt(backbone, task=task)
    row = tuned.encoder.encode({"text": "it"}, answer=False)
    ids = torch.tensor([backbone.tokenizer(" story: it is", add_special_tokens=False)["input_ids"]])
    assert row.context[-ids.shape[1] :] == tuple(ids[0].tolist())
    model = backbone.model
    with sp.attach(model, tuned):
        found = model(ids).logits[0, -1]
    assert_close(found, backbone.next_token_logits([row], tuned.module())[0], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_a_prompt_that_is_trained_gets_the_gradient_that_fit_gives_it(architecture: str, method: str) -> None:
    backbone = backbone_of(architecture)
    module = tuned_prompt(backbone, method).module.requires_grad_(True)
    live = PromptedModel(backbone, [module])
    ids, mask = words(backbone, "left")
    atoms = tuple(-1 - k for k in range(module.length))
    rows = [
        EncodedRow((*atoms, row[0]), targets=(tuple(row[1:]),) if len(row) > 1 else ())
        for row in (i[m.bool()].tolist() for i, m in zip(ids, mask, strict=True))
    ]
    parameters = [p for p in module.parameters() if p.requires_grad]
    scored = backbone.score(rows, module())
    expected = torch.autograd.grad(-scored.token_log_likelihoods().mean(), parameters, allow_unused=True)
    with sp.attach(backbone.model, live):
        for side in ("left", "right"):
            ids, mask = words(backbone, side)
            loss = backbone.model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_prompt_that_is_trained_is_run_anew_and_a_frozen_one_once() -> None:
    backbone = backbone_of("llama")
    ids, _ = words(backbone, "none", TEXTS[:1])
    module = VirtualTokens(torch.randn(3, 48))
    with sp.attach(backbone.model, module), torch.no_grad():
        before = backbone.model(ids).logits
        module.tokens += 1
        assert not torch.equal(backbone.model(ids).logits, before)
    module.requires_grad_(False)
    calls = []

    class Counted(PromptModule):
        length = 3

        def forward(self) -> PromptOutput:
            calls.append(1)
            return module()

    with sp.attach(backbone.model, Counted()), torch.no_grad():
        begun = len(calls)
        backbone.model(ids)
        backbone.model.generate(ids, max_new_tokens=3, pad_token_id=0)
        assert len(calls) == begun
        with torch.enable_grad():
            backbone.model(ids)  # the caller may train the model itself
        assert len(calls) == begun + 1


def traces(model: PreTrainedModel) -> Any:
    hooks = [
        (name, [list(getattr(m, kind)) for kind in vars(m) if "hooks" in kind])
        for name, m in model.named_modules()
    ]
    grads = [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    own = sorted(vars(model))
    return hooks, grads, own, model.training, model.config.to_dict(), model.generation_config.to_dict()


def test_the_model_is_afterwards_as_it_was_after_an_error_too() -> None:
    backbone = backbone_of("gemma3_text")
    model = tiny_causal_lm("gemma3_text")
    first, second = tuned_prompt(backbone), tuned_prompt(backbone, "prefix")
    ids, mask = words(backbone, "left")
    found, weights = traces(model), copy.deepcopy(model.state_dict())
    plain = model(ids, attention_mask=mask).logits.detach()
    seen = []
    for tuned in (first, second, first):
        with sp.attach(model, tuned):
            seen.append(model(ids, attention_mask=mask).logits.detach())
            model.generate(ids, attention_mask=mask, max_new_tokens=2, pad_token_id=0)
        assert torch.equal(model(ids, attention_mask=mask).logits, plain)
    assert torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[0], seen[1])
    with pytest.raises(IndexError), sp.attach(model, first):
        model(ids + 10**6, attention_mask=mask)
    with (
        pytest.raises(ValueError, match="attached already"),
        sp.attach(model, first),
        sp.attach(model, second),
    ):
        pass
    with sp.attach(model, second):  # an error leaves no mark
        pass
    assert traces(model) == found
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(ids, attention_mask=mask).logits, plain)


def test_what_cannot_be_attached_is_refused_with_what_to_do_instead() -> None:
    backbone = backbone_of("llama")
    tuned = tuned_prompt(backbone)
    with (
        pytest.raises(sp.WrongBackboneError, match="other weights in the embedding table"),
        sp.attach(tiny_causal_lm("llama", seed=1), tuned),
    ):
        pass
    with (
        pytest.raises(ValueError, match="column before its last virtual token"),
        sp.attach(
            backbone.model,
            tuned_prompt(backbone, task=sp.TextGeneration("{text}{soft} is", target="{label}")),
        ),
    ):
        pass
    with (
        pytest.raises(ValueError, match="embeddings of the model have 48"),
        sp.attach(backbone.model, VirtualTokens(torch.zeros(2, 5))),
    ):
        pass
    zero = sp.fit(backbone, TASK, sp.ZeroShot(), [{"text": "a", "label": "b"}], progress=False)
    with pytest.raises(ValueError, match="one prompt of virtual tokens"), sp.attach(backbone.model, zero):
        pass
    prefix = tuned_prompt(backbone_of("qwen3"), "prefix").module
    assert isinstance(prefix, KeyValuePrefix)
    with pytest.raises(ValueError, match="the model takes"), sp.attach(backbone.model, prefix):
        pass
    with pytest.raises(TypeError, match="not a Linear"), sp.attach(torch.nn.Linear(1, 1), tuned):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("new", [1, 4])
def test_a_second_turn_from_the_cache_of_the_first_is_refused_and_from_the_text_it_is_right(new: int) -> None:
    backbone = backbone_of("llama")
    model, ids = backbone.model, torch.tensor([[5, 6, 7]])
    options: Any = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    with sp.attach(model, tuned_prompt(backbone)):
        first = model.generate(
            ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **options
        )
        text = torch.cat([first.sequences, torch.arange(10, 10 + new)[None]], 1)
        mask = torch.ones_like(text)
        assert model.generate(text, attention_mask=mask, **options).shape[1] > text.shape[1]
        with pytest.raises(ValueError, match="past_key_values of earlier calls"):
            model.generate(text, attention_mask=mask, past_key_values=first.past_key_values, **options)


def test_calls_that_would_not_be_exact_are_refused() -> None:
    backbone = backbone_of("llama")
    model = backbone.model
    ids, mask = words(backbone, "left")
    foreign = model(ids[:1]).past_key_values
    with sp.attach(model, tuned_prompt(backbone)):
        with pytest.raises(ValueError, match="input_ids, and no inputs_embeds"):
            model(inputs_embeds=torch.zeros(1, 2, 48))
        with pytest.raises(ValueError, match="DynamicCache"):
            model.generate(
                ids, attention_mask=mask, max_new_tokens=2, cache_implementation="static", pad_token_id=0
            )
        with pytest.raises(ValueError, match="without this prompt"):
            model(ids[:1], past_key_values=foreign)
        with pytest.raises(ValueError, match="packed into one row"):
            model(ids, position_ids=torch.zeros_like(ids))
        with pytest.raises(ValueError, match="give the mask of your own tokens"):
            model(ids, attention_mask=mask[:, 1:])
        cache = model(ids, attention_mask=mask).past_key_values
        with pytest.raises(ValueError, match="for all of your own tokens"):
            model(ids[:, :1], attention_mask=mask[:, :1], past_key_values=cache)
        with pytest.raises(ValueError, match="padding among tokens"):
            model(ids, attention_mask=torch.cat([mask, mask], 1), past_key_values=cache)
        model.train()
        model.activation_checkpointing_enable()
        with pytest.raises(ValueError, match="gradient checkpointing"):
            model(ids, attention_mask=mask)
        model.activation_checkpointing_disable()
        model.eval()


def test_prompt_lookup_gives_the_tokens_of_greedy_decoding() -> None:
    backbone = backbone_of("gemma3_text")
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    settings = {"max_new_tokens": 14, "min_new_tokens": 14, "pad_token_id": 0}
    with sp.attach(backbone.model, tuned_prompt(backbone)):
        plain = backbone.model.generate(ids, **settings)
        assert torch.equal(backbone.model.generate(ids, prompt_lookup_num_tokens=3, **settings), plain)


@pytest.mark.parametrize("method", ["tokens", "prefix", "dept"])
def test_a_model_in_half_precision_takes_a_prompt_in_float32(method: str) -> None:
    backbone = backbone_of("llama")
    model = tiny_causal_lm("llama", dtype=torch.bfloat16)
    ids, mask = words(backbone, "left")
    module = tuned_prompt(backbone, method).module.float().requires_grad_(True)
    with sp.attach(model, module):
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        assert (
            model.generate(ids, attention_mask=mask, max_new_tokens=2, pad_token_id=0).shape[1] > ids.shape[1]
        )
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters() if p.requires_grad
    )


def test_another_loading_of_the_model_is_taken_and_a_task_on_it_gives_what_predict_gives() -> None:
    backbone = backbone_of("qwen3")
    task = sp.TextClassification("{text} feeling", labels={"good": " happy", "bad": " sad"})
    rows = [{"text": "the film is great", "label": "good"}, {"text": "the plot is bad", "label": "bad"}]
    tuned = sp.fit(
        backbone, task, sp.PromptTuning(length=3), rows, steps=2, progress=False, learning_rate=0.5
    )
    ids, mask = words(backbone, "left", [text + " feeling" for text in TEXTS])
    happy, sad = (backbone.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in (" happy", " sad"))
    with sp.attach(tiny_causal_lm("qwen3"), tuned) as nothing, torch.no_grad():
        assert nothing is None
    model = tiny_causal_lm("qwen3")
    with sp.attach(model, tuned), torch.no_grad():
        odds = model(ids, attention_mask=mask).logits[:, -1, [happy, sad]].softmax(-1)
    for answer, row in zip(tuned.predict(TEXTS), odds, strict=True):
        assert answer.probabilities["good"] == pytest.approx(row[0].item(), rel=1e-6)


def test_the_bos_is_attached_and_a_second_one_is_refused() -> None:
    backbone = backbone_of("llama")
    model = backbone.model
    for template in ("{bos}{text} is", "{soft}{bos}{text} is"):
        task = sp.TextGeneration(template, target=" {label}")
        for method in ("tokens", "dept") if "soft" in template else ("tokens", "prefix"):
            tuned = tuned_prompt(backbone, method, task)
            row = tuned.encoder.encode({"text": "it"}, answer=False)
            ids = torch.tensor([backbone.tokenizer("it is", add_special_tokens=False)["input_ids"]])
            expected = backbone.next_token_logits([row], tuned.module())[0]
            with sp.attach(model, tuned):
                assert_close(model(ids).logits[0, -1], expected, **TOLERANCE)
                with pytest.raises(ValueError, match=r"begins with token 1.*add_special_tokens=False"):
                    model(torch.tensor([[3, 1, 5]]), attention_mask=torch.tensor([[0, 1, 1]]))
