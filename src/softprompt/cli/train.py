"""softprompt train: train a prompt from a config file, and write it to a folder with its metrics and history."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli._console import Report, reporting
from softprompt.cli._options import AsJson, Debug, Device, Dtype, open_configured

if TYPE_CHECKING:
    from softprompt.fitting.run_config import RunConfig
    from softprompt.tuned import TunedPrompt


def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file with backbone, task, method, data, recipe and seed.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings that replace those of the file, e.g. recipe.steps=500.",
            show_default=False,
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the run to.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    resume: Annotated[
        bool, typer.Option(help="Resume from the checkpoint in the folder, if there is one.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished run in the folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a prompt from a config file."""
    with reporting(as_json, debug) as report:
        changes = [*(overrides or [])]
        changes += [f"backbone.{k}={v}" for k, v in (("dtype", dtype), ("device", device)) if v is not None]
        try:
            _train(report, config, changes, output, resume=resume, overwrite=overwrite, quiet=quiet)
        except KeyboardInterrupt as interrupt:
            flags = [flag for flag, given in (("--quiet", quiet), ("--json", as_json)) if given]
            again = ["softprompt", "train", str(config), *changes, "--output", str(output), *flags]
            interrupt.add_note(f"to resume: {shlex.join(again)}")
            raise


def _train(
    report: Report,
    path: Path,
    changes: Sequence[str],
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    from accelerate import PartialState

    from softprompt.cli import _run_folder
    from softprompt.concerns import warn_of
    from softprompt.errors import TrainingDiverged
    from softprompt.evaluation import evaluate
    from softprompt.fitting import one as fitting
    from softprompt.fitting.run_config import read_config
    from softprompt.fitting.sources import source_rows

    config = read_config(path, changes)
    folder = _run_folder.RunFolder(output)
    process = PartialState()  # under `accelerate launch` one process writes, all of them train
    if process.is_main_process:
        folder.check(config, overwrite=overwrite, resume=resume)
        folder.refuse_if_held()
    # Read everything before the first step: a missing file should not come to light after an hour.
    rows = {
        name: source_rows(source, name)
        for name in ("train", "validation", "test")
        if (source := getattr(config.data, name)) is not None
    }
    backbone = open_configured(config.backbone)
    precision = str(backbone.dtype).removeprefix("torch.")
    report.note(
        f"{config.method.name} on {backbone.name}, {precision} on {backbone.device}, "
        f"{len(rows['train'])} training rows"
    )

    with folder.held() if process.is_main_process else nullcontext():
        if process.is_main_process:
            # Another run may have ended here meanwhile.
            folder.check(config, overwrite=overwrite, resume=resume)
            folder.begin(config)
        process.wait_for_everyone()
        try:
            tuned = fitting.fit(
                backbone,
                config.task,
                config.method,
                rows["train"],
                rows.get("validation"),
                recipe=config.recipe,
                folder=folder.checkpoint,
                resume=resume,
                cache_features=config.cache_features,
                progress=not quiet,
            )
        except TrainingDiverged as error:
            if process.is_main_process:
                try:
                    error.last_good.save(folder.last_good, overwrite=True)
                    error.add_note(f"they are saved in {folder.last_good}")
                except (OSError, ValueError) as failed:  # a full disk must not hide what went wrong first
                    error.add_note(f"they could not be saved: {failed}")
                error.add_note("to train with other settings give --no-resume or another --output")
            raise
        if not process.is_main_process:
            return
        test = None
        if "test" in rows:
            test = evaluate(tuned.model, tuned.task, tuned.encoder, rows["test"])
            warn_of(tuned.task.concerns_about(test, "test"))
        tuned = folder.finish(config, tuned, test, {name: len(part) for name, part in rows.items()})
    _tell(report, config, tuned, folder.prompt)


def _tell(report: Report, config: RunConfig, tuned: TunedPrompt, prompt: Path) -> None:
    from softprompt.cli._results import metrics_table, scores

    main = tuned.task.main_metric
    report.values.update(
        {
            "prompt": str(prompt),
            "trained_parameters": tuned.recipe["trained_parameters"],
            "steps": tuned.recipe.get("steps_made", 0),
            "best_step": tuned.recipe.get("best_step"),
            "seconds": tuned.recipe.get("seconds", 0.0),
            "main_metric": main,
            "metrics": dict(tuned.metrics),
        }
    )
    if tuned.metrics:
        report.human.print(metrics_table(tuned.metrics, f"{config.method.name} on {config.backbone.name}"))
    for name, metrics in tuned.metrics.items():
        report.human.print(f"{name} {scores(main, metrics)}", highlight=False, markup=False)
    what = ["some text"] if len(tuned.task.fields) == 1 else ["--file", "rows.csv"]
    command = shlex.join(["softprompt", "predict", str(prompt), *what])
    report.human.print(f"to use it: {command}", highlight=False, markup=False, soft_wrap=True)
