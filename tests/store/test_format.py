from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from softprompt.store import PromptFileError, load, save
from softprompt.store.plain_json import digest
from tests.store.samples import sample

fuzz = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def signed(record: dict[str, Any]) -> bytes:
    """prompt.json with a digest that fits: what a careful forger, or a later version, would write."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return json.dumps({**rest, "digest": digest(rest, ordered=True)}).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "mood", sample())
    return tmp_path / "mood"


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "prompt.json").read_bytes())


def test_a_saved_prompt_loads_as_it_was(folder: Path) -> None:
    loaded = load(folder)
    assert loaded == sample()
    assert list(loaded.task["labels"]) == ["neg", "pos"]
    assert loaded.tensors["tokens"].dtype == torch.float32
    assert {path.name for path in folder.iterdir()} == {"prompt.json", "prompt.safetensors", "README.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["mood"]


def test_a_loaded_prompt_saves_to_the_same_bytes(folder: Path) -> None:
    save(folder.parent / "again" / "mood", load(folder))
    for name in ("prompt.json", "prompt.safetensors", "README.md"):
        assert (folder.parent / "again" / "mood" / name).read_bytes() == (folder / name).read_bytes()


def test_a_prompt_without_tensors_or_metrics_can_be_saved(tmp_path: Path) -> None:
    bare = sample(tensors={}, metrics={}, recipe={}, notes={})
    save(tmp_path / "bare", bare)
    assert load(tmp_path / "bare") == bare


def test_scalars_and_empty_tensors_survive(tmp_path: Path) -> None:
    odd = sample(tensors={"gate": torch.tensor(0.5), "none": torch.empty(0, 4), "on": torch.tensor([True])})
    save(tmp_path / "odd", odd)
    assert load(tmp_path / "odd") == odd


def test_a_state_dict_is_saved_whatever_its_memory_and_stays_apart_from_further_training(
    tmp_path: Path,
) -> None:
    module = nn.Linear(3, 3)
    shared = {"a": module.weight, "b": module.weight.T, **module.state_dict()}
    saved = sample(tensors=shared)
    with torch.no_grad():
        module.weight.zero_()
    save(tmp_path / "shared", saved)
    assert load(tmp_path / "shared") == saved
    assert saved.tensors["a"].abs().sum() > 0
    assert not saved.tensors["a"].requires_grad


def test_prompts_that_differ_are_not_equal() -> None:
    assert sample() != sample(notes={})
    assert sample() != sample(tensors={})
    assert sample() != sample(tensors={**sample().tensors, "ids": torch.tensor([5, 0, 3])})
    assert sample() != "a prompt"


def test_an_undefined_metric_does_not_cost_the_prompt_its_file(tmp_path: Path) -> None:
    saved = sample(metrics={"correlation": math.nan, "loss": math.inf, "shape": (1, 2)})
    assert saved.metrics == {"correlation": None, "loss": None, "shape": [1, 2]}
    save(tmp_path / "nan", saved)
    assert load(tmp_path / "nan") == saved


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": {"length": 3}}, ValueError, "method has no name"),
        ({"task": {"name": "t", "labels": {0: "neg"}}}, TypeError, r"task.labels has the key 0.*write '0'"),
        ({"metrics": {"f1": torch.tensor(1.0)}}, TypeError, r"metrics.f1 is a Tensor.*\.item\(\)"),
        ({"notes": {"text": ["\ud800"]}}, ValueError, r"notes.text\[0\].*surrogate"),
        ({"tensors": {"w": torch.zeros(1, dtype=torch.bfloat16)}}, ValueError, r"bfloat16.*float32"),
        ({"tensors": {"w": [1.0]}}, TypeError, "state_dict"),
    ],
)
def test_what_cannot_be_read_back_is_refused_before_anything_is_written(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample(**changes)


def test_a_missing_folder_a_file_an_empty_folder_and_a_peft_folder_each_get_their_own_error(
    tmp_path: Path, folder: Path
) -> None:
    with pytest.raises(PromptFileError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(PromptFileError, match="is a file; pass the folder"):
        load(folder / "prompt.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptFileError, match=r"no prompt\.json.*found nothing"):
        load(tmp_path / "empty")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    with pytest.raises(PromptFileError, match=r"read it with softprompt\.exchange\.read_peft"):
        load(tmp_path / "peft")


def test_a_missing_tensor_file_is_named(folder: Path) -> None:
    (folder / "prompt.safetensors").unlink()
    with pytest.raises(PromptFileError, match=r"has no prompt\.safetensors.*found README\.md, prompt\.json"):
        load(folder)


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "prompt.safetensors").unlink()
    (folder / "prompt.safetensors").mkdir()
    with pytest.raises(PromptFileError, match="cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=2), "has format version 2.*upgrade softprompt"),
        (lambda r: r.update(format_version=0), "has format version 0.*damaged"),
        (lambda r: r.update(format_version=True), "'format_version'.*found True"),
        (lambda r: r.pop("format_version"), "the field 'format_version' is missing"),
        (lambda r: r.pop("task"), "the field 'task' is missing"),
        (lambda r: r["backbone"].pop("width"), "the field 'backbone.width' is missing"),
        (lambda r: r.update(metods={}), "unknown key 'metods'; did you mean 'method'"),
        (lambda r: r["backbone"].update(tabel_digest=""), "did you mean 'table_digest'"),
        (lambda r: r.update(recipe=[1]), r"'recipe'.*found \[1\]"),
        (lambda r: r["method"].pop("name"), "method has no name"),
        (lambda r: r["tensors"]["entries"].pop("ids"), r"ids: found int64 \(3,\), expected no such tensor"),
        (
            lambda r: r["tensors"]["entries"].update(head={"shape": [2], "dtype": "float32"}),
            r"head: found no such tensor, expected float32 \(2,\)",
        ),
        (
            lambda r: r["tensors"]["entries"]["tokens"].update(shape=[4, 3]),
            r"found float32 \(3, 4\), expected",
        ),
        (lambda r: r["tensors"]["entries"]["tokens"].update(dtype="float16"), "expected float16"),
        (lambda r: r["tensors"].update(sha256="0" * 64), "sha256 is .* expects 000000000000"),
    ],
)
def test_each_fault_of_prompt_json_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    record = record_of(folder)
    change(record)
    (folder / "prompt.json").write_bytes(signed(record))
    with pytest.raises(PromptFileError, match=message):
        load(folder)


def test_an_edited_prompt_json_is_told_by_its_digest(folder: Path) -> None:
    text = (folder / "prompt.json").read_text()
    (folder / "prompt.json").write_text(text.replace("0.875", "0.975"))
    with pytest.raises(PromptFileError, match=r"was changed after it was saved.*dataclasses\.replace"):
        load(folder)
    swapped = record_of(folder)
    swapped["metrics"]["validation"]["accuracy"] = 0.875
    swapped["task"]["labels"] = dict(reversed(swapped["task"]["labels"].items()))  # classes change places
    (folder / "prompt.json").write_text(json.dumps(swapped))
    with pytest.raises(PromptFileError, match="was changed after it was saved"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000])
def test_a_prompt_json_that_is_no_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "prompt.json").write_bytes(content)
    with pytest.raises(PromptFileError, match=r"prompt\.json"):
        load(folder)


def test_tensors_of_another_prompt_are_refused(folder: Path) -> None:
    (folder / "prompt.safetensors").write_bytes(safetensors.torch.save({"tokens": torch.zeros(3, 4)}))
    with pytest.raises(PromptFileError, match="damaged, or belongs to another prompt"):
        load(folder)


@fuzz
@given(data=st.data())
def test_a_flipped_byte_or_a_truncation_gives_an_error_or_the_same_prompt(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "mood")
        save(folder, sample())
        path = folder / data.draw(st.sampled_from(["prompt.json", "prompt.safetensors"]))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        for _ in range(data.draw(st.integers(0, 3)) if content else 0):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(PromptFileError):
            assert load(folder) == sample()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@fuzz
@given(data=st.data(), resign=st.booleans())
def test_a_mutated_json_tree_gives_an_error_or_a_prompt_that_saves_again(
    data: st.DataObject, resign: bool
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "mood")
        save(folder, sample())
        record = record_of(folder)
        node: Any = record
        while True:  # down to a random node, whose child is deleted, replaced or joined by another
            key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans())):
                break
            node = node[key]
        match data.draw(st.sampled_from(["delete", "replace", "add"])):
            case "delete":
                del node[key]
            case "add" if isinstance(node, dict):
                node[data.draw(st.text(max_size=8))] = data.draw(anything)
            case _:
                node[key] = data.draw(anything)
        (folder / "prompt.json").write_bytes(signed(record) if resign else json.dumps(record).encode())
        try:
            loaded = load(folder)
        except PromptFileError:
            return
        if not resign:
            assert loaded == sample()
        save(folder, loaded, overwrite=True)
        assert load(folder) == loaded


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_a_damaged_tensor_file_whose_digest_was_made_to_fit_gives_an_error_or_a_prompt(
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "mood")
        save(folder, sample())
        path = folder / "prompt.safetensors"
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):  # in the header, mostly
            content[data.draw(st.integers(0, 200) | st.integers(0, len(content) - 1))] = data.draw(
                st.integers(0, 255) | st.sampled_from(list(b'0123456789"[]{},FI'))
            )
        path.write_bytes(content)
        record = record_of(folder)
        record["tensors"]["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "prompt.json").write_bytes(signed(record))
        with contextlib.suppress(PromptFileError):
            load(folder)


def test_a_prompt_can_be_given_another_backbone_identity(folder: Path) -> None:
    loaded = load(folder)
    moved = dataclasses.replace(loaded, backbone=dataclasses.replace(loaded.backbone, name="here/llama"))
    save(folder, moved, overwrite=True)
    assert load(folder).backbone.name == "here/llama"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices of POSIX")
def test_a_prompt_that_has_no_end_is_refused_at_once(tmp_path: Path) -> None:
    save(tmp_path / "p", sample())
    for name in ("prompt.json", "prompt.safetensors"):
        kept = (tmp_path / "p" / name).rename(tmp_path / name)
        (tmp_path / "p" / name).symlink_to("/dev/zero")
        with pytest.raises(PromptFileError, match=f"{name} is a device or a pipe"):
            load(tmp_path / "p")
        (tmp_path / "p" / name).unlink()
        os.mkfifo(tmp_path / "p" / name)
        with pytest.raises(PromptFileError, match=f"{name} is a device or a pipe"):
            load(tmp_path / "p")
        (tmp_path / "p" / name).unlink()
        (tmp_path / "p" / name).symlink_to(kept)  # the hub's cache has links to files
    assert load(tmp_path / "p") == sample()


def test_a_prompt_json_that_is_far_too_large_is_refused_unread(tmp_path: Path) -> None:
    save(tmp_path / "p", sample())
    with open(tmp_path / "p" / "prompt.json", "ab") as file:
        file.truncate(2**40)
    with pytest.raises(PromptFileError, match=r"prompt\.json has 1,099,511,627,776 bytes, expected at most"):
        load(tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "\ufeff" + text, "BOM"),
        (lambda text: text.replace('"notes"', '"method": {},\n "notes"', 1), "the key 'method' stands twice"),
    ],
)
def test_what_two_programs_would_read_differently_is_refused(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    save(tmp_path / "p", sample())
    file = tmp_path / "p" / "prompt.json"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(PromptFileError, match=message):
        load(tmp_path / "p")
