"""predict and inspect for images that are classified by texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import softprompt as sp
from tests.cli.runs import as_json, softprompt
from tests.cli.test_cli_verbs import Page
from tests.tiny.dual import dual_tokenizer, tiny_dual
from tests.tiny.vision import ROWS, SIZE

CPU = ("--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dual")
    tiny_dual("clip", dtype=torch.float32).save_pretrained(folder / "backbone")
    dual_tokenizer("clip").save_pretrained(folder / "backbone")
    rule = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    rule |= {"do_center_crop": False}
    (folder / "backbone" / "preprocessor_config.json").write_text(json.dumps(rule))
    backbone = sp.load_backbone(str(folder / "backbone"), dtype="float32", device="cpu")
    task = sp.ImageTextClassification(labels=["red", "blue"])
    tuned = sp.fit(backbone, task, sp.CoOp(length=3), ROWS, steps=3, batch_size=4, warmup=0, progress=False)
    return tuned.save(folder / "prompt")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = []
    for i, row in enumerate(ROWS[:5]):
        row["image"].save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": str(tmp_path / f"{i}.png"), "label": row["label"]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


@pytest.mark.slow
def test_one_page_shows_the_context_s_words_the_predictions_and_what_is_taken_for_what(
    prompt: Path, data: Path, tmp_path: Path
) -> None:
    html = tmp_path / "page.html"
    found = as_json("inspect", prompt, "--data", data, "--limit", "4", "--top", "2", "--html", html, *CPU)
    measured = as_json("evaluate", prompt, "--data", data, "--limit", "4", *CPU)["metrics"]
    assert found["metrics"] == measured
    assert len(found["words"]["tokens"]) == 3
    assert all(len(token["nearest"]["cosine"]) == 2 for token in found["words"]["tokens"])
    predicted = as_json("predict", prompt, *(image["image"] for image in found["images"]), *CPU)
    for image, row in zip(found["images"], predicted["predictions"], strict=True):
        assert image["label"] == row["label"]
        assert image["probabilities"] == pytest.approx(row["probabilities"])
        assert image["right"] in ("red", "blue")
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "Words near to the context" in page.texts
    verdicts = [attributes["data-verdict"] for _, attributes in page.tags if "data-verdict" in attributes]
    right = round(measured["accuracy"] * measured["rows"])
    assert verdicts == ["wrong"] * (4 - right) + ["right"] * right  # the wrong ones first
    assert f"{4 - right} of 4 images with a known label are labelled wrongly" in " ".join(page.texts)


def test_inspect_prints_the_words_below_the_images(prompt: Path, data: Path) -> None:
    result = softprompt("inspect", prompt, data.parent / "0.png", *CPU)
    assert result.exit_code == 0
    flat = " ".join(result.stdout.split())
    assert flat.index("likeliest") < flat.index("logit lens")
    assert "unknown" in flat  # the right label


def test_a_split_without_data_is_refused(prompt: Path) -> None:
    result = softprompt("inspect", prompt, "--limit", "3", *CPU)
    assert result.exit_code == 1
    assert "need --data, which was not given" in " ".join(result.stderr.split())


def test_other_classes_are_named_at_the_command_line(prompt: Path, data: Path) -> None:
    other = ("--label", "cat", "--label", "red", "--label", "blue=very blue water")
    [shown] = as_json("predict", prompt, data.parent / "0.png", *other, *CPU)["predictions"]
    tuned = sp.load(prompt, sp.load_backbone(str(prompt.parent / "backbone"), dtype="float32", device="cpu"))
    asked = tuned.with_labels(["cat", "red", "blue"], names={"blue": "very blue water"})
    [expected] = asked.predict([ROWS[0]["image"]])
    assert list(shown["probabilities"]) == ["cat", "red", "blue"]
    assert shown["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    measured = as_json("evaluate", prompt, "--data", data, *other, *CPU)["metrics"]
    assert list(measured["predicted"]) == ["cat", "red", "blue"]
    seen = as_json("inspect", prompt, data.parent / "0.png", *other, *CPU)["images"]
    assert seen[0]["probabilities"] == pytest.approx(shown["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("cat",), "two or more are needed"),
        (("cat", "cat"), "are the same text, 'cat'"),
        (("cat", "=dog"), "--label '=dog' names no label"),
        (("cat", "dog="), "class name '' of label 'dog' has no tokens"),
    ],
)
def test_classes_that_cannot_be_meant_are_named(
    prompt: Path, data: Path, labels: tuple[str, ...], message: str
) -> None:
    options = [part for label in labels for part in ("--label", label)]
    result = softprompt("predict", prompt, data.parent / "0.png", *options, *CPU)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
