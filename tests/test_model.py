"""PromptedModel: when prompts are run, what is cached, and several prompts on one backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.model import PromptedModel, carrying, stack_prompts
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts import PromptModule
from softprompt.prompts.prompt_tuning import VirtualTokens
from tests.tiny.task import tiny_backbone


def row(*ids: int, length: int = 3) -> EncodedRow:
    return EncodedRow((*(-1 - k for k in range(length)), *ids), ((40,), (41, 42)))


ROWS = [row(20, 21, 30), row(20, 21, 31, 32), row(20, 33)]


class Counted(VirtualTokens):
    """Counts how often it is run."""

    runs = 0

    def forward(self) -> PromptOutput:
        self.runs += 1
        return super().forward()


def tokens(seed: int, length: int = 3) -> Tensor:
    return torch.randn(length, 48, generator=torch.Generator().manual_seed(seed))


def likelihoods(model: PromptedModel, rows: list[EncodedRow]) -> Tensor:
    return model.score(rows).token_log_likelihoods()


def test_without_gradients_a_prompt_is_run_once() -> None:
    module = Counted(tokens(1))
    model = PromptedModel(tiny_backbone(), [module])
    with torch.no_grad():
        first = likelihoods(model, ROWS)
        again = likelihoods(model, ROWS)
        alone = torch.cat([likelihoods(model, [r]) for r in ROWS])
    assert torch.equal(first, again)
    assert_close(alone, first, rtol=0, atol=1e-10)
    assert module.runs == 1


def test_while_gradients_are_recorded_a_prompt_is_run_in_every_call() -> None:
    module = Counted(tokens(1))
    model = PromptedModel(tiny_backbone(), [module])
    with torch.no_grad():
        before = likelihoods(model, ROWS)
    for _ in range(2):
        found = likelihoods(model, ROWS)
        (gradient,) = torch.autograd.grad(found.sum(), list(module.parameters()))
        assert (gradient.abs().sum(dim=1) > 0).all()
        assert_close(found.detach(), before, rtol=0, atol=1e-10)
    assert module.runs == 3


def test_what_was_kept_is_dropped_once_the_prompt_was_trained_on() -> None:
    module = VirtualTokens(tokens(1))
    model = PromptedModel(tiny_backbone(), [module])
    with torch.no_grad():
        before = likelihoods(model, ROWS)
        module.tokens.add_(1.0)
        model.forget()
        after = likelihoods(model, ROWS)
    assert not torch.allclose(before, after)
    assert_close(after, likelihoods(model, ROWS).detach(), rtol=0, atol=1e-10)


def test_rows_that_begin_otherwise_are_scored_all_the_same() -> None:
    model = PromptedModel(tiny_backbone(), [VirtualTokens(tokens(1))])
    inline = EncodedRow((25, -1, 26, -2, -3), ((40,),))
    with torch.no_grad():
        for batch in (ROWS, ROWS[:2], [row(90)], [inline], ROWS):
            fresh = PromptedModel(model.backbone, model.modules)
            assert_close(likelihoods(model, batch), likelihoods(fresh, batch), rtol=0, atol=1e-10)


def test_generation_continues_each_row_as_if_it_were_alone() -> None:
    model = PromptedModel(tiny_backbone(), [VirtualTokens(tokens(1))])
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    together = model.generate(ROWS, **options)
    assert together == [model.generate([r], **options)[0] for r in ROWS]
    assert [len(ids) for ids in together] == [5, 5, 5]


def test_prompts_of_different_lengths_are_scored_as_each_alone() -> None:
    backbone = tiny_backbone()
    modules: list[PromptModule] = [VirtualTokens(tokens(1)), VirtualTokens(tokens(2, length=5))]
    both = PromptedModel(backbone, modules)
    rows = [ROWS, [row(20, 21, 30, length=5), row(22, length=5)]]
    mixed = [*carrying(rows[0], 0), *carrying(rows[1], 1)]
    with torch.no_grad():
        alone = torch.cat(
            [likelihoods(PromptedModel(backbone, [m]), r) for m, r in zip(modules, rows, strict=True)]
        )
        assert_close(likelihoods(both, mixed), alone, rtol=0, atol=1e-10)
        # A batch without rows of the first prompt, after it was compiled.
        assert_close(likelihoods(both, mixed[3:]), alone[-6:], rtol=0, atol=1e-10)
    with torch.enable_grad():
        assert_close(likelihoods(both, mixed).detach(), alone, rtol=0, atol=1e-10)


def test_a_prompt_beside_none_at_all() -> None:
    outputs = stack_prompts([PromptOutput(tokens=tokens(1)[None]), PromptOutput()])
    assert outputs.tokens is not None
    assert tuple(outputs.tokens.shape) == (2, 3, 48)
    assert outputs.lengths is not None
    assert outputs.lengths.tolist() == [3, 0]
    assert not outputs.tokens[1].any()


def test_a_single_prompt_is_passed_on_as_it_is() -> None:
    output = PromptOutput(tokens=tokens(1)[None])
    assert stack_prompts([output]) is output


def test_offsets_and_prefixes_are_padded_to_the_longest() -> None:
    with_offset = PromptOutput(tokens=tokens(1)[None], offset=torch.ones(1, 2, 48))
    offsets = stack_prompts([with_offset, PromptOutput(tokens=tokens(2)[None])])
    assert offsets.offset is not None
    assert offsets.offset.sum(dim=(1, 2)).tolist() == [96, 0]

    def prefix(length: int) -> PromptOutput:
        pair = (torch.full((1, 2, length, 4), float(length)), torch.full((1, 2, length, 4), -float(length)))
        return PromptOutput(prefix=(pair, pair))

    stacked = stack_prompts([prefix(3), prefix(1)])
    assert stacked.prefix is not None
    assert stacked.lengths is not None
    assert stacked.lengths.tolist() == [3, 1]
    keys, values = stacked.prefix[1]
    assert tuple(keys.shape) == (2, 2, 3, 4)
    assert keys[:, 0, :, 0].tolist() == [[3, 3, 3], [1, 0, 0]]
    assert values[:, 1, :, 3].tolist() == [[-3, -3, -3], [-1, 0, 0]]


def test_virtual_tokens_and_prefixes_stack_with_length_0_of_each_other() -> None:
    pair = (torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    stacked = stack_prompts([PromptOutput(tokens=tokens(2)[None]), PromptOutput(prefix=(pair,))])
    assert stacked.prefix is not None
    assert stacked.tokens is not None
    assert stacked.lengths is not None
    assert stacked.lengths.tolist() == [0, 3]
    assert len(stacked.tokens) == 2
    assert stacked.tokens[1].abs().max() == 0
    assert stacked.prefix[0][0].sum(dim=(1, 2, 3)).tolist() == [0, 24]


def test_hidden_state_prompts_cannot_share_a_batch() -> None:
    outputs = [PromptOutput(layers=(tokens(1)[None],)), PromptOutput(tokens=tokens(1)[None])]
    with pytest.raises(ValueError, match="cannot share a batch with prompts of other lengths"):
        stack_prompts(outputs)
