"""Data sets inside archives, written once as train, validation and test rows in JSON lines.

A row is a dictionary of strings: its inputs, then `label` last.
"""

import email
import email.message
import email.policy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

from softprompt.zoo.archives import read_members

Row = dict[str, str]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_TRAIN, _VALIDATION = 0.7, 0.1  # shares of the inputs; the rest is test


def split_of(text: str) -> Split:
    """The split a text belongs to, by its sha256: the same on every machine, 70 / 10 / 20 % on average."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    if position < _TRAIN:
        return "train"
    return "validation" if position < _TRAIN + _VALIDATION else "test"


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Rows without repeats, in their first order. Inputs that occur with two labels are left out.

    Surrounding white space does not count; rows with an empty first column are left out.
    """
    labels: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for row in rows:
        inputs = tuple((column, value.strip()) for column, value in row.items() if column != "label")
        if inputs[0][1]:
            labels.setdefault(inputs, set()).add(row["label"])
    return [{**dict(inputs), "label": label} for inputs, (label, *others) in labels.items() if not others]


def write_rows(archive: Path, target: Path, *, read: Callable[[Path], Iterable[Row]]) -> None:
    """Write the rows that `read` finds in an archive into train, validation and test .jsonl in `target`.

    The split is by the first column alone, so that claims with several pieces of evidence never cross it.
    Raises ValueError if a split would be empty.
    """
    splits: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for row in distinct(read(archive)):
        splits[split_of(next(iter(row.values())))].append(row)
    for split, rows in splits.items():
        if not rows:
            raise ValueError(
                f"{archive.name}: no rows fall into the {split} split; the archive holds too few rows"
            )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (target / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON lines file that `write_rows` wrote."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


# BIG-bench asks that its examples stay out of training corpora: they are read from the package and live in
# the cache only. Never copy one into a test, a log or a document.


def bigbench_member(task: str) -> str:
    """The member of the bigbench 1.0.0 sdist that holds a task."""
    return f"bigbench-1.0.0/bigbench/benchmark_tasks/{task}/task.json"


def _label(example: dict[str, Any]) -> str:
    if scores := example.get("target_scores"):
        return str(max(scores, key=scores.get))
    target = example["target"]
    return str(target if isinstance(target, str) else target[0])


def read_bigbench(archive: Path, *, task: str, inputs: Callable[[str], Row]) -> Iterator[Row]:
    """Rows of a BIG-bench task: `inputs` takes the input apart, the label is the best or first target.

    A trailing full stop of a label is removed.
    """
    for _, content in read_members(archive, bigbench_member(task)):
        for example in json.loads(content)["examples"]:
            yield {**inputs(example["input"]), "label": _label(example).removesuffix(".")}


def plain_text(text: str) -> Row:
    """The unchanged input, in the column `text`."""
    return {"text": text}


def vitaminc_inputs(text: str) -> Row:
    """`TITLE: EVIDENCE\\nClaim: CLAIM` as columns `claim` and `evidence`, the title stays in the latter."""
    evidence, separator, claim = text.rpartition("\nClaim: ")
    if not separator:
        raise ValueError("a VitaminC example has no line that starts with 'Claim: '; is this bigbench 1.0.0?")
    return {"claim": claim, "evidence": evidence}


def fever_inputs(text: str) -> Row:
    """The claim alone, in the column `claim`: this copy of FEVER has no evidence."""
    before, after = "the following claim was made: ", "\nQ: Was this claim true or false?"
    _, separator, rest = text.partition(before)
    if not separator or not rest.endswith(after):
        raise ValueError("a FEVER example does not have the form of bigbench 1.0.0")
    return {"claim": rest.removesuffix(after)}


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # one BBC article is; latin-1 itself never fails


def read_text_files(archive: Path, *, pattern: str) -> Iterator[Row]:
    """One row per text file that matches `pattern`; the label is the name of its folder."""
    for name, content in read_members(archive, pattern):
        yield {"text": _decode(content), "label": name.split("/")[-2]}


class _TextOfHtml(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "style"}:
            self.hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.hidden:
            self.hidden = ""

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)


def _text_of_html(html: str) -> str:
    parser = _TextOfHtml()
    parser.feed(html)
    parser.close()
    return " ".join(" ".join(parser.pieces).split())


def _content(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    try:
        return content.decode(part.get_content_charset("utf-8"), errors="strict")
    except (LookupError, UnicodeError):  # spam lies about its character set
        return content.decode("latin-1")


def mail_body(mail: str) -> str:
    """The text of a raw mail without headers: its plain parts or, if it has none, its HTML without tags."""
    message = email.message_from_bytes(mail.encode("utf-8", "surrogateescape"), policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [_content(part) for part in parts if part.get_content_subtype() != "html"]
    html = [_text_of_html(_content(part)) for part in parts if part.get_content_subtype() == "html"]
    return "\n".join(
        text for text in (plain if any(text.strip() for text in plain) else html) if text.strip()
    )


def read_mails(archive: Path, *, pattern: str) -> Iterator[Row]:
    """Bodies of the mails in JSON files `{"group": ..., "text": ...}`; the group says `spam` or `ham`."""
    for _, content in read_members(archive, pattern):
        mail = json.loads(content)
        yield {
            "text": mail_body(mail["text"]),
            "label": "spam" if mail["group"].startswith("spam") else "ham",
        }
