"""What all methods have in common whose trained object is virtual tokens, or an offset on the text, in disguise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import (
    ULPT,
    ADePT,
    DePT,
    LowRankPromptTuning,
    PTuning,
    ResidualPromptTuning,
    TunedPrompt,
    fit,
    load,
)
from softprompt.outputs import EncodedRow
from softprompt.prompts import Method
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.training.progress import Record, Silent
from tests.naive import causal as naive
from tests.prompts.against_naive import built, moved, rows_in_front
from tests.tiny.encoders import CLS, SEP, encoder_backbone
from tests.tiny.task import ROWS, TASK, tiny_backbone

FOLDED: list[Method] = [
    PTuning(length=4),
    PTuning(length=4, encoder="mlp"),
    ResidualPromptTuning(length=4, bottleneck=16),
    LowRankPromptTuning(length=4, rank=2),
    ULPT(length=4, rank=2),
]
WITH_OFFSETS: list[Method] = [DePT(length=4, budget=8), ADePT(length=4, budget=8)]
every_method = pytest.mark.parametrize("method", FOLDED + WITH_OFFSETS, ids=str)
folded_ones = pytest.mark.parametrize("method", FOLDED, ids=str)


class Interrupting(Silent):
    """Ctrl-C after the seventh step."""

    def update(self, record: Record) -> None:
        if record.step == 7:
            raise KeyboardInterrupt


def trained(method: Method, backbone: Any = None, **settings: Any) -> TunedPrompt:
    backbone = backbone or tiny_backbone()
    return fit(
        backbone, TASK, method, ROWS, ROWS, **{"steps": 12, "batch_size": 8, "progress": False} | settings
    )


@pytest.mark.slow
@every_method
def test_the_defaults_learn_and_the_backbone_stays_as_it_is(method: Method) -> None:
    backbone = tiny_backbone(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    tuned = trained(method, backbone, steps=40)
    losses = [record["loss"] for record in tuned.history]
    assert sum(losses[-5:]) / 5 < 0.5 * sum(losses[:3]) / 3
    assert tuned.evaluate(ROWS)["accuracy"] > 0.9  # majority: 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@every_method
def test_every_trained_tensor_moves_and_every_buffer_stays(method: Method) -> None:
    backbone = tiny_backbone()
    module = built(method, backbone)
    optimizer = torch.optim.AdamW(
        method.parameter_groups(module, method.learning_rate(backbone.spec)), weight_decay=0
    )
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
    for _ in range(3):  # what starts at zero hides the gradient of what it is multiplied with
        loss = -backbone.score(rows_in_front(4), module()).token_log_likelihoods().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, before[name]), name
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in module.parameters()}


@every_method
def test_the_same_seed_starts_the_same(method: Method) -> None:
    one, two, other = (built(method, seed=seed)() for seed in (3, 3, 4))
    assert one.tokens is not None
    assert two.tokens is not None
    assert other.tokens is not None
    assert torch.equal(one.tokens, two.tokens)
    assert not torch.equal(one.tokens, other.tokens)


@folded_ones
def test_a_baked_prompt_is_plain_virtual_tokens_with_the_same_logits(method: Method) -> None:
    backbone, module, rows = tiny_backbone(), built(method), rows_in_front(4)
    baked = module.bake()
    assert isinstance(baked, VirtualTokens)
    with torch.no_grad():
        assert torch.equal(backbone.score(rows, baked()).logits, backbone.score(rows, module()).logits)


@pytest.mark.slow
@every_method
def test_a_saved_prompt_comes_back_bit_identical(method: Method, tmp_path: Path) -> None:
    tuned = trained(method, steps=3)
    again = load(tuned.save(tmp_path / "prompt"), tuned.backbone)
    assert again.method == method
    state = tuned.module.state_dict()
    assert {tensor.dtype for tensor in again.module.state_dict().values()} == {torch.float32}
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.module.state_dict().items())
    assert again.predict(["film", "a dog"]) == tuned.predict(["film", "a dog"])


@pytest.mark.slow
@every_method
def test_a_run_that_was_interrupted_ends_bit_identical(method: Method, tmp_path: Path) -> None:
    expected = trained(method).module.state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained(method, folder=tmp_path, progress=Interrupting())
    resumed = trained(method, folder=tmp_path)
    assert len(resumed.history) == 12
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.module.state_dict().items())


@pytest.mark.parametrize("method", WITH_OFFSETS, ids=str)
def test_an_encoder_s_words_are_shifted_too(method: Method) -> None:
    backbone = encoder_backbone("bert")
    mask = int(backbone.tokenizer.mask_token_id)
    rows = [EncodedRow((CLS, -1, -2, *words, -3, -4, mask, SEP), ((40,),)) for words in ((20, 21, 22), (23,))]
    with torch.no_grad():
        output = moved(built(method, backbone))()
        found = backbone.score(rows, output).token_log_likelihoods()
        assert output.tokens is not None
        offset = None if output.offset is None else output.offset[0]
        function = None if output.token_offset is None else output.token_offset[0]
        for row, value in zip(rows, found, strict=True):
            embeds = naive.embed(backbone.model, row.context, output.tokens[0], offset, function)
            logits = backbone.model(inputs_embeds=embeds[None]).logits[0, row.context.index(mask)]
            torch.testing.assert_close(value, logits.log_softmax(-1)[40], rtol=1e-10, atol=1e-10)
