"""From a fresh table to a tuned prompt in two commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runs import as_json, softprompt, write_backbone
from tests.tiny.language import WORDS, tiny_tokenizer


def test_two_commands_from_a_table_to_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_backbone(tmp_path / "backbone")
    lines = [f"the {t} is {w} {i},{w}" for i in range(6) for t in ("film", "book") for w in ("good", "bad")]
    Path("moods.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    begun = as_json("init", "moods.csv", "--backbone", "backbone")
    assert begun["config"] == "moods.yaml"
    assert {"task", "task.labels", "backbone", "method", "data"} <= {d["key"] for d in begun["decisions"]}
    assert any("test rows" in warning for warning in begun["warnings"])
    trained = as_json("train", "moods.yaml", "recipe.steps=2", "--quiet", "--device", "cpu")
    assert set(trained["metrics"]) == {"validation", "test"}
    assert json.loads(Path("runs/moods/metrics.json").read_text())["rows"] == {
        "train": 16,
        "validation": 4,
        "test": 4,
    }
    again = softprompt("init", "moods.csv")
    assert again.exit_code == 1
    assert "moods.yaml exists: give --overwrite" in " ".join(again.output.split())


@pytest.mark.slow
def test_two_commands_from_chats_to_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    write_backbone(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what is a {word}"},
                {"role": "assistant", "content": f"a {word}"},
            ]
        }
        for word in WORDS[:16]
    ]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert as_json("init", "chats.jsonl", "--backbone", "backbone")["values"]["task"]["name"] == "chat"
    trained = as_json("train", "chats.yaml", "recipe.steps=2", "--quiet", "--device", "cpu")
    assert set(trained["metrics"]["test"]) >= {"rouge_l", "perplexity"}
    chosen = ["--choice", "a cat", "--choice", "a dog"]
    found = as_json("predict", "runs/chats", "--file", "chats.jsonl", *chosen, "--device", "cpu")[
        "predictions"
    ]
    assert [one["input"]["messages"] for one in found] == [row["messages"][0]["content"] for row in rows]
    assert {one["text"] for one in found} <= {"a cat", "a dog"}
