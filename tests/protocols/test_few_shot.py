"""k rows per class: reproducible splits, and runs that resume."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softprompt as sp
from softprompt.protocols import few_shot, started_from
from softprompt.records import rows_digest
from tests.tiny import vision
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tiny.vision import vision_backbone

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

QUICK = sp.Recipe(steps=2, batch_size=4, warmup=0)
SMALL: dict[str, Any] = {"shots": (1, 2), "seeds": (0, 1), "recipes": (QUICK,)}


def labels(ids: tuple[int, ...]) -> Counter[str]:
    return Counter(ROWS[i]["label"] for i in ids)


def test_a_split_has_k_rows_per_class_to_train_on_and_k_others_to_choose_by() -> None:
    for split in sp.few_shot_splits(ROWS, TASK, shots=(1, 4), seeds=(0, 1)):
        assert labels(split.train) == labels(split.validation) == {"pos": split.shots, "neg": split.shots}
        assert not set(split.train) & set(split.validation)


def test_splits_repeat_nest_and_differ_by_seed() -> None:
    splits = sp.few_shot_splits(ROWS, TASK, shots=(2, 4), seeds=(0, 1))
    assert splits == sp.few_shot_splits(ROWS, TASK, shots=(2, 4), seeds=(0, 1))
    assert set(splits[0].train) < set(splits[2].train)
    assert splits[0].train != splits[1].train


def test_splits_are_read_from_their_file_and_new_ones_are_added(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    first = sp.few_shot_splits(ROWS, TASK, shots=(2,), seeds=(0,), file=file)
    kept = json.loads(file.read_text())
    kept["splits"]["2/0"]["train"] = [0, 1, 2, 3]  # a split that somebody shared
    file.write_text(json.dumps(kept))
    found = sp.few_shot_splits(ROWS, TASK, shots=(2,), seeds=(0, 1), file=file)
    assert found[0].train == (0, 1, 2, 3)
    assert found[0].validation == first[0].validation
    assert set(json.loads(file.read_text())["splits"]) == {"2/0", "2/1"}
    with pytest.raises(ValueError, match="holds splits of other rows"):
        sp.few_shot_splits(ROWS[:-1], TASK, shots=(2,), seeds=(0,), file=file)


def test_a_class_with_too_few_rows_is_said() -> None:
    with pytest.raises(ValueError, match="k=9 rows per class were asked for"):
        sp.few_shot_splits(ROWS, TASK, shots=(9,), seeds=(0,))
    with pytest.raises(ValueError, match="k=5 rows per class were asked for"):
        sp.few_shot_splits(ROWS, TASK, shots=(5,), seeds=(0,))
    with pytest.raises(
        ValueError, match=r"k=8: no row is left for validation for the labels \['neg', 'pos'\]"
    ):
        sp.few_shot_splits(ROWS, TASK, shots=(8,), seeds=(0,))
    with pytest.raises(ValueError, match="text-generation has no classes"):
        sp.few_shot_splits(ROWS, sp.TextGeneration("{text}", target=" {label}"), shots=(1,), seeds=(0,))


def test_a_run_for_every_k_and_seed_with_flat_records() -> None:
    records = sp.few_shot_runs(tiny_backbone(), TASK, sp.PromptTuning(length=2), ROWS, ROWS[:6], **SMALL)
    assert [(r["shots"], r["seed"]) for r in records] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for record in records:
        assert not any(isinstance(value, dict | list) for value in record.values())
        assert record["method"] == "prompt-tuning"
        assert (record["majority"], record["test_rows"], record["trained_parameters"]) == (0.5, 6, 2 * 48)
        assert record["test"] == record["test_accuracy"]


def test_validation_chooses_the_recipe_and_the_test_rows_are_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate, read = sp.TunedPrompt.evaluate, []

    def counted(self: sp.TunedPrompt, rows: Any, **options: Any) -> dict[str, Any]:
        read.append(rows)
        return evaluate(self, rows, **options)

    monkeypatch.setattr(sp.TunedPrompt, "evaluate", counted)
    still = sp.Recipe(steps=1, learning_rate=1e-9)
    learning = sp.Recipe(steps=30, batch_size=4, learning_rate=0.05)
    (record,) = sp.few_shot_runs(
        tiny_backbone(),
        TASK,
        sp.PromptTuning(length=2),
        ROWS,
        ROWS[:6],
        shots=(4,),
        seeds=(0,),
        recipes=(still, learning),
    )
    assert record["recipe"] == 1
    assert record["learning_rate"] == 0.05
    assert record["validation"] > 0.5
    assert read == [ROWS[:6]]


def test_finished_runs_are_read_from_the_file_and_a_killed_study_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, method, file = tiny_backbone(), sp.PromptTuning(length=2), tmp_path / "runs.json"
    run = few_shot._run
    done: list[Any] = []

    def killed(*args: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args)
        return run(*args)

    monkeypatch.setattr(few_shot, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        sp.few_shot_runs(backbone, TASK, method, ROWS, ROWS[:6], file=file, **SMALL)
    done.clear()
    records = sp.few_shot_runs(backbone, TASK, method, ROWS, ROWS[:6], file=file, **SMALL)
    assert (len(done), len(records)) == (2, 4)
    monkeypatch.setattr(few_shot, "_run", None)
    assert sp.few_shot_runs(backbone, TASK, method, ROWS, ROWS[:6], file=file, **SMALL) == records
    with pytest.raises(
        ValueError, match=r"runs\.json has a run 'prompt-tuning/scratch/1/0' with other settings \(method\)"
    ):
        sp.few_shot_runs(backbone, TASK, sp.PromptTuning(length=3), ROWS, ROWS[:6], file=file, **SMALL)
    with pytest.raises(ValueError, match=r"with other settings \(test rows\)"):
        sp.few_shot_runs(backbone, TASK, method, ROWS, ROWS[:4], file=file, **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompt-tuning", "dept"])
def test_runs_start_from_a_source_prompt(tmp_path: Path, name: str) -> None:
    backbone = tiny_backbone()
    method = sp.methods()[name](length=2)  # type: ignore[call-arg]
    source = sp.fit(backbone, TASK, method, ROWS, steps=30, learning_rate=0.05, progress=False)
    folder = source.save(tmp_path / "source")
    still = sp.Recipe(steps=1, learning_rate=1e-9)
    (record,) = sp.few_shot_runs(
        backbone, TASK, method, ROWS, ROWS, shots=(2,), seeds=(0,), source=folder, recipes=(still,)
    )
    assert record["source"] == str(folder)
    assert record["test_accuracy"] == source.evaluate(ROWS)["accuracy"]


def test_a_method_starts_from_a_prompt_whatever_it_started_from(tmp_path: Path) -> None:
    method = started_from(sp.PromptTuning(length=3, init="text", init_text="film"), tmp_path)
    assert method == sp.PromptTuning(length=3, init="prompt", init_prompt=tmp_path)
    with pytest.raises(ValueError, match="zero-shot cannot start from a prompt"):
        started_from(sp.ZeroShot(), tmp_path)


def test_untrained_baselines_run_in_the_same_table() -> None:
    (record,) = sp.few_shot_runs(
        tiny_backbone(), TASK, sp.FewShot(shots=2), ROWS, ROWS[:6], shots=(2,), seeds=(0,), recipes=(QUICK,)
    )
    assert (record["method"], record["trained_parameters"], record["best_step"]) == ("few-shot", 0, None)


def test_a_file_that_holds_no_runs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    file.write_text("[1]")
    with pytest.raises(ValueError, match="holds a JSON list, expected an object"):
        sp.few_shot_runs(tiny_backbone(), TASK, sp.PromptTuning(length=2), ROWS, ROWS[:6], file=file, **SMALL)


def test_images_have_few_shot_splits_and_runs_like_any_rows(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"shots": (2,), "seeds": (0, 1), "recipes": (QUICK,)}
    settings |= {"splits": tmp_path / "splits.json", "file": tmp_path / "runs.json"}
    arguments = (vision_backbone(), vision.TASK, sp.VPT(length=2), vision.ROWS, vision.ROWS[:6])
    records = sp.few_shot_runs(*arguments, **settings)
    assert [(r["shots"], r["seed"], r["test_rows"]) for r in records] == [(2, 0, 6), (2, 1, 6)]
    assert sp.few_shot_runs(*arguments, **settings) == records


def test_no_picture_is_in_both_halves_of_a_split(tmp_path: Path) -> None:
    for number in range(6):
        for label, red in (("red", 200), ("blue", 20)):
            picture = vision.picture(red, 90, 220 - red, seed=number % 3)
            picture.save(tmp_path / f"{label}{number}.png")  # each twice, under two names
    rows = [{"image": str(path), "label": path.stem.rstrip("012345")} for path in sorted(tmp_path.iterdir())]
    as_bytes = [
        {"image": {"bytes": Path(row["image"]).read_bytes(), "path": row["image"]}, "label": row["label"]}
        for row in rows
    ]
    task = sp.ImageClassification(labels=["red", "blue"])
    for given in (rows, as_bytes):
        splits = sp.few_shot_splits(given, task, shots=(1,), seeds=range(6))
        for split in splits:
            halves = [
                {Path(rows[i]["image"]).read_bytes() for i in half}
                for half in (split.train, split.validation)
            ]
            assert [len(half) for half in halves] == [2, 2]
            assert not halves[0] & halves[1]
    with pytest.raises(ValueError, match="lower k"):
        sp.few_shot_splits(rows, task, shots=(3,), seeds=(0, 1))


def test_a_split_of_images_fits_the_same_images_in_another_folder_and_no_others(tmp_path: Path) -> None:
    def rows(folder: str, *, other: bool = False) -> list[dict[str, Any]]:
        (tmp_path / folder).mkdir()
        written = []
        for i, row in enumerate(vision.ROWS):
            path = tmp_path / folder / f"{i}.png"
            vision.ROWS[i - other]["image"].save(path)
            written.append({"image": str(path), "label": row["label"]})
        return written

    file = tmp_path / "splits.json"
    (split,) = sp.few_shot_splits(rows("here"), vision.TASK, shots=(2,), seeds=(0,), file=file)
    assert sp.few_shot_splits(rows("there"), vision.TASK, shots=(2,), seeds=(0,), file=file) == [split]
    with pytest.raises(ValueError, match="holds splits of other rows"):
        sp.few_shot_splits(rows("other", other=True), vision.TASK, shots=(2,), seeds=(0,), file=file)


def test_rows_in_memory_have_the_same_digest_whatever_their_address() -> None:
    image = vision.ROWS[0]["image"]
    for value in (image, np.asarray(image), torch.tensor(np.asarray(image)), image.tobytes()):
        again = copy.deepcopy(value)
        assert rows_digest([{"image": value}]) == rows_digest([{"image": again}])
    other = vision.ROWS[1]["image"]
    assert rows_digest([{"image": image}]) != rows_digest([{"image": other}])
    # 1,000 numbers and more are printed with dots between them.
    ones, changed = np.ones(2000), np.ones(2000)
    changed[1000] = 2
    assert rows_digest([{"image": ones}]) != rows_digest([{"image": changed}])


def test_a_text_that_ends_like_an_image_is_a_text() -> None:
    assert rows_digest([{"text": 3000 * "a" + ".png"}]) != rows_digest([{"text": 3000 * "b" + ".png"}])
