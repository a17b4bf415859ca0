"""The benchmarks run, and write what their readers rely on. What they measure is not looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    causal_prompt_tuning,
    clip_prompts,
    dept,
    gpu_prompt_tuning,
    harness,
    image_text,
    language_methods,
    many_prompts,
    serving,
    vision_methods,
    vision_prompts,
)
from benchmarks.harness import Row

CPU = torch.device("cpu")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by case, after a look at the file's shape and at the table beside it."""
    report = json.loads(path.read_text())
    assert {"name", "machine", "rows", "commit", "command", "date"} <= set(report)
    assert {"cpu", "cores", "torch_threads", "gpu", "versions"} <= set(report["machine"])
    table = path.with_suffix(".md").read_text()
    for row in report["rows"]:
        assert {"case", "ours", "peer", "ratio", "unit"} <= set(row)
        assert (row["ratio"] is None) == (row["peer"] is None)
        assert f"| {row['case']} |" in table
    return {row["case"]: row for row in report["rows"]}


@pytest.mark.slow
def test_the_causal_benchmark_measures_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    path = tmp_path / "results" / "causal.json"
    assert causal_prompt_tuning.main(["--tiny", "--quick", "--json", str(path)]) == 0
    rows = read(path)
    for case in ("P=20 float32", "P=100 float32", "P=100 bfloat16", "P=100 default", "sweep P=100"):
        assert rows[case]["unit"] == "s"
        assert rows[case]["peer"] > 0
    assert rows["sweep P=200"]["peer"] is None
    assert rows["GEMM rate P=100 bfloat16"]["unit"] == rows["useful rate P=20 float32"]["unit"] == "GFLOP/s"
    for precision in ("float32", "default"):
        assert rows[f"batch inference P=100 {precision}"]["peer"] > 0
        assert rows[f"first token P=100 {precision}"]["peer"] > 0
        assert not harness.measures_memory(CPU) or rows[f"memory P=100 {precision}"]["unit"] == "MiB"
    # 1e-4: float32 sums of some hundred terms, in another order on each side.
    for case in ("P=20 float32", "P=100 float32", "batch inference P=100 float32"):
        assert max(rows[case]["relative_difference"].values()) < 1e-4
    assert rows["first token P=100 float32"]["relative_difference"] == {"result": 0.0}


@pytest.mark.slow
def test_the_benchmark_of_language_methods_does_the_same_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    path = tmp_path / "language.json"
    assert language_methods.main(["--tiny", "--json", str(path)]) == 0
    rows = read(path)
    for method in ("prefix-tuning", "p-tuning v2", "encoder prompt tuning"):
        for length in (20, 100):
            assert max(rows[f"{method} P={length} float32"]["relative_difference"].values()) < 1e-4


@pytest.mark.slow
def test_the_gpu_benchmark_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    assert gpu_prompt_tuning.main(["--tiny", "--device", "cpu", "--only", "P=100", "--json", str(path)]) == 0
    rows = read(path)
    assert set(rows) == {"B=2 P=100 against prompt tuning", "B=2 P=100 against LoRA"}
    assert all(row["unit"] == "tokens/s" for row in rows.values())


@pytest.mark.slow
def test_the_vision_benchmark_measures_every_length_and_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    path = tmp_path / "vision.json"
    assert vision_prompts.main(["--tiny", "--json", str(path)]) == 0
    rows = read(path)
    deep = {f"VPT-Deep p={length}" for length in (50, 100, 200)}
    shared = {"L2P train", "L2P eval", "Linear cached", "Partial-1 cached"}
    table = {f"method {name}" for name in vision_methods.METHODS}
    memory = {f"{name}, memory" for name in table} if harness.measures_memory(torch.device("cpu")) else set()
    assert set(rows) == deep | shared | table | memory | {"VPT-Deep step against full fine-tuning"}
    assert all(rows[name]["unit"] == "images/s" for name in table)
    for row in (rows[name] for name in deep | shared):
        assert (row["unit"], row["batch"], row["dtype"]) == ("s", 2, "float32")
        # 1e-4: float32 sums of some hundred terms, in another order on each side.
        assert max(row["relative_difference"].values()) < 1e-4


@pytest.mark.slow
def test_the_clip_benchmark_compares_equal_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    path = tmp_path / "clip.json"
    assert clip_prompts.main(["--tiny", "--json", str(path)]) == 0
    rows = read(path)
    assert {"CoOp C=24 M=16", "CoOp C=1000 M=4", "CoCoOp C=100 M=4", "DAPL C=65 M=16+16"} <= set(rows)
    assert "evaluation C=1000 M=4" in rows
    for case, row in rows.items():
        if not case.startswith("memory"):
            assert max(row["relative_difference"].values()) < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_prompt_tuning.main([]) == 0
    assert "needs a GPU" in capsys.readouterr().out


@pytest.mark.slow
def test_the_dept_benchmark_compares_equal_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    path = tmp_path / "dept.json"
    assert dept.main(["--tiny", "--json", str(path)]) == 0
    rows = read(path)
    for shape in ("t5", "causal"):
        assert max(rows[f"dense {shape}"]["relative_difference"].values()) < 1e-4
        assert rows[f"prompt tuning {shape} m=60"]["peer"] > 0
        assert not harness.measures_memory(CPU) or rows[f"dense {shape} memory"]["unit"] == "MiB"


def test_only_names_the_cases_that_run(tmp_path: Path) -> None:
    path = tmp_path / "only.json"
    causal_prompt_tuning.main(["--tiny", "--only", "first token P=100 default", "--json", str(path)])
    assert set(read(path)) == {"first token P=100 default"}


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    assert Row("time", 2.0, 6.0, "s").ratio == 3
    assert Row("rate", 6.0, 2.0, "tokens/s", higher_is_better=True).ratio == 3
    assert Row("alone", 6.0, None, "s").ratio is None


def test_sides_take_turns_after_one_warm_up_each() -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in ("ours", "peer")}
    seconds = harness.interleaved(sides, 2, lambda warm: calls.append(f"check {sorted(warm)}"))
    assert calls == ["ours", "peer", "check ['ours', 'peer']", "ours", "peer", "ours", "peer"]
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_a_side_that_does_not_fit_into_the_gpu_has_no_figure() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError

    seconds = harness.interleaved({"ours": lambda: None, "peer": too_large}, 1)
    assert harness.row_of_times("case", seconds["ours"], seconds["peer"]).peer is None


@pytest.mark.skipif(
    not harness.measures_memory(CPU), reason="memory of a process is measured under Linux only"
)
def test_peak_memory_sees_what_a_step_has_freed_again() -> None:
    found = harness.peak_extra_bytes(lambda: torch.ones(16, harness.MIB).amax(), CPU)
    assert found is not None
    # 16 x 2**20 float32 are 64 MiB
    assert 63 * harness.MIB < found < 96 * harness.MIB


def test_a_fresh_process_is_another_one() -> None:
    assert harness.in_fresh_process(os.getpid) != os.getpid()


@pytest.mark.slow
def test_the_benchmark_of_many_prompts_trains_the_same_prompts_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    assert many_prompts.main(["--tiny", "--json", str(path)]) == 0
    rows = read(path)
    assert set(rows) == {f"{kind} k={k} B=4" for kind in ("causal", "encoder") for k in (1, 2, 4, 8)}
    for row in rows.values():
        assert row["unit"] == "steps/s"
        # 1e-3: AdamW's first steps take little of a gradient's size, and float32 sums come in another order.
        assert row["relative_difference"]["prompt"] < 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_benchmark_of_serving_asks_every_side_the_same(tmp_path: Path) -> None:
    path = tmp_path / "serving.json"
    assert serving.main(["--tiny", "--dtype", "float32", "--json", str(path)]) == 0
    rows = read(path)
    for peer in ("a predict each", "PEFT in groups of 16"):
        assert rows[f"classify, against {peer}"]["same_labels"] > 0.95  # ties may fall either way
    assert rows["generate, against a generate each"]["unit"] == "tokens/s"
    assert rows["HTTP, a request that asks no model"]["unit"] == "ms"
    assert rows["prompt 20, memory"]["unit"] == "MiB"


@pytest.mark.slow
def test_the_benchmark_of_images_among_text_measures_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    path = tmp_path / "image_text.json"
    assert image_text.main(["--tiny", "--quick", "--json", str(path)]) == 0
    rows = read(path)
    for questions in image_text.QUESTIONS:
        difference = rows[f"step, {questions} questions an image"]["relative_difference"]
        assert max(difference.values()) < 1e-4  # float32 sums in another order
    assert not harness.measures_memory(CPU) or "memory, 4 questions an image" in rows
