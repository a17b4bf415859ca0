"""Doors of the library, and what people and machines may push through them: nothing but the library's own errors comes back."""

from __future__ import annotations

import gzip
import io
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow
import pyarrow.parquet
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softprompt as sp
from softprompt import store
from softprompt.data.files import read_file
from softprompt.fitting.run_config import override, parse_config, read_config
from softprompt.studies import plan, read_study
from softprompt.tasks.base import TextSetting
from softprompt.tasks.bound_template import bind_template
from softprompt.tasks.template import Template
from softprompt.zoo import FetchError
from tests.cli.runs import softprompt
from tests.tiny.language import tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone

OWN = (ValueError, OSError, sp.CheckpointError, sp.TrainingDiverged, FetchError)
"""What the command line shows as one message."""
_LIMIT = 60  # seconds until a call counts as hanging

RUN: dict[str, Any] = {
    "backbone": {"name": "m", "dtype": "float32"},
    "task": {"name": "text-classification", "template": "{text}:", "labels": {"neg": " bad", "pos": " good"}},
    "method": {"name": "prompt-tuning", "length": 3},
    "data": {
        "train": "rows.csv",
        "validation": {"source": "rows.csv", "limit": 5, "only": {"label": ["pos"]}},
    },
    "recipe": {"steps": 5, "betas": [0.9, 0.99], "warmup": 1},
    "seed": 1,
}
STUDY: dict[str, Any] = {key: value for key, value in RUN.items() if key != "seed"} | {
    "axes": {"method": ["zero-shot", {"name": "lora", "rank": 2}], "size": {"few": {"recipe.steps": 2}}},
    "seeds": [0, 1],
    "select": {"recipe.learning_rate": [0.01, 0.1]},
    "search": {"seeds": [9]},
    "protocol": {"name": "few-shot", "shots": 2},
}


def _is_key(value: Any) -> bool:
    return value == value  # a NaN is another key each time


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["prompt-tuning", "text", "{text}", "auto", "1e-3", "0", "", " ", "label"])
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_LEAVES.filter(_is_key), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed(draw: st.DrawFn, values: Any) -> Any:
    """The values with one or two parts of them replaced, doubled under another name, or left out."""
    found = json.loads(json.dumps(values))
    for _ in range(draw(st.integers(1, 2))):
        place = found
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            match draw(st.integers(0, 3)):
                case 0 if isinstance(place, dict):
                    del place[key]
                case 1 if isinstance(place, dict):
                    place[
                        draw(
                            st.sampled_from(
                                ["protocol", "nam", "labels", "shots", "init", "limit", "", "a.b"]
                            )
                        )
                    ] = place[key]
                case _:
                    place[key] = draw(VALUES)
            break
    return found


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with a few of them changed, doubled or left out."""
    found = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(found)))
        stop = min(len(found), start + draw(st.integers(0, 12)))
        found[start:stop] = draw(
            st.binary(max_size=6)
            | st.sampled_from(
                [
                    b"\t",
                    b"\n",
                    b"&a ",
                    b"*a",
                    b"!!",
                    b": ",
                    b"- ",
                    b"[",
                    b"{",
                    b'"',
                    b",",
                    b"\xff\xfe",
                    b"<<: ",
                ]
            )
            | st.just(bytes(found[start:stop]) * 2)
        )
    return bytes(found)


def _yaml(values: Any) -> bytes:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


def _read_run(content: bytes) -> None:
    with _file("run.yaml", content) as path:
        read_config(path)


def _read_study(content: bytes) -> None:
    with _file("study.yaml", content) as path:
        plan(read_study(path), lambda run: None)


def _parse_run(values: Any) -> None:
    parse_config(values)


def _parse_study(values: Any) -> None:
    _read_study(_yaml(values))


def _override(text: str) -> None:
    parse_config(override(RUN, [text]))


def _template(given: tuple[str, str]) -> None:
    source, text = given
    template = Template.parse(source)
    bound = bind_template(template, TextSetting(_tokenizer(), 3, 40), "text")
    bound.encode(dict.fromkeys(template.fields, text), reserved=2)


@cache
def _tokenizer() -> Any:
    return tiny_tokenizer()


def _data(given: tuple[str, bytes]) -> None:
    name, content = given
    with _file(name, content) as path:
        read_file(path)


@cache
def _encoder() -> Any:
    return sp.fit(tiny_backbone(), TASK, sp.ZeroShot(), ROWS[:2], progress=False).encoder


def _row(row: dict[Any, Any]) -> None:
    _encoder().encode(row)


@cache
def _prompt() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as place:
        tuned = sp.fit(
            tiny_backbone(), TASK, sp.PromptTuning(length=2), ROWS[:4], steps=1, warmup=0, progress=False
        )
        folder = tuned.save(Path(place) / "prompt")
        return (folder / "prompt.json").read_bytes(), (folder / "prompt.safetensors").read_bytes()


def _load(given: tuple[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        for name, content in zip(("prompt.json", "prompt.safetensors"), given, strict=True):
            (Path(place) / name).write_bytes(content)
        store.load(place)


def _command(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place, chdir(place):
        result = softprompt(*(word.replace("PLACE", place) for word in words))
    assert result.exit_code in (0, 1, 2), words
    assert "Traceback" not in result.output, words


@contextmanager
def _file(name: str, content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / name
        path.write_bytes(content)
        yield path


def _tables() -> dict[str, bytes]:
    rows = [{"text": 'a "film"', "label": "pos"}, {"text": "b,c\nd", "label": "neg"}]
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    csv = b'text,label\n"a ""film""",pos\n"b,c\nd",neg\n'
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {
        "rows.csv": csv,
        "rows.tsv": csv.replace(b",", b"\t"),
        "rows.csv.gz": gzip.compress(csv, mtime=0),
        "rows.jsonl": lines,
        "rows.json": json.dumps(rows).encode(),
        "rows.parquet": parquet.getvalue(),
    }


@st.composite
def _files(draw: st.DrawFn) -> tuple[str, bytes]:
    tables = _tables()
    name = draw(st.sampled_from(sorted(tables)))
    return name, draw(broken(tables[name]) | st.binary(max_size=40))


_WORDS = st.sampled_from(
    [
        "train",
        "evaluate",
        "predict",
        "compare",
        "report",
        "inspect",
        "PLACE",
        "PLACE/none",
        "--data",
        "--file",
        "--output",
        "--encoding",
        "--batch-size",
        "0",
        "-1",
        "4",
        "utf-99",
        "--label",
        "=x",
        "--json",
        "--split",
        "test",
        "--limit",
        "recipe.steps=1",
        "=",
        "--dtype",
        "float3",
        "--device",
        "cuda:99",
        "--quiet",
        "-o",
        "",
        "ä",
        "--backbone",
        "../x",
    ]
)


@dataclass(frozen=True)
class Door:
    """Where something comes in: what may come, and the call that takes it. errors: those that it may raise."""

    name: str
    comes: st.SearchStrategy[Any]
    takes: Callable[[Any], None]
    errors: tuple[type[Exception], ...] = OWN


DOORS = (
    Door("the values of a run", changed(RUN), _parse_run),
    Door("the file of a run", broken(_yaml(RUN)), _read_run),
    Door("the values of a study", changed(STUDY), _parse_study),
    Door("the file of a study", broken(_yaml(STUDY)), _read_study),
    Door(
        "an override",
        st.builds(
            "=".join,
            st.tuples(
                st.sampled_from(["task.labels.pos", "recipe.steps", "method", "data.train", "a..b", ""]),
                st.text(max_size=12),
            ),
        ),
        _override,
    ),
    Door(
        "a template",
        st.tuples(
            st.text("{}:softbsmakcu 12%<>/", max_size=24),
            st.text(max_size=20) | st.sampled_from(["</s>", "a <s> b" * 9]),
        ),
        _template,
    ),
    Door("a data file", _files(), _data),
    Door(
        "a row",
        st.dictionaries(
            st.sampled_from(["text", "label"]) | st.text(max_size=3), VALUES | st.binary(max_size=4)
        ),
        _row,
        (*OWN, TypeError),
    ),
    Door(
        "a saved prompt",
        st.deferred(lambda: st.tuples(broken(_prompt()[0]), st.just(_prompt()[1]) | broken(_prompt()[1]))),
        _load,
    ),
    Door(
        "the record of a saved prompt",
        st.deferred(
            lambda: changed(json.loads(_prompt()[0])).map(lambda v: (json.dumps(v).encode(), _prompt()[1]))
        ),
        _load,
    ),
    Door("a command", st.lists(_WORDS, min_size=1, max_size=6), _command),
)


def push(door: Door, count: int, seed: int | None = None) -> None:
    """Push `count` things through a door; seed: None, the same ones each time. Raises what should not have come back."""

    def call(given: Any) -> None:
        with _awake(door.name):
            try:
                door.takes(given)
            except door.errors as error:
                assert len(str(error)) < 20_000, "a message is for people"  # noqa: PT017

    test = given(door.comes)(call)
    test = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
    )(test)
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    test()


class Hang(BaseException):
    """A call did not come back."""


@contextmanager
def _awake(name: str) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang(f"{name}: no answer in {_LIMIT} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
