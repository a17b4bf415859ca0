from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from softprompt.store import save
from softprompt.store.card import model_card
from tests.store.samples import IDENTITY, sample


def head(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---")[1])


def test_the_code_on_the_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save('my "mood" prompt', sample())
    card = Path('my "mood" prompt', "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code, {})  # noqa: S102  our own text, and the point of the test
    assert "tokens (3, 4) torch.float32" in capsys.readouterr().out


def test_the_card_says_what_was_measured_and_how_many_parameters_there_are() -> None:
    card = model_card(sample(), "mood")
    assert "| validation.accuracy | 0.875 |" in card
    assert "| loss | 1e-05 |" in card
    assert "| Parameters in this folder | 12 (72 bytes) |" in card
    assert '"lr": 0.3' in card
    assert head(card) == {
        "library_name": "softprompt",
        "base_model": "tiny/llama",
        "tags": ["softprompt", "prompt-tuning", "text-classification"],
    }


def test_a_prompt_without_metrics_says_so() -> None:
    assert "None were recorded." in model_card(sample(metrics={}), "mood")
    assert "| accuracy | undefined |" in model_card(sample(metrics={"accuracy": None}), "mood")


def test_names_that_would_break_the_table_do_not() -> None:
    card = model_card(sample(metrics={"a|b\n`c`": 1}), "mood")
    assert "| a\\|b 'c' | 1 |" in card
    card = model_card(sample(metrics={"<img src=x>": 1, "![x](http://x)": 2}), "mood")
    assert "<img" not in card
    assert "](http" not in card


@pytest.mark.parametrize("name", ["/home/ada/models/tiny llama", "C:\\models\\tiny llama\\", "~/tiny llama"])
def test_a_local_path_of_the_backbone_stays_off_the_card(name: str) -> None:
    card = model_card(sample(backbone=dataclasses.replace(IDENTITY, name=name)), "mood")
    assert "`tiny llama`" in card
    assert name.rstrip("\\") not in card
    assert "base_model" not in head(card)
