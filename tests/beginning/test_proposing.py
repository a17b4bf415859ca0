"""What is proposed for rows, from what, and how the options decide instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from softprompt.backbones.loading import has_chat_template
from softprompt.beginning import Proposal, Wishes, propose, written
from softprompt.fitting.run_config import parse_config
from softprompt.fitting.sources import source_rows
from softprompt.tasks import Chat
from tests.tiny.language import tiny_tokenizer

THINGS = ("shoes", "lamp", "tent", "bike", "coat", "book", "phone", "chair", "table", "watch", "radio", "cup")


def csv(path: Path, header: str, lines: list[str]) -> str:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return str(path)


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(proposal: Proposal) -> str:
    return "\n".join(decision.said for decision in proposal.decisions)


def tickets(path: Path) -> str:
    return csv(
        path,
        "ticket_id,created,message,queue,channel",
        [
            f"{number},2026-01-{number % 28 + 1:02d},{text} the {thing} number {number},{queue},web"
            for number, (text, queue, thing) in enumerate(
                (text, queue, thing)
                for thing in THINGS
                for text, queue in (("please send", "shipping"), ("I paid for", "billing"))
            )
        ],
    )


def test_columns_task_labels_and_split_of_a_table(tmp_path: Path) -> None:
    source = tickets(tmp_path / "tickets.csv")
    proposal = propose(source)
    assert proposal.config["task"] == {
        "name": "sequence-classification",
        "template": "{message}",
        "labels": ["billing", "shipping"],
        "label_column": "queue",
    }
    part = {"balance": "queue", "together": ["message"]}
    assert proposal.config["data"]["test"] == {"source": source, "part": "test", **part}
    for line in (
        "'ticket_id' is set aside",
        "it holds dates",
        "it is 'web' in every row",
        "its name is 'queue'",
    ):
        assert line in said(proposal)
    assert any("test rows" in doubt for doubt in proposal.doubts)


def test_the_written_file_is_the_proposal_and_holds_its_reasons(tmp_path: Path) -> None:
    proposal = propose(tickets(tmp_path / "tickets.csv"), Wishes(backbone="smollm2-135m-instruct"))
    text = written(proposal, "tickets.csv", "softprompt train tickets.yaml")
    assert yaml.safe_load(text) == proposal.config
    assert parse_config(yaml.safe_load(text)) == parse_config(proposal.config)
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert all(" ".join(decision.said.split()) in comments for decision in proposal.decisions)
    assert proposal.config["task"]["labels"] == {"billing": " billing", "shipping": " shipping"}


def test_an_option_decides_instead_of_the_data(tmp_path: Path) -> None:
    lines = [f"word {i} {t} first,word {i} {t} second,{i % 2},{i % 3}" for i, t in enumerate(THINGS * 2)]
    source = csv(tmp_path / "a.csv", "one,two,kind,sort", lines)
    with pytest.raises(ValueError, match=r"several columns: 'kind' .* 'sort' .* --label kind"):
        propose(source)
    with pytest.raises(ValueError, match=r"could be in 'one' .* or in 'two' .* --text one --text two"):
        propose(source, Wishes(label="kind"))
    task = propose(source, Wishes(label="kind", text=["one", "two"])).config["task"]
    assert (task["label_column"], task["labels"]) == ("kind", ["0", "1"])
    assert sorted(task["template"].replace(":cut", "").split("\n")) == ["{one}", "{two}"]
    with pytest.raises(ValueError, match="there is no column 'three'"):
        propose(source, Wishes(text=["three"]))


def test_words_that_mean_nothing_to_pandas_are_labels_here(tmp_path: Path) -> None:
    lines = [
        f"a text about {thing} {i},{('NA', 'None', 'null')[i % 3]}" for i, thing in enumerate(THINGS * 2)
    ]
    assert propose(csv(tmp_path / "a.csv", "text,label", lines)).config["task"]["labels"] == [
        "NA",
        "None",
        "null",
    ]


def test_numbers_are_a_regression_or_classes(tmp_path: Path) -> None:
    exact = csv(
        tmp_path / "a.csv", "text,score", [f"text {t} {i},{i / 7:.2f}" for i, t in enumerate(THINGS * 2)]
    )
    task = propose(exact).config["task"]
    assert (task["name"], task["low"], task["high"]) == ("regression", 0.0, 3.29)
    stars = csv(
        tmp_path / "b.csv", "text,stars", [f"text {t} {i},{i % 5 + 1}" for i, t in enumerate(THINGS * 2)]
    )
    proposal = propose(stars)
    assert proposal.config["task"]["labels"] == ["1", "2", "3", "4", "5"]
    assert any("classes without an order" in doubt for doubt in proposal.doubts)
    assert propose(stars, Wishes(task="regression")).config["task"]["name"] == "regression"


def test_prompts_with_answers_are_generation(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"name {t}", "number": i, "completion": f"it is {t} {i}"} for i, t in enumerate(THINGS)
    ]
    config = propose(jsonl(tmp_path / "a.jsonl", rows)).config
    assert config["task"]["name"] == "text-generation"
    assert config["task"]["target"] == "{completion}"
    assert config["backbone"] == "smollm2-135m-instruct"


def test_chats_are_proposed_where_the_backbone_has_a_chat_template(tmp_path: Path) -> None:
    def turns(say: str, text: str, thing: str) -> list[dict]:
        asking, answering = ("user", "assistant") if say == "role" else ("human", "gpt")
        return [{say: asking, text: f"what is a {thing}"}, {say: answering, text: f"a kind of {thing}"}]

    for rows, form in (
        ([{"messages": turns("role", "content", thing)} for thing in THINGS], "messages"),
        ([{"conversations": turns("from", "value", thing)} for thing in THINGS], "conversations"),
        ([{"instruction": f"name {thing}", "input": "", "output": f"it is {thing}"} for thing in THINGS], "alpaca"),
    ):  # fmt: skip
        source = jsonl(tmp_path / f"{form}.jsonl", rows)
        proposal = propose(source)
        config = parse_config(yaml.safe_load(written(proposal, source, "")))
        assert config.task == Chat(format=form, max_new_tokens=16)
        assert config.backbone.name == "smollm2-135m-instruct"
        assert "has a chat template" in said(proposal)
        parts = [source_rows(getattr(config.data, part), part) for part in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(rows)

    assert propose(source, Wishes(backbone="news-lm-xs")).config["task"]["name"] == "text-generation"
    with pytest.raises(ValueError, match=r"news-lm-xs has no chat template: give --backbone smollm2"):
        propose(str(tmp_path / "messages.jsonl"), Wishes(backbone="news-lm-xs"))
    with pytest.raises(ValueError, match="row 0: turn 0 is"):
        propose(jsonl(tmp_path / "bad.jsonl", [{"messages": ["hello"]}] * 12))


def test_a_backbone_in_a_folder_is_asked_for_its_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "plain")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "chat")
    assert has_chat_template(str(tmp_path / "chat"))
    assert not has_chat_template(str(tmp_path / "plain"))


def test_tags_of_words(tmp_path: Path) -> None:
    rows = [{"tokens": ["in", t.title()], "ner_tags": ["O", "B-LOC"]} for t in THINGS]
    task = propose(jsonl(tmp_path / "a.jsonl", rows)).config["task"]
    assert task["name"] == "token-classification"
    assert task["tags"] == ["O", "B-LOC"]


def test_splits_that_are_there_are_used(tmp_path: Path) -> None:
    lines = [f"text {t} {i},{i % 2}" for i, t in enumerate(THINGS * 2)]
    source = csv(tmp_path / "my-train.csv", "text,label", lines)
    for part in ("dev", "test"):
        csv(tmp_path / f"my-{part}.csv", "text,label", lines)
    data = propose(source).config["data"]
    assert [Path(part["source"]).name for part in data.values()] == [
        "my-train.csv",
        "my-dev.csv",
        "my-test.csv",
    ]
    parts = ["train", "train", "dev", "test"]
    column = csv(
        tmp_path / "c.csv", "text,label,split", [f"{line},{parts[i % 4]}" for i, line in enumerate(lines)]
    )
    assert propose(column).config["data"]["validation"]["only"] == {"split": ["dev"]}


def test_folders_of_images(tmp_path: Path) -> None:
    from PIL import Image

    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(8):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / kind / f"{i}.png")
    config = propose(str(tmp_path)).config
    assert config["task"] == {"name": "image-classification", "labels": ["cat", "dog"]}
    assert (config["backbone"], config["method"]["name"]) == ("vit-s14-saliency", "vpt")


def test_a_table_without_a_header_and_one_in_another_encoding(tmp_path: Path) -> None:
    lines = [f"text {t} {i},{('pos', 'neg')[i % 2]}" for i, t in enumerate(THINGS * 2)]
    with pytest.raises(ValueError, match="the first line looks like a row"):
        propose(csv(tmp_path / "a.csv", "text of a row,pos", lines))
    (tmp_path / "b.csv").write_bytes("\n".join(["text,label", *lines, "caf\xe9 1,pos"]).encode("cp1252"))
    proposal = propose(str(tmp_path / "b.csv"))
    assert proposal.config["data"]["train"]["encoding"] == "cp1252"
    assert "look at accents" in said(proposal)


def test_doubts_about_rows(tmp_path: Path) -> None:
    lines = [f"same text,{('a', 'b')[i % 2]}" for i in range(6)] + [
        f"it says common {i},common" for i in range(200)
    ]
    doubts = "\n".join(propose(csv(tmp_path / "a.csv", "text,label", lines)).doubts)
    for line in (
        "fewer than 8 rows",
        "more than ten times",
        "1 texts occur with two labels",
        "the label stands in the text",
    ):
        assert line in doubts
