"""The code in the documents runs as written."""

from __future__ import annotations

import ast
import contextlib
import functools
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from softprompt.version import __version__

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


DOCUMENTS = (
    "README.md",
    "docs/how-to.md",
    "docs/encoder-decoders.md",
    "docs/images-and-text.md",
    "docs/methods/heads-and-baselines.md",
    "docs/methods/prefixes.md",
    "docs/methods/virtual-tokens.md",
    "docs/methods/visual-prompts.md",
    "docs/protocols.md",
    "docs/methods/words.md",
    "docs/methods/clip.md",
    "docs/serving.md",
    "docs/studies.md",
)


def sections(document: str) -> dict[str, list[str]]:
    """By heading: the blocks of Python below it, up to the next one."""
    found: dict[str, list[str]] = {}
    pattern = re.compile(r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for heading, language, source in pattern.findall((ROOT / document).read_text()):
        if heading:
            title = heading
        elif language == "python":
            found.setdefault(title, []).append(source)
    return found


class Reader:
    """Reads documents from the top, each in a folder of its own: a section builds on those before it.

    It remembers what the sections of one document have left, the last that was read.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.document = ""
        self.namespace: dict[str, object] = {}
        self.read: set[str] = set()

    def run_to(self, document: str, last: str) -> None:
        """Run what has not been run yet of the sections up to this one."""
        if document != self.document:
            self.document, self.namespace, self.read = document, {}, set()
        folder = self.place / document
        folder.mkdir(parents=True, exist_ok=True)
        for title, sources in sections(document).items():
            if title not in self.read:
                with contextlib.chdir(folder):
                    for source in sources:
                        # The README's run takes minutes, the code is the same.
                        short = re.sub(r"steps=\d{3,}", "steps=3", source)
                        code = compile(short, f"{document}, {title}", "exec")
                        exec(code, self.namespace)  # noqa: S102 - our own documents
                self.read.add(title)
            if title == last:
                return


# The tests have no network: a hub id that a document names is this built-in model.
BUILT_IN = {"HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m-instruct"}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One for all documents, which begin with the same frozen backbone: it is loaded once."""
    import softprompt as sp

    load = sp.load_backbone
    named = functools.cache(load)

    def load_backbone(model: Any, **options: Any) -> Any:
        model = BUILT_IN.get(model, model) if isinstance(model, str) else model
        return named(model) if isinstance(model, str) and not options else load(model, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sp, "load_backbone", load_backbone)
        yield Reader(tmp_path_factory.mktemp("documents"))


@pytest.mark.real
@pytest.mark.parametrize(
    ("document", "section"), [(document, title) for document in DOCUMENTS for title in sections(document)]
)
def test_the_python_of_a_document_runs(document: str, section: str, reader: Reader) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a few steps on a few rows learn nothing, and say so
        reader.run_to(document, section)


def test_no_block_of_python_is_overlooked() -> None:
    for document in DOCUMENTS:
        run = [source for sources in sections(document).values() for source in sources]
        assert run == blocks(document, "python"), document


@pytest.mark.real
def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompt.cli import app

    lines = [line for block in blocks("README.md", "bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("softprompt ")]
    assert {command[0] for command in commands} == {"fetch", "train", "evaluate", "predict", "inspect"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in commands:
        if command[0] == "train":
            command += ["recipe.steps=3", "data.train.limit=64", "data.validation.limit=16", "--quiet"]
        if command[0] == "evaluate":
            command[command.index("--limit") + 1] = "16"
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.output)


def test_every_file_of_ours_that_a_document_names_exists() -> None:
    files = [path.relative_to(ROOT).as_posix() for part in OURS for path in (ROOT / part).rglob("*.py")]
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]:
        for name in re.findall(r"`([\w/]+\.py)\b", document.read_text(encoding="utf-8")):
            found = any(f"/{file}".endswith(f"/{name}") for file in files)
            assert found or name in NOT_OURS, f"{document.relative_to(ROOT)} names {name}"


OURS = ("src", "tests", "examples", "benchmarks", "docs")
NOT_OURS = ("gain.py", "run_squad.py")  # an example's, transformers'


def test_every_make_target_of_the_readme_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text())
    assert {"demo", "test"} <= set(named) <= set(targets)


def test_a_sentence_for_the_demo_reaches_it_whatever_stands_in_it(tmp_path: Path) -> None:
    text = """It's "fine", $5 `id` $(id)"""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    python.chmod(0o755)
    command = ["make", "-s", "demo", f"VENV={tmp_path}", f"BIN={tmp_path / 'bin'}", f"STAMP={python}"]
    for given, expected in (([f"TEXT={text}"], f"examples/demo.py|{text}|"), ([], "examples/demo.py|")):
        told = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, check=True)
        assert told.stdout == expected


@pytest.mark.real
def test_the_demo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    from softprompt import data

    draw = data.subsample
    monkeypatch.setattr(data, "subsample", lambda rows, count, seed: draw(rows, min(count, 16), seed=seed))
    monkeypatch.setattr(
        sys, "argv", ["demo.py", "It is great.", "--steps", "3", "--rows", "16", "--output", str(tmp_path)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    assert (tmp_path / "prompt" / "prompt.json").exists()
    assert (tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.real
def test_the_prompts_to_be_served_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    import softprompt as sp

    monkeypatch.syspath_prepend(ROOT / "examples")
    demo = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    backbone = sp.load_backbone("smollm2-135m-instruct")
    rows = [{"text": "It broke.", "label": label} for label in demo["TASK"].label_words]
    sp.fit(backbone, demo["TASK"], sp.ManualPrompt(demo["MANUAL"]), rows).save(tmp_path / "demo")
    monkeypatch.setattr(
        sys, "argv", ["serve.py", "--demo", str(tmp_path / "demo"), "--output", str(tmp_path / "all")]
    )
    runpy.run_path(str(ROOT / "examples" / "serve.py"), run_name="__main__")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"reviews", "reviews-by-hand", "reply"}


@pytest.mark.real
def test_the_example_of_classes_in_tasks_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy

    options = "--methods linear-probe --classes 4 --tasks 2 --steps 2 --rehearse 1 --output"
    monkeypatch.setattr(sys, "argv", ["class_incremental.py", *options.split(), str(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runpy.run_path(str(ROOT / "examples" / "class_incremental.py"), run_name="__main__")
    assert "final average" in capsys.readouterr().out


@pytest.mark.real
def test_the_example_of_a_search_for_words_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy

    options = "--steps 1 --candidates 2 --rows 4 --batch-size 2 --output"
    monkeypatch.setattr(sys, "argv", ["find_trigger.py", *options.split(), str(tmp_path / "found")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runpy.run_path(str(ROOT / "examples" / "find_trigger.py"), run_name="__main__")
    assert "found prompt, as an ordinary template" in capsys.readouterr().out
    assert (tmp_path / "found" / "prompt.json").exists()


@pytest.mark.real
def test_the_example_of_a_dual_encoder_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy

    options = "--styles emoji-google --rows 20"
    monkeypatch.setattr(sys, "argv", ["emoji_clip.py", *options.split()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runpy.run_path(str(ROOT / "examples" / "emoji_clip.py"), run_name="__main__")
    assert "emoji-google" in capsys.readouterr().out


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_method_in_contributing_is_found_keeps_the_rules_and_passes_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import softprompt as sp
    import softprompt.prompts
    from softprompt.catalogue import METHODS
    from softprompt.fitting.run_config import read_config
    from tests import test_catalogue
    from tests.fitting.test_run_config import MINIMAL

    method, its_line, its_tests, *_ = blocks("CONTRIBUTING.md", "python")
    (tmp_path / "gain.py").write_text(method)
    monkeypatch.setattr(softprompt.prompts, "__path__", [*softprompt.prompts.__path__, str(tmp_path)])
    for name, place in ast.literal_eval(f"{{{its_line}}}").items():
        monkeypatch.setitem(METHODS, name, place)
    sp.methods.cache_clear()
    try:
        test_catalogue.test_the_settings_of_every_method_have_a_json_schema_with_a_default_for_each_but_texts()
        namespace: dict[str, Any] = {}
        exec(compile(its_tests, "CONTRIBUTING.md", "exec"), namespace)  # noqa: S102 - our own document
        tests = {name: test for name, test in namespace.items() if name.startswith("test_")}
        assert len(tests) == 3
        for name, test in tests.items():
            if "folder" not in name:
                test()
                continue
            for length in (1, 4):
                test(length, tmp_path / str(length))
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump({**MINIMAL, "method": {"name": "gain-prompt", "length": 3}}))
        assert read_config(config).method == sp.methods()["gain-prompt"](length=3)  # type: ignore[call-arg]
    finally:
        sp.methods.cache_clear()
        sys.modules.pop("softprompt.prompts.gain", None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")  # a few steps on a few rows learn nothing
def test_the_protocol_in_contributing_passes_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    import softprompt.protocols
    from softprompt.protocols.catalogue import PROTOCOLS

    *_, protocol, its_tests = blocks("CONTRIBUTING.md", "python")
    (tmp_path / "cross_validation.py").write_text(protocol)
    monkeypatch.setattr(softprompt.protocols, "__path__", [*softprompt.protocols.__path__, str(tmp_path)])
    try:
        module = importlib.import_module("softprompt.protocols.cross_validation")
        monkeypatch.setitem(PROTOCOLS, "cross-validation", module.CrossValidationProtocol)
        namespace: dict[str, Any] = {}
        exec(compile(its_tests, "CONTRIBUTING.md", "exec"), namespace)  # noqa: S102 - our own document
        tests = {name: test for name, test in namespace.items() if name.startswith("test_")}
        assert len(tests) == 3
        for name, test in tests.items():
            test(*([tmp_path] if "study" in name else []))
    finally:
        sys.modules.pop("softprompt.protocols.cross_validation", None)


@pytest.mark.slow
def test_the_comparison_of_the_how_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompt.cli import app
    from tests.cli.runs import write_backbone

    [study] = blocks("docs/how-to.md", "yaml")
    [commands] = blocks("docs/how-to.md", "bash")
    monkeypatch.chdir(tmp_path)
    write_backbone(tmp_path / "model")
    study = study.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "{name: model, dtype: float32, device: cpu}")
    (tmp_path / "study.yaml").write_text(study.replace("steps: 100", "steps: 2"))
    rows = [(f"film {i} is {word}", label) for i in range(10) for word, label in WORDS]
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (tmp_path / "reviews.csv").write_text("\n".join(lines))
    install, *rest = commands.splitlines()
    assert len(rest) <= 4
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.fullmatch(r"pip install 'softprompt\[(\w+)\]'", install)[1] in extras  # type: ignore[index]
    for line in rest:
        result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, (line, result.output)
    page = (tmp_path / "mood" / "report" / "index.html").read_text()
    assert all(name in page for name in ("zero-shot", "prompt-tuning", "lora rank=4", "Paired comparison"))


WORDS = (("good", "praise"), ("bad", "complaint"))
