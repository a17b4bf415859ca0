"""Cached features of the frozen part: training with a cache equals training without, and damaged files are computed again."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt import (
    L2P,
    VPT,
    DualPrompt,
    LinearProbe,
    MLPProbe,
    PartialTuning,
    SequenceClassification,
    SideTuning,
    TokenClassification,
    TunedPrompt,
    fit,
)
from softprompt.backbones.base import Backbone
from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.features.cache import FeatureCache, recall, with_features
from softprompt.images import POOLINGS
from softprompt.outputs import EncodedRow, Known, PromptOutput
from softprompt.prompts import Method
from softprompt.training.progress import Record, Silent
from tests.naive import vision as naive
from tests.tiny.dual import dual_backbone
from tests.tiny.encoders import encoder_backbone
from tests.tiny.language import tiny_seq2seq, tiny_tokenizer
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import LAYERS, PATCHES, ROWS, RULE, TASK, TOWERS, Tower, images, vision_backbone
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings(
    "ignore:(every validation|no training word):softprompt.SoftpromptWarning"
)

SETTINGS: dict[str, Any] = {"steps": 3, "batch_size": 4, "evaluate_every": 2, "progress": False}
METHODS: list[Method] = [
    LinearProbe(),
    MLPProbe(layers=2, hidden=8, dropout=0.3),
    PartialTuning(),
    PartialTuning(layers=LAYERS - 1),
    SideTuning(),
    VPT(length=2, last_layers=1, dropout=0.1),
]


@contextmanager
def passes(backbone: Backbone) -> Iterator[list[int]]:
    """Images that a backbone's first layer has seen within the block, each call a number."""
    seen: list[int] = []
    first = naive.parts(backbone.model)[1][0]
    handle = first.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()


def assert_same(one: TunedPrompt, other: TunedPrompt) -> None:
    """Bit-identical: a later run reads the same features as the run that wrote the cache."""
    assert one.trained().keys() == other.trained().keys()
    for name, tensor in one.trained().items():
        assert torch.equal(tensor, other.trained()[name]), name
    assert one.metrics == other.metrics
    assert [r["loss"] for r in one.history] == [r["loss"] for r in other.history]


# --- the same training -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name} {getattr(m, 'layers', '')}")
def test_training_is_the_same(method: Method) -> None:
    backbone = vision_backbone(dtype=torch.float32)
    plain = fit(backbone, TASK, method, ROWS, ROWS[:6], **SETTINGS)
    with passes(backbone) as seen:
        cached = fit(backbone, TASK, method, ROWS, ROWS[:6], cache_features=True, **SETTINGS)
    assert sum(seen) == len(ROWS) + 6  # each image once
    for name, tensor in plain.trained().items():  # AdamW enlarges what rounding changes in a small gradient
        if "k_proj.bias" not in name:  # takes part in no softmax: its gradient is nothing but rounding
            assert_close(cached.trained()[name], tensor, rtol=0, atol=1e-4)
    assert_equal_up_to_rounding(cached.metrics, plain.metrics)
    losses = ([r["loss"] for r in one.history] for one in (cached, plain))
    assert_equal_up_to_rounding(*losses)
    inputs = [row["image"] for row in ROWS]
    assert_equal_up_to_rounding(cached.predict(inputs), plain.predict(inputs))


@pytest.mark.parametrize("layer", [1, LAYERS - 1, None])
@pytest.mark.parametrize("tower", TOWERS)
def test_known_rows_give_the_states_and_gradients_of_the_whole(tower: Tower, layer: int | None) -> None:
    backbone = vision_backbone(tower)
    pooling = "pooler" if tower == "siglip" else "class"
    rows = [EncodedRow((), read=(POOLINGS.index(pooling),), media=image) for image in images(3)]
    known = with_features(backbone, rows, layer, FeatureCache(), batch_size=2)
    for row in known:
        assert row.known is not None
        assert row.known.layer == layer
        assert row == rows[known.index(row)]  # nothing else is other
    naively = torch.stack([naive.state(backbone.model, x, PATCHES, read=pooling) for x in images(3)])
    assert_close(backbone.states(known, PromptOutput()), naively, rtol=1e-10, atol=1e-10)
    if layer is None:
        return
    prompts = torch.randn(LAYERS, 1, 2, 32, dtype=torch.float64, requires_grad=True)
    layers = tuple(prompts[i] if i >= layer else prompts[i, :, :0] for i in range(LAYERS))
    deep = [prompts[i, 0] if i >= layer else None for i in range(LAYERS)]
    found = backbone.states(known, PromptOutput(layers=layers))
    expected = torch.stack(
        [naive.state(backbone.model, x, PATCHES, deep=deep, read=pooling) for x in images(3)]
    )
    weights = torch.randn_like(found)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)
    (got,) = torch.autograd.grad((found * weights).sum(), prompts)
    (want,) = torch.autograd.grad((expected * weights).sum(), prompts)
    assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "llama", "t5"])
@pytest.mark.parametrize("reads", ["mean", "words"])
def test_probes_of_text_are_the_same(family: str, reads: str) -> None:
    backbone: Backbone
    if family == "t5":
        model = tiny_seq2seq("t5").requires_grad_(False)
        backbone = EncoderDecoderBackbone(model, tiny_tokenizer(closed=True), name="tiny/t5")
    else:
        backbone = tiny_backbone() if family == "llama" else encoder_backbone(family)  # type: ignore[arg-type]
    rows = [
        {**row, "words": row["text"].split(), "tags": ["B-X"] + ["O"] * row["text"].count(" ")}
        for row in TEXTS
    ]
    task = (
        SequenceClassification("{text} sentiment", labels=["neg", "pos"], pooling="mean")
        if reads == "mean"
        else TokenClassification(tags=["O", "B-X", "I-X"])
    )
    plain = fit(backbone, task, LinearProbe(), rows, rows[:4], **SETTINGS)
    cached = fit(backbone, task, LinearProbe(), rows, rows[:4], cache_features=True, **SETTINGS)
    for name, tensor in plain.trained().items():
        assert_close(cached.trained()[name], tensor, rtol=1e-5, atol=1e-7)
    assert_equal_up_to_rounding(cached.metrics, plain.metrics)


def test_where_nothing_is_frozen_nothing_is_kept() -> None:
    rows = [EncodedRow((), read=(0,), media=image) for image in images(2)]
    assert with_features(vision_backbone(), rows, 0, FeatureCache()) == rows
    text = [EncodedRow((5, 6), read=(0,))]
    found = with_features(encoder_backbone(), text, 1, FeatureCache())  # its layers cannot be entered
    assert [row.known for row in found] == [None]
    backbone = vision_backbone(dtype=torch.float32)
    method = VPT(length=2)
    assert_same(
        fit(backbone, TASK, method, ROWS, cache_features=True, **SETTINGS),
        fit(backbone, TASK, method, ROWS, **SETTINGS),
    )


def test_a_prompt_that_enters_below_what_is_known_is_an_error() -> None:
    backbone = vision_backbone()
    rows = [EncodedRow((), read=(0,), media=image) for image in images(2)]
    known = with_features(backbone, rows, 2, FeatureCache())
    prompt = torch.zeros(1, 2, 32, dtype=torch.float64)
    for output in (PromptOutput(tokens=prompt), PromptOutput(layers=(prompt,) * LAYERS)):
        with pytest.raises(ValueError, match="known as far as layer 2, and the prompt enters in front of it"):
            backbone.states(known, output)


def test_a_batch_of_known_and_unknown_rows_is_that_of_all() -> None:
    backbone = vision_backbone()
    rows = [EncodedRow((), read=(0,), media=image) for image in images(3)]
    expected = backbone.states(rows, PromptOutput())
    for layer in (1, None):
        known = with_features(backbone, rows, layer, FeatureCache())
        found = backbone.states([known[0], rows[1], known[2]], PromptOutput())
        assert_close(found, expected, rtol=1e-10, atol=1e-10)


# --- on disk -----------------------------------------------------------------------------------------------


def probe(folder: Path, **changes: Any) -> tuple[TunedPrompt, int]:
    """A run with a cache in a folder, and how many images it took through the backbone."""
    given: dict[str, Any] = {"backbone": vision_backbone(dtype=torch.float32), "method": PartialTuning()}
    given |= {"train": ROWS[:8], "task": TASK, **changes}
    with passes(given["backbone"]) as seen:
        tuned = fit(validation=ROWS[:6], cache_features=folder, **given, **SETTINGS)
    return tuned, sum(seen)


def test_the_next_run_reads_what_the_first_has_written(tmp_path: Path) -> None:
    first, images_run = probe(tmp_path / "cache")
    again, none = probe(tmp_path / "cache")
    assert images_run == 8 + 6
    assert none == 0
    assert_same(again, first)
    assert all(path.name.endswith(".safetensors") for path in (tmp_path / "cache").iterdir())


def test_another_model_layer_precision_reading_or_image_is_another_file(tmp_path: Path) -> None:
    backbone = vision_backbone()
    rows = [EncodedRow((), read=(0,), media=image) for image in images(2)]
    read_twice = [dataclasses.replace(row, read=(0, 1)) for row in rows]
    other = vision_backbone()
    with torch.no_grad():  # the patch embedding, which the fingerprint sees, stays
        naive.parts(other.model)[1][0].layernorm_before.weight[0] += 1e-3  # type: ignore[union-attr]
    rule = dataclasses.replace(backbone.rule, mean=(0.1, 0.4, 0.3))

    def runs(backbone: Backbone, rows: list[EncodedRow], layer: int | None) -> bool:
        with passes(backbone) as seen:
            with_features(backbone, rows, layer, FeatureCache(tmp_path))
        return bool(seen)

    assert runs(backbone, rows, 1)
    assert not runs(backbone, rows, 1)
    assert runs(other, rows, 1)
    assert runs(vision_backbone(rule=rule), rows, 1)
    assert runs(vision_backbone(dtype=torch.float32), rows, 1)
    assert runs(backbone, rows, 2)
    assert runs(backbone, rows, None)
    assert runs(backbone, read_twice, None)
    assert runs(backbone, rows[::-1], 1)
    assert not runs(backbone, rows, None)
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_file_is_found_and_made_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = probe(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, content in whole.items():
        bad = bytearray(content)
        bad[-9] ^= 4
        path.write_bytes(
            {"flipped": bytes(bad), "cut": content[:-9], "empty": b"", "foreign": b"x" * 99}[damage]
        )
    with caplog.at_level(logging.WARNING):
        again, images_run = probe(tmp_path)
    assert images_run == 8 + 6
    assert "is damaged" in caplog.text
    assert_same(again, first)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        _, images_run = probe(tmp_path / "file" / "cache")
    assert images_run == 8 + 6
    assert "could not be written" in caplog.text


def test_memory_and_disk_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = vision_backbone()
    rows = [EncodedRow((), read=(0,), media=image) for image in images(4)]
    size = 4 * (PATCHES + 1) * 32 * 8  # bytes of float64
    with caplog.at_level(logging.WARNING):
        assert [r.known for r in with_features(backbone, rows, 1, FeatureCache(memory=size - 1))] == [
            None
        ] * 4
    assert "raise FeatureCache(memory=...)" in caplog.text
    cache = FeatureCache(tmp_path, memory=size, disk=2 * size + 4000)
    for age, layer in enumerate((1, 2)):
        with_features(backbone, rows, layer, cache)
        for path in tmp_path.iterdir():
            if path.stat().st_mtime_ns > 10:
                os.utime(path, ns=(age, age))
    old, new = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    with_features(backbone, [dataclasses.replace(rows[0], media=images(1, seed=5)[0]), *rows[1:]], 1, cache)
    assert not old.exists()
    assert new.exists()
    assert len(list(tmp_path.iterdir())) == 2
    with_features(backbone, rows, 1, FeatureCache(tmp_path / "small", disk=size - 1))
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "method", [L2P(pool=4, length=2, top=2), DualPrompt(general_layers=1, expert_layers=1)]
)
def test_what_prompts_are_chosen_by_is_kept_too(method: Method, tmp_path: Path) -> None:
    first, _ = probe(tmp_path / "cache", method=method)
    plain = fit(first.backbone, TASK, method, ROWS[:8], ROWS[:6], **SETTINGS)
    for name, tensor in plain.trained().items():  # queries of other batches differ in their last bits
        assert_close(first.trained()[name], tensor, rtol=1e-4, atol=1e-6)
    backbone = vision_backbone(dtype=torch.float32)
    with passes(backbone) as seen:
        again, _ = probe(tmp_path / "cache", method=method, backbone=backbone)
    steps = 3 * 4 + 2 * 6  # what carries a prompt: three steps of four, two evaluations of six
    assert sum(seen) == steps
    assert_same(again, first)


def test_what_a_dual_encoder_makes_of_an_image_is_kept_too(tmp_path: Path) -> None:
    backbone = dual_backbone("clip")
    read = POOLINGS.index("embedding")
    size = RULE.size
    pictures = torch.randint(0, 256, (3, 3, *size), generator=torch.Generator().manual_seed(0)).byte()
    rows = [EncodedRow((), read=(read,), media=picture) for picture in pictures.unbind()]
    expected = RowFeatures(backbone)(rows, "embedding")
    for _ in range(2):
        features = RowFeatures(backbone)
        recall(features, rows, "embedding", FeatureCache(tmp_path))
        assert len(features) == 3
        assert_close(features(rows, "embedding"), expected, rtol=1e-10, atol=1e-10)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_probe_and_a_pool_of_prompts_share_a_file(tmp_path: Path) -> None:
    probe(tmp_path, method=LinearProbe())
    files = {path.name for path in tmp_path.iterdir()}
    probe(tmp_path, method=L2P(pool=4, length=2, top=2))
    assert {path.name for path in tmp_path.iterdir()} == files


class Stopping(Silent):
    def update(self, record: Record) -> None:
        if record.step == 4:
            raise InterruptedError


def test_a_run_with_a_cache_that_is_broken_off_ends_bit_identical(tmp_path: Path) -> None:
    backbone = vision_backbone(dtype=torch.float32)
    settings: dict[str, Any] = {"steps": 6, "batch_size": 4, "checkpoint_every": 2}
    given = (backbone, TASK, PartialTuning(), ROWS)
    whole = fit(*given, **settings, progress=False, cache_features=tmp_path / "another cache")
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    with pytest.raises(InterruptedError):
        fit(*given, **settings, progress=Stopping(), folder=runs, cache_features=cache)
    resumed = fit(*given, **settings, progress=False, folder=runs, cache_features=cache)
    assert resumed.trained().keys() == whole.trained().keys()
    for name, tensor in whole.trained().items():
        assert torch.equal(tensor, resumed.trained()[name]), name


def test_what_is_known_is_no_part_of_a_row() -> None:
    row = EncodedRow((1, 2), read=(0,))
    assert dataclasses.replace(row, known=Known(None, torch.zeros(1, 4))) == row
