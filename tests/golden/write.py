"""Wrote the golden files, once, with the code of commit 3cfa151. They are never written again: what a later version writes
proves nothing about the earlier one.

Run in a checkout of that commit with nothing but tests/golden added to it, from its root:

    git worktree add golden 3cfa151; cd golden
    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m tests.golden.write

tests/golden/studies is a copy of that commit's studies/*.yaml. The script wrote run-ids.json, runs.json, fields.json,
identities.json, study.json, prompts/, checkpoints/ and study/. The name of the system in the study's results is shortened
to "Linux", and the empty lock files of the study are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import softprompt as sp
from softprompt import studies
from softprompt.studies.run_settings import parse_run
from softprompt.studies.runs import run_hash
from tests.golden import runs
from tests.golden.cases import CASES, HERE, INTERRUPTED, RUNS, STUDY, TOGETHER, write_study_rows


def write(name: str, value: Any) -> None:
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_ids() -> None:
    found = {}
    for file in runs.study_files():
        found[file.name] = {"small": runs.run_ids(file, full=False)}
        if "\nfull:" in file.read_text(encoding="utf-8"):
            found[file.name]["full"] = runs.run_ids(file, full=True)
    write("run-ids.json", found)
    values = {name: parse_run(given).as_dict() for name, given in RUNS.items()}
    write("runs.json", {name: {"hash": run_hash(full), "values": full} for name, full in values.items()})
    write("fields.json", runs.fields())


def write_prompts() -> None:
    identities = {}
    for name, case in CASES.items():
        tuned = runs.trained(case)
        place = HERE / "prompts" / name
        tuned.save(place)
        loaded = sp.load(place, runs.backbone(case.backbone))
        write(f"prompts/{name}.json", runs.predictions(loaded, case))
        with tempfile.TemporaryDirectory() as folder:
            interrupted(
                lambda name=name, folder=folder: runs.trained(CASES[name], Path(folder), runs.Seen(1))
            )
            identities[name] = runs.checkpoint_identity(Path(folder))
    write("identities.json", identities)


def write_checkpoints() -> None:
    for name, step in INTERRUPTED.items():
        place = HERE / "checkpoints" / name
        whole = runs.trained(CASES[name])
        interrupted(
            lambda name=name, place=place, step=step: runs.trained(CASES[name], place, runs.Seen(step))
        )
        write_whole(place, whole)
    case, place = CASES["decoder-prompt-tuning"], HERE / "checkpoints" / "together"
    every = runs.trained_together(case)
    interrupted(lambda: runs.trained_together(case, place, [runs.Seen(5) for _ in TOGETHER]))
    for number, whole in enumerate(every):
        write_whole(place / f"run-{number}", whole)


def write_whole(place: Path, tuned: sp.TunedPrompt) -> None:
    safetensors.torch.save_file(runs.state(tuned), place / "whole.safetensors")
    losses = json.dumps([record["loss"] for record in tuned.history])
    (place / "losses.json").write_text(losses + "\n", encoding="utf-8")


def write_study() -> None:
    study = studies.parse_study(STUDY)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        write_study_rows(Path())
        whole, begun = studies.StudyFolder(Path("whole")), studies.StudyFolder(Path("begun"))
        found = studies.conduct(study, whole, runs.worker(), show=runs.Told())
        outcomes = {run.id: whole.outcome(run.id) for run in found.runs}
        by_name = {(run.cell["method"], run.stage, run.seed): run.id for run in found.runs}
        # Broken off: in the middle of a training, of the second task's training, of one half of the classes.
        stop = {
            by_name["plain", "final", 0]: (0, 3),
            by_name["tasks", "final", 0]: (1, 3),
            by_name["halves", "final", 1]: (0, 3),
        }
        left_alone = {by_name["plain", "final", 1], by_name["few", "final", 1], by_name["tasks", "final", 1]}

        def engine(batches: Sequence[Sequence[studies.PlannedRun]], do: Any) -> int:
            made = 0
            for batch in batches:
                if batch[0].id not in left_alone | broken:
                    try:
                        made += do(batch)
                    except KeyboardInterrupt:
                        broken.add(batch[0].id)
                        made += 1
            if not made:
                raise KeyboardInterrupt
            return made

        broken: set[str] = set()
        interrupted(lambda: studies.conduct(study, begun, runs.worker(), engine=engine, show=runs.Told(stop)))
        assert broken == set(stop)
        shutil.rmtree(begun.path / "claims")
        shutil.copytree(begun.path, HERE / "study")
        write(
            "study.json",
            {
                "ids": [run.id for run in found.runs],
                "finished": sorted(id_ for id_ in outcomes if begun.outcome(id_) is not None),
                "begun": sorted(broken),
                "results": {id_: outcome.facts["metrics"] for id_, outcome in outcomes.items() if outcome},
                "losses": {id_: [record["loss"] for record in whole.history(id_)] for id_ in outcomes},
            },
        )


def interrupted(work: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        work()
        raise AssertionError("it was not broken off")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    platform.platform = lambda *_, **__: "Linux"
    warnings.simplefilter("ignore", sp.SoftpromptWarning)
    for name in ("prompts", "checkpoints", "study"):
        assert not (HERE / name).exists(), f"{name} is there: the golden files are never written again"
    write_ids()
    write_prompts()
    write_checkpoints()
    write_study()
