"""Vision backbones: prompts beside the rows give what concatenation gives, output and gradient, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from softprompt import load_backbone
from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.backbones.vision.tower import find_tower
from softprompt.images import POOLINGS, ImageRule
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import vision as naive
from tests.tiny.language import tiny_causal_lm
from tests.tiny.vision import (
    LAYERS,
    PATCH,
    PATCHES,
    RULE,
    SIZE,
    TOWERS,
    WIDTH,
    Tower,
    images,
    tiny_tower,
    vision_backbone,
)

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
each_tower = pytest.mark.parametrize("tower", TOWERS)
P = 2


def rows_of(pixels: Tensor, read: str) -> list[EncodedRow]:
    return [EncodedRow((), read=(POOLINGS.index(read),), media=image) for image in pixels]


def reads_of(backbone: VisionBackbone) -> tuple[str, ...]:
    assert backbone.spec.image is not None
    return backbone.spec.image.poolings


def vectors(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def variants(prompts: Tensor) -> dict[str, tuple[PromptOutput, dict[str, Any]]]:
    """(L, P, d) -> what a method gives, and what the naive implementation is told."""
    one = [prompts[i : i + 1] for i in range(LAYERS)]
    none = prompts[:1, :0]
    return {
        "shallow": (PromptOutput(tokens=one[0]), {"shallow": prompts[0]}),
        "deep": (PromptOutput(layers=tuple(one)), {"deep": [*prompts]}),
        "first, staying": (
            PromptOutput(tokens=one[1], entry=1, layers=(one[0], none, none)),
            {"shallow": prompts[1], "entry": 1, "deep": [prompts[0], None, None]},
        ),
        "first, dropped": (
            PromptOutput(layers=(one[0], one[1], none)),
            {"deep": [prompts[0], prompts[1], None]},
        ),
        "last": (PromptOutput(layers=(none, none, one[2])), {"deep": [None, None, prompts[2]]}),
        "shared": (PromptOutput(layers=(one[0],) * LAYERS), {"deep": [prompts[0]] * LAYERS}),
        "nothing": (PromptOutput(), {}),
    }


WITHOUT_ROWS = ("nothing", "first, dropped")  # behind the last layer there is no prompt that could be read


@pytest.mark.slow
@each_tower
@pytest.mark.parametrize("variant", variants(torch.zeros(LAYERS, P, WIDTH)))
def test_states_and_gradients_are_those_of_concatenation(tower: Tower, variant: str) -> None:
    backbone, prompts, pixels = vision_backbone(tower), vectors(LAYERS, P, WIDTH), images(2)
    for read in reads_of(backbone):
        if read == "prompts" and variant in WITHOUT_ROWS:
            continue
        output, told = variants(prompts)[variant]
        found = backbone.states(rows_of(pixels, read), output)
        expected = torch.stack([naive.state(backbone.model, x, PATCHES, **told, read=read) for x in pixels])
        assert_close(found, expected, **CLOSE)
        if variant == "nothing":
            continue
        weights = torch.randn_like(found)
        (got,) = torch.autograd.grad((found * weights).sum(), prompts)
        (want,) = torch.autograd.grad((expected * weights).sum(), prompts)
        assert_close(got, want, **CLOSE)
        # SigLIP's class-less rows are all read in the end, so every prompt matters but those behind the last read.
        assert got.abs().sum() > 0


@pytest.mark.slow
@each_tower
def test_the_concatenating_path_and_the_compiled_prompt_give_the_same(tower: Tower) -> None:
    shared, plain = vision_backbone(tower), vision_backbone(tower, packed=False)
    prompts, pixels = vectors(LAYERS, P, WIDTH), images(3)
    for name, (output, _) in variants(prompts).items():
        for read in reads_of(shared):
            if read == "prompts" and name in WITHOUT_ROWS:
                continue
            rows = rows_of(pixels, read)
            expected = plain.states(rows, output)
            assert_close(shared.states(rows, output), expected, **CLOSE, msg=name)
            with torch.no_grad():
                assert_close(shared.states(rows, shared.compile(rows, output)), expected, **CLOSE, msg=name)


@each_tower
def test_without_a_prompt_a_tower_reads_as_transformers_does(tower: Tower) -> None:
    backbone, pixels = vision_backbone(tower), images(2)
    theirs = backbone.model(pixels)
    if tower == "siglip":
        expected = theirs.pooler_output
        found = backbone.states(rows_of(pixels, "pooler"), PromptOutput())
    else:
        expected = theirs.pooler_output if tower == "clip" else theirs.last_hidden_state[:, 0]
        found = backbone.states(rows_of(pixels, "class"), PromptOutput())
    assert_close(found, expected, **CLOSE)


@each_tower
def test_prompts_stand_behind_the_class_token_without_a_position(tower: Tower) -> None:
    backbone = find_tower(tiny_tower(tower))
    embedded, prompt = backbone.embed(images(2)), vectors(1, P, WIDTH)
    rows = backbone.insert(embedded, prompt)
    front = 0 if tower == "siglip" else 1
    assert torch.equal(rows[:, front : front + P], prompt.expand(2, -1, -1))
    assert torch.equal(rows[:, :front], embedded[:, :front])
    assert torch.equal(rows[:, front + P :], embedded[:, front:])
    assert torch.equal(backbone.remove(rows, P), embedded)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_an_image_is_read_alike_whatever_else_is_in_the_batch(kind: str) -> None:
    backbone, prompts = vision_backbone("dinov2-registers"), vectors(LAYERS, P, WIDTH)
    output, _ = variants(prompts)[kind]
    first, others = images(1), images(4, seed=5)
    alone = backbone.states(rows_of(first, "class"), output)
    among = backbone.states(rows_of(torch.cat([others, first]), "class"), output)
    assert_close(among[-1:], alone, **CLOSE)


@pytest.mark.parametrize(
    ("patch", "height", "width"),
    [(4, 20, 20), (4, 12, 20), (4, 16, 12), (3, 12, 12), (3, 9, 15), (6, 18, 12)],
)
@each_tower
def test_images_of_another_size_have_their_positions_interpolated(
    tower: Tower, patch: int, height: int, width: int
) -> None:
    backbone, prompts = vision_backbone(tower, patch=patch), vectors(LAYERS, P, WIDTH)
    pixels = images(2, height, width=width)
    output, told = variants(prompts)["deep"]
    patches = (height // patch) * (width // patch)
    read = reads_of(backbone)[0]
    expected = [naive.state(backbone.model, x, patches, **told, read=read) for x in pixels]
    assert_close(backbone.states(rows_of(pixels, read), output), torch.stack(expected), **CLOSE)


def test_a_batch_may_mix_sizes_prompts_and_readings() -> None:
    backbone = vision_backbone("dinov2")
    tokens = vectors(2, 3, WIDTH)
    prompt = PromptOutput(tokens=tokens, lengths=torch.tensor([3, 1]))
    small, large = images(3), images(1, SIZE + PATCH)
    rows = [
        EncodedRow((), read=(0,), media=small[0], prompt=1),
        EncodedRow((), read=(0, 1), media=small[1]),
        EncodedRow((), read=(1,), media=large[0], prompt=1),
        EncodedRow((), read=(0,), media=small[2], prompt=0),
    ]
    found = backbone.states(rows, prompt)

    def expected(image: Tensor, which: int, read: str, patches: int = PATCHES) -> Tensor:
        own = tokens[which, : 3 if which == 0 else 1]
        return naive.state(backbone.model, image, patches, shallow=own, read=read)

    wanted = [
        expected(small[0], 1, "class"),
        expected(small[1], 0, "class"),
        expected(small[1], 0, "mean"),
        expected(large[0], 1, "mean", (SIZE // PATCH + 1) ** 2),
        expected(small[2], 0, "class"),
    ]
    assert_close(found, torch.stack(wanted), **CLOSE)


def test_every_image_may_carry_a_prompt_of_its_own() -> None:
    backbone, pixels, prompts = vision_backbone(), images(3), vectors(4, P, WIDTH)
    choice = torch.tensor([2, 0, 2])
    for output, told in (
        (PromptOutput(tokens=prompts, rows=choice), "shallow"),
        (PromptOutput(layers=(prompts,) * LAYERS, rows=choice), "deep"),
    ):
        found = backbone.states(rows_of(pixels, "class"), output)
        for b, which in enumerate(choice.tolist()):
            own = {told: prompts[which] if told == "shallow" else [prompts[which]] * LAYERS}
            expected = naive.state(backbone.model, pixels[b], PATCHES, **own)  # type: ignore[arg-type]
            assert_close(found[b], expected, **CLOSE)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("packed", [True, False])
def test_each_image_drops_its_own_numbers_of_the_prompt(kind: str, packed: bool) -> None:
    backbone, prompts, pixels = vision_backbone(packed=packed), vectors(LAYERS, P, WIDTH), images(3)
    output = variants(prompts)[kind][0]
    output = PromptOutput(tokens=output.tokens, layers=output.layers, dropout=0.5)
    torch.manual_seed(3)
    found = backbone.states(rows_of(pixels, "class"), output)
    torch.manual_seed(3)
    drawn = [
        torch.nn.functional.dropout(prompts[i : i + 1].expand(3, -1, -1), 0.5)
        for i in range(1 if kind == "shallow" else LAYERS)
    ]
    assert not torch.equal(drawn[0][0] == 0, drawn[0][1] == 0)
    expected = [
        naive.state(backbone.model, x, PATCHES, shallow=drawn[0][b])
        if kind == "shallow"
        else naive.state(backbone.model, x, PATCHES, deep=[layer[b] for layer in drawn])
        for b, x in enumerate(pixels)
    ]
    assert_close(found, torch.stack(expected), **CLOSE)
    weights = torch.randn_like(found)
    (got,) = torch.autograd.grad((found * weights).sum(), prompts)
    (want,) = torch.autograd.grad((torch.stack(expected) * weights).sum(), prompts)
    assert_close(got, want, **CLOSE)
    with torch.no_grad():
        whole = backbone.states(rows_of(pixels, "class"), variants(prompts)[kind][0])
        assert torch.equal(backbone.states(rows_of(pixels, "class"), output), whole)


@each_tower
@pytest.mark.parametrize("packed", [True, False])
def test_checkpointed_layers_give_the_same_gradient(tower: Tower, packed: bool) -> None:
    backbone, prompts = vision_backbone(tower, packed=packed), vectors(LAYERS, P, WIDTH)
    saving = backbone.with_settings(gradient_checkpointing=True)
    gradients = []
    for other in (backbone, saving):
        states = other.states(rows_of(images(2), reads_of(backbone)[0]), variants(prompts)["deep"][0])
        gradients.append(torch.autograd.grad(states.square().sum(), prompts)[0])
    assert_close(*gradients, **CLOSE)
    assert not any("forward" in vars(module) for module in backbone.model.modules())


def test_key_value_prefixes_stand_beside_the_rows_too() -> None:
    backbone, pixels, prompts = vision_backbone("vit"), images(2), vectors(LAYERS, P, WIDTH)
    tower = find_tower(backbone.model)
    prefix = tuple(tower.key_values(i, prompts[i : i + 1]) for i in range(LAYERS))
    found = backbone.states(rows_of(pixels, "class"), PromptOutput(prefix=prefix))
    expected = [naive.state(backbone.model, x, PATCHES, deep=[*prompts]) for x in pixels]
    assert_close(found, torch.stack(expected), **CLOSE)


def test_the_class_token_alone_goes_through_the_last_layer() -> None:
    backbone = vision_backbone()
    lengths: list[int] = []
    for layer in find_tower(backbone.model).layers:
        layer.mlp.register_forward_hook(lambda m, args, out: lengths.append(args[0].shape[1]))  # type: ignore[union-attr]
    backbone.states(rows_of(images(2), "class"), PromptOutput(layers=(vectors(1, P, WIDTH),) * LAYERS))
    assert lengths == [PATCHES + 1, PATCHES + 1, 1]
    backbone.states(rows_of(images(2), "mean"), PromptOutput())
    assert lengths[3:] == [PATCHES + 1] * 3


def test_only_prompts_and_the_class_token_go_through_the_last_layer_where_prompts_are_read() -> None:
    backbone = vision_backbone()
    lengths: list[int] = []
    for layer in find_tower(backbone.model).layers:
        layer.mlp.register_forward_hook(lambda m, args, out: lengths.append(args[0].shape[1]))  # type: ignore[union-attr]
    backbone.states(rows_of(images(2), "prompts"), PromptOutput(tokens=vectors(1, P, WIDTH)))
    assert lengths == [PATCHES + 1 + P, PATCHES + 1 + P, 1 + P]


def test_what_is_read_together_is_what_is_read_alone() -> None:
    backbone, (image,) = vision_backbone(), images(1)
    output = PromptOutput(tokens=vectors(1, P, WIDTH), layers=(vectors(1, 1, WIDTH, seed=2),) * LAYERS)
    reads = tuple(POOLINGS.index(read) for read in ("class", "prompts"))
    together = backbone.states([EncodedRow((), read=reads, media=image)], output)
    alone = [backbone.states([EncodedRow((), read=(read,), media=image)], output)[0] for read in reads]
    assert_close(together, torch.stack(alone), **CLOSE)


def test_prompts_of_several_lengths_may_each_be_a_rows_own() -> None:
    backbone, pixels, prompts = vision_backbone(), images(4), vectors(3, P, WIDTH)
    lengths, choice = torch.tensor([1, P, 0]), [1, 0, 2, 1]
    output = PromptOutput(tokens=prompts, lengths=lengths, rows=torch.tensor(choice))
    found = backbone.states(rows_of(pixels, "class"), output)
    for b, which in enumerate(choice):
        own = prompts[which, : int(lengths[which])]
        assert_close(found[b], naive.state(backbone.model, pixels[b], PATCHES, shallow=own), **CLOSE)


def test_what_becomes_of_deep_prompts_is_never_seen() -> None:
    """Overwritten with noise, the outputs of deep prompts change nothing; those of shallow ones do."""
    backbone, prompts, pixels = vision_backbone(packed=False), vectors(LAYERS, P, WIDTH), images(1)
    rows = rows_of(pixels, "class")
    found = {}
    for kind in ("deep", "shallow"):
        output = variants(prompts)[kind][0]
        before = backbone.states(rows, output)
        layer = find_tower(backbone.model).layers[0]

        def noisy(module: Any, args: Any, out: Tensor) -> Tensor:
            return torch.cat([out[:, :1], torch.randn(1, P, WIDTH, dtype=out.dtype), out[:, 1 + P :]], dim=1)

        handle = layer.register_forward_hook(noisy)
        found[kind] = torch.equal(backbone.states(rows, output), before)
        handle.remove()
    assert found == {"deep": True, "shallow": False}


def test_the_model_is_left_as_it_was() -> None:
    backbone, prompts = vision_backbone("siglip"), vectors(LAYERS, P, WIDTH)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    implementation = backbone.model.config._attn_implementation
    backbone.states(rows_of(images(2), "pooler"), variants(prompts)["deep"][0]).sum().backward()
    assert backbone.model.config._attn_implementation == implementation
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(p.grad is None for p in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())


def test_pixels_are_normalised_as_the_rule_says() -> None:
    backbone = vision_backbone()
    pixels = torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    mean, std = (
        torch.tensor(RULE.mean).double()[:, None, None],
        torch.tensor(RULE.std).double()[:, None, None],
    )
    ready = (pixels.double() / 255 - mean) / std
    found = [backbone.states(rows_of(x[None], "class"), PromptOutput()) for x in (pixels, ready)]
    assert_close(*found, rtol=1e-6, atol=1e-6)  # means are float32 numbers above


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_finds_that_prompts_can_stand_beside_the_rows(dtype: torch.dtype) -> None:
    for tower in TOWERS:
        assert vision_backbone(tower, packed=None, dtype=dtype).packed


def test_a_tower_whose_attention_is_another_concatenates(caplog: pytest.LogCaptureFixture) -> None:
    backbone = vision_backbone(packed=None)
    for layer in find_tower(backbone.model).layers:
        attention: Any = layer.attention
        turn = torch.eye(WIDTH, dtype=torch.float64).flip(0)
        attention.register_forward_pre_hook(lambda m, args, turn=turn: (args[0] @ turn, *args[1:]))
    assert not backbone.packed
    assert "concatenated" in caplog.text
    assert backbone.spec.key_values == ()


def test_the_spec_says_what_a_method_may_know() -> None:
    spec = vision_backbone("siglip").spec
    assert (spec.width, spec.layers, spec.vocabulary) == (WIDTH, LAYERS, 3 * PATCH * PATCH)
    assert spec.key_values == ((4, WIDTH // 4),) * LAYERS
    assert spec.image is not None
    assert spec.image.patch == (PATCH, PATCH)
    assert spec.image.poolings == ("mean", "mean-with-prompts", "pooler", "prompts")
    assert spec.image.pooling == "pooler"
    vit = vision_backbone("vit").spec.image
    assert vit is not None
    assert vit.pooling == "class"
    with pytest.raises(ValueError, match="no words that a prompt could start from"):
        spec.tokenize("a")


def test_what_is_not_defined_on_images_is_refused() -> None:
    backbone = vision_backbone()
    row = EncodedRow((), read=(0,), media=images(1)[0])
    cases = [
        (EncodedRow((), read=(0,)), PromptOutput(), "a row has no image"),
        (EncodedRow((), read=(3,), media=images(1)[0]), PromptOutput(), "cannot be read as 'pooler'"),
        (EncodedRow((), read=(9,), media=images(1)[0]), PromptOutput(), "cannot be read as 9"),
        (EncodedRow((), read=(4,), media=images(1)[0]), PromptOutput(), "no prompt stands among the rows"),
        (row, PromptOutput(offset=torch.zeros(1, 2, WIDTH)), "embeddings of words"),
        (row, PromptOutput(layers=(torch.zeros(1, 1, WIDTH),)), "the prompt has 1 layers"),
        (
            EncodedRow((), read=(0,), media=torch.zeros(3, SIZE + 1, SIZE)),
            PromptOutput(),
            "do not fall into patches",
        ),
    ]
    for bad, prompt, message in cases:
        with pytest.raises(ValueError, match=message):
            backbone.states([bad], prompt)
    for call in (backbone.score, backbone.generate):
        with pytest.raises(ValueError, match="take a task with a head"):
            call([row], PromptOutput())
    with pytest.raises(ValueError, match="has no tokenizer"):
        _ = backbone.tokenizer


# --- loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vit", "dinov2-registers", "clip", "siglip"])
def test_a_folder_gives_tower_and_rule(tower: Tower, tmp_path: Any) -> None:
    import json

    model = tiny_tower(tower, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    config = {
        "do_resize": True, "size": {"shortest_edge": 16}, "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE}, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5],
        "image_processor_type": "CLIPImageProcessor",
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    backbone = load_backbone(tmp_path, dtype="float32")
    assert isinstance(backbone, VisionBackbone)
    expected_rule = ImageRule((SIZE, SIZE), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), edge=16, as_transformers=True)
    assert backbone.rule == expected_rule
    rows = rows_of(images(1), reads_of(backbone)[-2])
    expected = VisionBackbone(model, RULE).states(rows, PromptOutput())
    assert_close(backbone.states(rows, PromptOutput()), expected)
    assert all(not p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_mae_gives_its_encoder_unmasked(whole: bool, tmp_path: Any) -> None:
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": LAYERS}
    sizes |= {"image_size": SIZE, "patch_size": PATCH, "intermediate_size": 48, "initializer_range": 0.2}
    decoder = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    torch.manual_seed(0)
    config = ViTMAEConfig(**sizes, **decoder, decoder_intermediate_size=16, mask_ratio=0.75)
    model = ViTMAEForPreTraining(config).eval()
    (model if whole else model.vit).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    backbone = load_backbone(tmp_path, dtype="float32")
    assert isinstance(backbone, VisionBackbone)
    pixels = images(2).float()
    model.config.mask_ratio = 0.0
    order = torch.arange(PATCHES).repeat(2, 1).float()
    with torch.no_grad():
        expected = model.vit(pixels, noise=order).last_hidden_state
    for read, states in (("class", expected[:, 0]), ("mean", expected[:, 1:].mean(dim=1))):
        assert_close(backbone.states(rows_of(pixels, read), PromptOutput()), states, rtol=1e-4, atol=1e-5)
    larger = images(1, 2 * SIZE).float()
    with torch.no_grad():
        noise = torch.arange(4 * PATCHES)[None].float()
        expected = model.vit(larger, noise=noise, interpolate_pos_encoding=True).last_hidden_state
    assert_close(
        backbone.states(rows_of(larger, "class"), PromptOutput()), expected[:, 0], rtol=1e-4, atol=1e-5
    )
    assert backbone.packed
    [state] = backbone.states(
        rows_of(pixels[:1], "mean-with-prompts"), PromptOutput(tokens=torch.ones(1, P, WIDTH))
    )
    assert state.isfinite().all()


def test_a_model_object_needs_its_rule() -> None:
    with pytest.raises(ValueError, match="without its image processor: pass processor="):
        load_backbone(tiny_tower("vit"))
    backbone = load_backbone(tiny_tower("vit"), processor=RULE)
    assert isinstance(backbone, VisionBackbone)
    with pytest.raises(ValueError, match="pass tokenizer="):
        load_backbone(tiny_causal_lm("llama"))
