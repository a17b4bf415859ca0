"""How rows are read, cleaned and split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from softprompt.zoo.rows import (
    Row,
    distinct,
    fever_inputs,
    mail_body,
    read_bigbench,
    read_rows,
    read_text_files,
    split_of,
    vitaminc_inputs,
    write_rows,
)
from tests.zoo.registry_server import zip_of


def test_the_split_of_a_text_never_changes() -> None:
    assert [split_of(text) for text in ("a", "b", "c", "d", "e", "f", "g")] == SPLITS_OF_LETTERS


# By sha256sum: the first bytes are ca, 3e, 2e, 18, 3f, 25, cd; below b3 is train, below cc validation.
SPLITS_OF_LETTERS = ["validation", "train", "train", "train", "train", "train", "test"]


def test_splits_have_the_shares_that_were_promised() -> None:
    counts = Counter(split_of(str(number)) for number in range(20_000))
    assert counts["train"] / 20_000 == pytest.approx(0.7, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_repeats_leave_one_row_and_contradictions_none() -> None:
    rows = [
        {"text": "kept", "label": "x"},
        {"text": " kept\n", "label": "x"},
        {"text": "torn", "label": "x"},
        {"text": "torn", "label": "y"},
        {"text": "  ", "label": "x"},
        {"text": "alone", "label": "y"},
    ]
    assert distinct(rows) == [{"text": "kept", "label": "x"}, {"text": "alone", "label": "y"}]


def test_rows_of_one_claim_stay_in_one_split(tmp_path: Path) -> None:
    def read(_: Path) -> list[Row]:
        return [
            {"claim": f"claim {i}", "evidence": f"evidence {j}", "label": "True"}
            for i in range(60)
            for j in range(3)
        ]

    write_rows(tmp_path / "none.whl", tmp_path, read=read)
    claims = [
        {row["claim"] for row in read_rows(tmp_path / f"{split}.jsonl")}
        for split in ("train", "validation", "test")
    ]
    assert sum(len(part) for part in claims) == len(set().union(*claims)) == 60


def test_line_separators_inside_a_text_do_not_break_the_file(tmp_path: Path) -> None:
    texts = [f"one\ntwo\r\nthree\u2028four\x85 {number} é" for number in range(50)]
    write_rows(
        tmp_path / "none.whl", tmp_path, read=lambda _: [{"text": text, "label": "x"} for text in texts]
    )
    found = [
        row["text"]
        for split in ("train", "validation", "test")
        for row in read_rows(tmp_path / f"{split}.jsonl")
    ]
    assert sorted(found) == sorted(texts)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few rows"):
        write_rows(tmp_path / "none.whl", tmp_path, read=lambda _: [{"text": "one", "label": "x"}])


def test_labels_of_a_task_are_the_best_or_the_first_target_without_full_stop(tmp_path: Path) -> None:
    path = tmp_path / "tasks.whl"
    examples = (
        '{"examples": [{"input": "p", "target_scores": {"no": 0, "yes": 1}},'
        ' {"input": "q", "target": ["Date.", "Time."]}, {"input": "r", "target": "Law."}]}'
    )
    path.write_bytes(zip_of({"bigbench-1.0.0/bigbench/benchmark_tasks/tiny/task.json": examples}))
    rows = list(read_bigbench(path, task="tiny", inputs=lambda text: {"text": text}))
    assert rows == [
        {"text": "p", "label": "yes"},
        {"text": "q", "label": "Date"},
        {"text": "r", "label": "Law"},
    ]


def test_a_verification_example_is_taken_apart() -> None:
    text = "Title: First. Claim: not yet.\nClaim: Snow is white."
    assert vitaminc_inputs(text) == {"claim": "Snow is white.", "evidence": "Title: First. Claim: not yet."}
    with pytest.raises(ValueError, match="Claim: "):
        vitaminc_inputs("no claim here")


def test_a_claim_is_freed_of_its_frame() -> None:
    text = "On June 2017, the following claim was made: Snow is white.\nQ: Was this claim true or false?"
    assert fever_inputs(text) == {"claim": "Snow is white."}
    with pytest.raises(ValueError, match="form"):
        fever_inputs("Snow is white.")


def test_text_files_that_are_not_utf8_are_read_as_latin1(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "news.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("news/tech/1.txt", "caf\u00e9".encode())
        archive.writestr("news/sports/2.txt", "\u00a3100".encode("latin-1"))
    assert list(read_text_files(path, pattern="news/*/*.txt")) == [
        {"text": "caf\u00e9", "label": "tech"},
        {"text": "\u00a3100", "label": "sports"},
    ]


def test_headers_of_a_mail_are_gone() -> None:
    assert (
        mail_body("From x Mon\nSubject: secret\nTo: you\n\nHello.\nSubject: kept\n")
        == "Hello.\nSubject: kept\n"
    )


def test_a_mail_of_html_alone_gives_its_words() -> None:
    mail = (
        "Content-Type: text/html; charset=nonsense\nContent-Transfer-Encoding: quoted-printable\n\n"
        "<html><style>p {}</style><script>x()</script><p class=3D'a'>Buy &amp; s=\nave</p></html>"
    )
    assert mail_body(mail) == "Buy & save"


def test_of_a_mail_in_two_forms_the_plain_one_is_read() -> None:
    mail = (
        "Subject: s\nContent-Type: multipart/alternative; boundary=XX\n\npreamble\n"
        "--XX\nContent-Type: text/plain\n\nplain\n--XX\nContent-Type: text/html\n\n<b>rich</b>\n--XX--\n"
    )
    assert mail_body(mail).strip() == "plain"
