"""Dual encoders: what is run once, what is kept for backward, how they are loaded, and parts that do not match."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor

from softprompt import VPT, ImageClassification, LinearProbe, fit, load, load_backbone
from softprompt.backbones.dual import backbone as module
from softprompt.backbones.dual.backbone import DualBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.backbones.dual.test_backbone_prompts import noise, rows_of
from tests.tiny.dual import DUALS, TASK, TEXT_WIDTH, Dual, dual_backbone, dual_tokenizer, tiny_dual
from tests.tiny.vision import ROWS, RULE, WIDTH, images
from tests.tolerances import assert_equal_up_to_rounding


def test_texts_run_in_parts_give_the_same_logits_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = dual_backbone()
    rows = rows_of(backbone, "end", 3)
    gradients, logits = [], []
    for chunk in (8192, 12):
        monkeypatch.setattr(module, "CHUNK", chunk)
        context = noise(1, 3, TEXT_WIDTH).requires_grad_()
        scores = backbone.score(rows, PromptOutput(tokens=context)).scores()
        scores.square().sum().backward()
        logits.append(scores.detach())
        gradients.append(context.grad)
    assert_equal_up_to_rounding(logits[0], logits[1])
    assert_equal_up_to_rounding(gradients[0], gradients[1])


def test_what_is_kept_for_backward_does_not_grow_with_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = dual_backbone()

    def kept(copies: int, chunk: int) -> int:
        """Bytes saved for backward of `copies` times the names of TASK."""
        monkeypatch.setattr(module, "CHUNK", chunk)
        [row] = rows_of(backbone, "end", 3, 1)
        targets = tuple((*text[:-1], 5 + n, text[-1]) for n in range(copies) for text in row.targets)
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        context = noise(1, 3, TEXT_WIDTH).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = backbone.score([replace(row, targets=targets)], PromptOutput(tokens=context)).scores()
        assert scores.shape == (1, len(targets))
        return sum(saved.values())

    assert kept(16, 24) < kept(4, 8192) / 4
    assert kept(16, 8192) > 2 * kept(4, 8192)


def test_a_part_of_texts_counts_the_padding_that_is_run() -> None:
    siglip, clip = dual_backbone("siglip"), dual_backbone("clip")
    texts = [EncodedRow((1, 2, 3))] * 12
    positions = siglip._texts.positions
    assert positions is not None
    parts = [
        [len(part) for part in module._parts(texts, one._texts.cost, 6 * positions)] for one in (siglip, clip)
    ]
    assert parts == [[6, 6], [12]]


@pytest.mark.parametrize("dual", DUALS)
def test_recomputed_layers_give_the_same_gradients(dual: Dual) -> None:
    backbone = dual_backbone(dual)
    gradients = []
    for one in (backbone, backbone.with_settings(gradient_checkpointing=True)):
        context = noise(1, 3, TEXT_WIDTH).requires_grad_()
        one.score(rows_of(one, "end", 3), PromptOutput(tokens=context)).scores().square().sum().backward()
        gradients.append(context.grad)
    assert_equal_up_to_rounding(gradients[0], gradients[1])


def test_a_text_is_run_once_however_many_images_are_compared_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = dual_backbone()
    run: list[int] = []
    embed = type(backbone._texts).embed

    def counted(self: object, texts: list[EncodedRow], prompt: PromptOutput) -> Tensor:
        run.append(len(texts))
        return embed(self, texts, prompt)  # type: ignore[arg-type]

    monkeypatch.setattr(type(backbone._texts), "embed", counted)
    rows = rows_of(backbone, "end", 2, count=5)
    prompt = PromptOutput(tokens=noise(1, 2, TEXT_WIDTH))
    plain = backbone.score(rows, prompt).scores()
    assert run == [3]
    with torch.no_grad():
        compiled = backbone.compile(rows, prompt)
        first = backbone.score(rows[:3], compiled).scores()
        second = backbone.score(rows[3:], compiled).scores()
    assert run == [3, 3]
    assert_equal_up_to_rounding(torch.cat([first, second]), plain)


def test_what_stands_in_front_of_all_names_is_run_once() -> None:
    backbone = dual_backbone()
    fed: list[int] = []

    def count(_: object, __: object, inputs: dict[str, Tensor]) -> None:
        fed.append(inputs["inputs_embeds"].shape[1])

    backbone.model.text_model.encoder.register_forward_pre_hook(count, with_kwargs=True)  # type: ignore[union-attr, operator]
    rows = rows_of(backbone, "end", 4)
    backbone.score(rows, PromptOutput(tokens=noise(1, 4, TEXT_WIDTH)))
    own = sum(len(text) - 5 for text in rows[0].targets)
    assert fed == [5 + own]


def test_a_head_reads_the_vision_tower_alone() -> None:
    backbone = dual_backbone(dtype=torch.float32)
    task = ImageClassification(labels=["red", "blue"])
    tuned = fit(backbone, task, LinearProbe(), ROWS, steps=30, batch_size=8, progress=False)
    assert tuned.evaluate(ROWS)["accuracy"] > 0.9
    row = EncodedRow((), read=(0,), media=images(1)[0].float())
    with pytest.raises(ValueError, match="stands in the text tower"):
        backbone.states([row], PromptOutput(tokens=noise(1, 2, TEXT_WIDTH)))


def test_mistakes_are_named() -> None:
    backbone = dual_backbone()
    row = EncodedRow((), media=images(1)[0])
    with pytest.raises(ValueError, match="no texts"):
        backbone.score([row], PromptOutput())
    with pytest.raises(ValueError, match="contexts of its own for 2 texts"):
        backbone.score(
            rows_of(backbone, "end", 2), PromptOutput(tokens=noise(2, 2, TEXT_WIDTH), texts=torch.arange(2))
        )
    with pytest.raises(ValueError, match="20 positions"):
        backbone.score([replace(row, targets=((1,) * 21,))], PromptOutput())
    with pytest.raises(ValueError, match="writes none"):
        backbone.generate([row], PromptOutput())


def test_a_model_object_is_loaded_with_what_reads_for_it() -> None:
    model = tiny_dual("clip")
    tokenizer = dual_tokenizer("clip")
    assert isinstance(load_backbone(model, tokenizer=tokenizer, processor=RULE), DualBackbone)
    with pytest.raises(ValueError, match="without its image processor"):
        load_backbone(model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="without its tokenizer"):
        load_backbone(model, processor=RULE)


def test_towers_of_different_models_are_refused() -> None:
    model = tiny_dual("clip")
    tokenizer = dual_tokenizer("clip")
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(
        ValueError, match=r"the tokenizer has ids up to .* take the tokenizer that was saved with this model"
    ):
        DualBackbone(model, tokenizer, RULE)
    model.config.text_config.eos_token_id = 5
    with pytest.raises(
        ValueError, match=r"end-of-text token, 5, .* take the tokenizer that was saved with this model"
    ):
        DualBackbone(model, dual_tokenizer("clip"), RULE)
    model = tiny_dual("clip")
    model.visual_projection = torch.nn.Linear(WIDTH, 7, bias=False)
    with pytest.raises(
        ValueError, match=r"images become 7 numbers and texts 20, .* take both from one checkpoint"
    ):
        DualBackbone(model, dual_tokenizer("clip"), RULE)


@pytest.mark.slow
@pytest.mark.parametrize("dual", DUALS)
def test_a_folder_is_loaded_with_its_tokenizer_and_its_image_processor(dual: Dual, tmp_path: Path) -> None:
    model = tiny_dual(dual, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    dual_tokenizer(dual).save_pretrained(tmp_path / "model")
    CLIPImageProcessor(size={"shortest_edge": 12}, crop_size=12).save_pretrained(tmp_path / "model")
    backbone = load_backbone(tmp_path / "model", dtype="float32", device="cpu")
    assert backbone.spec.family == "vision-language"
    tuned = fit(backbone, TASK.with_labels(["red", "blue"]), VPT(length=2), ROWS, steps=2, progress=False)
    tuned.save(tmp_path / "prompt")
    again = load(tmp_path / "prompt", backbone)
    pictures = [row["image"] for row in ROWS[:3]]
    assert again.predict(pictures) == tuned.predict(pictures)
    other = dual_backbone(dual, dtype=torch.float32, seed=1)
    with pytest.raises(ValueError, match="other weights in the embedding table"):
        load(tmp_path / "prompt", other)
