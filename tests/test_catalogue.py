"""methods(): every method of the library by its name, and a line of the catalogue is all that a new one needs."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

import softprompt.baselines
import softprompt.prompts
from docs.tools import method_stubs
from softprompt import FewShot, FullTuning, ManualPrompt, PromptTuning, ZeroShot, fit, load, methods
from softprompt.catalogue import METHODS
from softprompt.prompts import Method
from tests.tiny.task import ROWS, TASK, tiny_backbone

NEW_METHOD = '''
from dataclasses import dataclass

import torch

from softprompt.prompts.base import Method
from softprompt.prompts.prompt_tuning import VirtualTokens


@dataclass(frozen=True)
class OneWord(Method):
    """A single virtual token that starts at zero."""

    name = "one-word"

    def build(self, context):
        return VirtualTokens(torch.zeros(1, context.spec.width))

    def restore(self, spec, tensors):
        return VirtualTokens(tensors["tokens"])
'''


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found before is forgotten, before and after the test."""
    methods.cache_clear()
    yield
    methods.cache_clear()
    sys.modules.pop("softprompt.prompts.one_word", None)


def all_below(parent: type) -> set[type]:
    return {parent}.union(*(all_below(child) for child in parent.__subclasses__()))


def test_every_method_stands_in_the_catalogue_once_under_a_name_of_its_own() -> None:
    found = methods()
    for method in (PromptTuning, ZeroShot, ManualPrompt, FewShot, FullTuning):
        assert found[method.name] is method
    for package in (softprompt.prompts, softprompt.baselines):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(info.name)
    below = [m for m in all_below(Method) if m.__module__.startswith("softprompt.") and "name" in vars(m)]
    named = [m for m in below if m.__module__ in sys.modules]  # not what another test has taken away
    assert len({m.name for m in named}) == len(named)
    assert set(found.values()) == set(named), "a method costs a line in src/softprompt/catalogue.py"
    assert all(name == method.name for name, method in found.items())


@pytest.mark.parametrize("package", method_stubs.PACKAGES)
def test_the_stubs_have_the_lines_that_the_catalogue_gives(package: str) -> None:
    text = method_stubs.stub(package).read_text(encoding="utf-8")
    assert text == method_stubs.with_methods(text, package), "run `python -m docs.tools.method_stubs`"


def test_the_settings_of_every_method_have_a_json_schema_with_a_default_for_each_but_texts() -> None:
    for method in methods().values():
        schema = TypeAdapter(method).json_schema()
        assert schema.get("additionalProperties") is False, method.name
        assert set(schema.get("required", [])) <= {"text"}, method.name


@pytest.mark.usefixtures("fresh")
def test_a_new_file_with_a_method_needs_one_line_in_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one_word.py").write_text(NEW_METHOD, encoding="utf-8")
    monkeypatch.setattr(softprompt.prompts, "__path__", [*softprompt.prompts.__path__, str(tmp_path)])
    monkeypatch.setitem(METHODS, "one-word", "softprompt.prompts.one_word:OneWord")
    method = methods()["one-word"]
    backbone = tiny_backbone()
    tuned = fit(backbone, TASK, method(), ROWS, steps=2, progress=False)
    assert tuned.module.state_dict()["tokens"].abs().min() > 0
    again = load(tuned.save(tmp_path / "prompt"), backbone)
    assert again.method == method()
    assert torch.equal(again.module.state_dict()["tokens"], tuned.module.state_dict()["tokens"])
    assert again.predict(["film"]) == tuned.predict(["film"])
