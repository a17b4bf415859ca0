"""What the class token attends to: the weights of plain attention over concatenated prompts, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.model import PromptedModel
from softprompt.outputs import PromptOutput
from tests.backbones.test_row_features import Conditional
from tests.backbones.vision.test_backbone import CLOSE, P, rows_of, variants, vectors
from tests.naive import vision as naive
from tests.tiny.vision import LAYERS, PATCH, PATCHES, SIZE, WIDTH, Tower, images, vision_backbone

with_class_token = pytest.mark.parametrize("tower", ["vit", "deit", "dinov2", "dinov2-registers", "clip"])


@with_class_token
@pytest.mark.parametrize("variant", variants(torch.zeros(LAYERS, P, WIDTH)))
def test_attention_is_that_of_plain_attention_over_concatenated_rows(tower: Tower, variant: str) -> None:
    backbone, prompts = vision_backbone(tower), vectors(LAYERS, P, WIDTH)
    output, told = variants(prompts)[variant]
    [row] = rows_of(images(1), "class")
    with torch.no_grad():
        expected = naive.class_attention(backbone.model, images(1)[0], PATCHES, **told)
    for carried in (output, backbone.compile([row], output)):
        found = backbone.class_attention(row, lambda seen, carried=carried: backbone.states([seen], carried))
        for i, (prompt, special, patches) in enumerate(expected):
            assert_close(found.prompts[i], prompt, **CLOSE)
            assert_close(found.special[i], special, **CLOSE)
            assert_close(found.patches[i].flatten(1), patches, **CLOSE)


@with_class_token
def test_without_a_prompt_it_is_what_the_model_says_itself(tower: Tower) -> None:
    backbone = vision_backbone(tower)
    [row] = rows_of(images(1), "class")
    found = backbone.class_attention(row, lambda seen: backbone.states([seen], PromptOutput()))
    backbone.model.set_attn_implementation("eager")
    with torch.no_grad():
        said = backbone.model(images(1), output_attentions=True).attentions
    assert len(said) == LAYERS
    for layer, patches in zip(said, found.patches, strict=True):
        # transformers takes the softmax in float32
        assert_close(patches.flatten(1), layer[0, :, 0, -PATCHES:].double(), rtol=1e-5, atol=1e-6)


def test_a_prefix_of_keys_and_values_is_seen_and_all_shares_sum_to_one() -> None:
    backbone = vision_backbone("dinov2-registers")
    prefix = tuple((vectors(1, 4, 3, 8, seed=i), vectors(1, 4, 3, 8, seed=9 + i)) for i in range(LAYERS))
    output = PromptOutput(prefix=prefix, layers=tuple(vectors(1, 2, WIDTH, seed=i) for i in range(LAYERS)))
    [row] = rows_of(images(1, SIZE + PATCH), "mean")
    found = backbone.class_attention(row, lambda seen: backbone.states([seen], output))
    assert [tuple(layer.shape) for layer in found.prompts] == [(4, 5)] * LAYERS
    assert found.patches.shape == (LAYERS, 4, 4, 4)
    assert found.special.shape == (LAYERS, 4, 3)  # the class token and two registers
    shares = found.shares()
    assert list(shares) == ["prompts", "patches", "class token and registers"]
    for i in range(LAYERS):
        assert sum(values[i] for values in shares.values()) == pytest.approx(1)


def test_watching_changes_nothing_and_ends() -> None:
    backbone = vision_backbone()
    output = PromptOutput(layers=tuple(vectors(1, 2, WIDTH, seed=i) for i in range(LAYERS)))
    rows = rows_of(images(2), "class")
    before = backbone.states(rows, output)
    backbone.class_attention(rows[0], lambda seen: backbone.states([seen], output))
    assert torch.equal(backbone.states(rows, output), before)  # two images: a watch would refuse them
    with pytest.raises(ValueError, match="one image at a time, found 2"):
        backbone.class_attention(rows[0], lambda seen: backbone.states(rows, output))
    assert torch.equal(backbone.states(rows, output), before)


def test_a_tower_that_cannot_show_it_says_why() -> None:
    [row] = rows_of(images(1), "mean")
    for backbone, reason in (
        (vision_backbone("siglip"), "has no class token"),
        (vision_backbone("vit", packed=False), "attention cannot be reached"),
    ):
        with pytest.raises(ValueError, match=reason):
            backbone.class_attention(row, lambda seen: None)


def test_of_a_prompt_that_first_looks_at_the_image_the_pass_with_the_prompt_is_shown() -> None:
    backbone, [row] = vision_backbone(), rows_of(images(1), "class")
    module = Conditional(deep=True)
    model = PromptedModel(backbone, [module])
    with torch.no_grad():
        query = naive.state(backbone.model, images(1)[0], PATCHES)
        prompts = module.prompts(query[None])[:, 0]  # (L, 1, P, d) -> (L, P, d)
        expected = naive.class_attention(backbone.model, images(1)[0], PATCHES, deep=[*prompts])
    found = backbone.class_attention(row, lambda seen: model.states([seen]))
    for i, (prompt, _, patches) in enumerate(expected):
        assert_close(found.prompts[i], prompt, **CLOSE)
        assert_close(found.patches[i].flatten(1), patches, **CLOSE)


def test_a_layer_s_own_prompt_comes_before_rows_that_stay() -> None:
    backbone, prompts = vision_backbone(), vectors(LAYERS, P, WIDTH)
    staying = vectors(1, 3, WIDTH, seed=7)
    output = PromptOutput(tokens=staying, layers=tuple(prompts[i : i + 1] for i in range(LAYERS)))
    [row] = rows_of(images(1), "class")
    with torch.no_grad():
        expected = naive.class_attention(
            backbone.model, images(1)[0], PATCHES, shallow=staying[0], deep=[*prompts]
        )
    found = backbone.class_attention(row, lambda seen: backbone.states([seen], output))
    for mine, (prompt, _, _) in zip(found.prompts, expected, strict=True):
        assert mine.shape == (4, P + 3)
        assert_close(mine, prompt, **CLOSE)
