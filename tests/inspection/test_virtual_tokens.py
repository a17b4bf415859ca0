"""Nearest words, norms, logit lens and drift, against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.inspection.nearest import (
    common_part,
    final_norm,
    logit_lens,
    nearest_words,
    rows_without_words,
    table_chunks,
    table_norms,
    token_text,
    visible,
)
from softprompt.inspection.virtual_tokens import initial_tokens, inspect_prompt
from tests.tiny.language import ARCHITECTURES, Architecture, tiny_causal_lm, tiny_tokenizer
from tests.tolerances import assert_equal_up_to_rounding

ROWS = [{"text": "the film is good", "label": "pos"}, {"text": "the film is bad", "label": "neg"}]


def backbone(architecture: Architecture = "llama") -> CausalBackbone:
    return sp.load_backbone(tiny_causal_lm(architecture, dtype=torch.float32), tokenizer=tiny_tokenizer())


def tuned_prompt(method: sp.PromptTuning, steps: int = 2) -> sp.TunedPrompt:
    task = sp.TextClassification("{text} sentiment", labels={"neg": " negative", "pos": " positive"})
    return sp.fit(backbone(), task, method, ROWS, steps=steps, batch_size=2, seed=5, progress=False)


def test_nearest_words_are_those_of_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(37, 6, generator=generator)
    tokens = torch.randn(4, 6, generator=generator)
    found = nearest_words(tokens, table.split(10), k=5)
    for p in range(4):
        dots = [float(tokens[p].double() @ row) for row in table.double()]
        lengths = [float(row.norm()) for row in table.double()]
        cosines = [d / n / float(tokens[p].double().norm()) for d, n in zip(dots, lengths, strict=True)]
        distances = [float((tokens[p].double() - row).norm()) for row in table.double()]
        for measure, scores, down in (
            ("dot", dots, True),
            ("cosine", cosines, True),
            ("l2", distances, False),
        ):
            best = sorted(range(37), key=scores.__getitem__, reverse=down)[:5]
            assert found[measure].ids[p].tolist() == best
            assert_equal_up_to_rounding(
                found[measure].scores[p].tolist(), [scores[i] for i in best], torch.float64
            )


def test_chunks_of_any_size_give_the_same_words_and_ties_go_to_the_first() -> None:
    table = torch.eye(4).repeat(3, 1)  # every row three times
    whole = nearest_words(table[:2], [table], k=3)
    parts = nearest_words(table[:2], table.split(5), k=3)
    for measure in whole:
        assert torch.equal(whole[measure].ids, parts[measure].ids)
    assert whole["cosine"].ids[1].tolist() == [1, 5, 9]
    assert whole["l2"].scores[1].tolist() == [0, 0, 0]


def test_more_words_than_the_table_has_are_all_of_them() -> None:
    found = nearest_words(torch.zeros(1, 3), torch.ones(2, 3).split(1), k=9)
    assert found["l2"].ids.shape == (1, 2)
    assert found["cosine"].scores.tolist() == [[0.0, 0.0]]


def test_norms_are_those_of_the_table_as_the_model_uses_it() -> None:
    gemma = backbone("gemma3_text")  # scales its embeddings
    expected = gemma.spec.embed(torch.arange(gemma.spec.vocabulary)).double().norm(dim=1)
    assert_equal_up_to_rounding(table_norms(table_chunks(gemma.spec, rows=100)), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logit_lens_of_a_last_hidden_state_is_what_the_model_predicts(architecture: Architecture) -> None:
    model = tiny_causal_lm(architecture, dtype=torch.float32)
    found = final_norm(model)
    assert found is not None
    seen: list[torch.Tensor] = []
    with found[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])), torch.no_grad():
        logits = model(torch.tensor([[5, 9, 23]])).logits[0]
    lens = logit_lens(seen[0][0], found[1], model.get_output_embeddings(), k=4)
    assert torch.equal(lens.ids, logits.topk(4).indices)


@pytest.mark.parametrize(
    "method",
    [
        sp.PromptTuning(length=3),
        sp.PromptTuning(length=3, init="uniform"),
        sp.PromptTuning(length=3, init="text", init_text="good film and story"[:9]),
        sp.PromptTuning(length=3, init="labels"),
    ],
    ids=lambda method: method.init,
)
def test_the_start_is_built_again_as_training_began(method: sp.PromptTuning) -> None:
    # Training with a vanishing learning rate ends where it began.
    task = sp.TextClassification("{text} sentiment", labels={"neg": " negative", "pos": " positive"})
    still = sp.fit(backbone(), task, method, ROWS, steps=1, learning_rate=1e-12, seed=5, progress=False)
    start, told = initial_tokens(still)
    assert start is not None
    assert told == f"{method.init}, built again from seed 5"
    torch.testing.assert_close(start, still.module().tokens[0], atol=1e-7, rtol=0)


def test_a_head_is_drawn_before_the_prompt_when_the_start_is_built_again() -> None:
    task = sp.SequenceClassification("{text}", labels=["neg", "pos"])
    still = sp.fit(
        backbone(), task, sp.PromptTuning(length=5), ROWS, steps=1, learning_rate=1e-12, progress=False
    )
    start, _ = initial_tokens(still)
    assert start is not None
    torch.testing.assert_close(start, still.module().tokens[0], atol=1e-7, rtol=0)


def test_a_start_from_another_prompt_is_called_unknown() -> None:
    first = tuned_prompt(sp.PromptTuning(length=3))
    task, method = first.task, sp.PromptTuning(length=3)
    second = sp.fit(first.backbone, task, method, ROWS, start=first, steps=1, progress=False)
    assert initial_tokens(second) == (None, "init unknown: training began with the tensors of another prompt")


def test_a_start_that_cannot_be_known_is_called_unknown() -> None:
    tuned = tuned_prompt(sp.PromptTuning(length=3))
    assert initial_tokens(replace(tuned, recipe={}))[0] is None
    report = inspect_prompt(replace(tuned, recipe={}))
    assert report.init.startswith("init unknown")
    assert report.tokens[0].drift_l2 is None
    assert report.tokens[0].started_as is None


def test_the_report_holds_what_brute_force_finds_for_each_token() -> None:
    tuned = tuned_prompt(sp.PromptTuning(length=3), steps=3)
    report = inspect_prompt(tuned, k=2)
    table = tuned.backbone.model.get_input_embeddings().weight.detach().double()
    tokens = tuned.module().tokens[0].double()
    start, _ = initial_tokens(tuned)
    assert start is not None
    assert report.lens == "model.norm, lm_head"
    assert report.vocabulary_norm[0] == pytest.approx(table.norm(dim=1).mean().item())
    for token, vector, first in zip(report.tokens, tokens, start.double(), strict=True):
        assert token.norm == pytest.approx(vector.norm().item())
        share = sum(row.norm() <= vector.norm() for row in table) / len(table)
        assert token.norm_percentile == pytest.approx(100 * float(share))
        cosines = torch.cosine_similarity(table, vector[None])
        assert token.nearest["cosine"][0].id == cosines.argmax().item()
        assert token.nearest["cosine"][0].score == pytest.approx(cosines.max().item())
        assert token.drift_l2 == pytest.approx((vector - first).norm().item())
        assert token.drift_l2 > 0
        assert token.started_as is not None
        assert torch.equal(table[token.started_as.id], first)  # it started as that very word


def test_inspecting_leaves_the_prompt_and_the_backbone_as_they_were() -> None:
    tuned = tuned_prompt(sp.PromptTuning(length=3))
    before = {name: tensor.clone() for name, tensor in tuned.backbone.model.state_dict().items()}
    tokens = tuned.module().tokens.clone()
    inspect_prompt(tuned)
    assert torch.equal(tuned.module().tokens, tokens)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in tuned.backbone.model.state_dict().items()
    )


def test_a_manual_prompt_is_its_own_words_at_distance_zero() -> None:
    task = sp.TextClassification("{text} sentiment", labels={"neg": " negative", "pos": " positive"})
    manual = sp.fit(backbone(), task, sp.ManualPrompt(text=" good film"), ROWS, progress=False)
    report = inspect_prompt(manual, k=1)
    assert [token.nearest["l2"][0].text for token in report.tokens] == ["\u2423good", "\u2423film"]
    assert [token.nearest["l2"][0].score for token in report.tokens] == [0, 0]
    assert report.init.startswith("init unknown")


def test_no_words_are_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        inspect_prompt(tuned_prompt(sp.PromptTuning(length=3)), k=0)


def test_white_space_and_control_characters_are_visible() -> None:
    assert visible(" a\n\tb\u202e\x00") == "\u2423a\u21b5\u21e5b\\u{202e}\\u{0}"
    assert visible("\n" + 17 * " " + "a   ") == "\u21b5\u2423\u00d717a\u2423\u2423\u2423"
    tokenizer = tiny_tokenizer()
    [word] = tokenizer(" film", add_special_tokens=False)["input_ids"]
    assert token_text(tokenizer, word) == "\u2423film"
    assert token_text(tokenizer, len(tokenizer) + 7) == f"<row {len(tokenizer) + 7}>"
    lone_byte = tokenizer("\u20ac", add_special_tokens=False)["input_ids"][0]
    assert "\ufffd" not in token_text(tokenizer, lone_byte)


def test_words_that_no_text_is_read_as_are_in_no_list() -> None:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer) + 3
    skip = rows_without_words(tokenizer, size)
    assert skip[-3:].all()
    assert all(skip[i] for i in tokenizer.all_special_ids)
    assert not skip[tokenizer(" film", add_special_tokens=False)["input_ids"]].any()
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    hidden = torch.tensor([False, True, False, False, False, True])
    found = nearest_words(table, table.split(2), k=9, skip=hidden)
    assert all(set(nearest.ids.flatten().tolist()) == {0, 2, 3, 4} for nearest in found.values())


def test_what_all_words_share_fills_no_list() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(64, generator=generator)
    table = torch.randn(300, 64, generator=generator) + shared
    table[7] = 3 * shared  # a frequent word, near to everything
    spec = replace(backbone().spec, vocabulary=300, width=64, embed=table.__getitem__)
    common = common_part(spec, torch.zeros(300, dtype=torch.bool))
    tokens = torch.randn(20, 64, generator=generator) + shared
    near = nearest_words(tokens, [table], k=1, common=common)
    assert (near["cosine"].ids == 7).sum() >= 10
    assert (near["centred"].ids == 7).sum() <= 1
    assert (common.removed(table) @ common.directions.T).abs().max() < 1e-9
    assert nearest_words(tokens, [table], k=1).keys() == {"cosine", "l2", "dot"}


def test_bytes_that_are_no_text_are_shown_by_their_numbers() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("\u20ac", add_special_tokens=False)["input_ids"]
    assert [token_text(tokenizer, i) for i in ids] == ["byte E2", "byte 82", "byte AC"]


def test_pieces_that_continue_a_word_are_marked_in_no_tokenizer_s_own_signs() -> None:
    pieces = Tokenizer(
        WordPiece({"[UNK]": 0, "film": 1, "##s": 2, "##": 3, "[unused5]": 4}, unk_token="[UNK]")
    )
    pieces.decoder = WordPieceDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
    assert [token_text(tokenizer, i) for i in (1, 2, 3)] == ["film", "…s", "##"]
    assert rows_without_words(tokenizer, 5).tolist() == [True, False, False, False, True]
