"""softprompt evaluate: a saved prompt on rows with answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli._console import reporting
from softprompt.cli._options import AsJson, BackboneName, Debug, Device, Dtype, Labels, PromptDir, open_prompt


def evaluate(
    prompt: PromptDir,
    data: Annotated[str, typer.Option(help="Built-in data set, file or hub data set.", show_default=False)],
    split: Annotated[
        str | None, typer.Option(help="Of a source that has splits.", show_default="test; a file has none")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows.", show_default=False)
    ] = None,
    labels: Labels = None,
    backbone: BackboneName = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a saved prompt on data."""
    with reporting(as_json, debug) as report:
        from softprompt.cli._results import metrics_table, never_predicted, read_source, scores

        rows = read_source(data, split, "test", limit)
        tuned = open_prompt(prompt, backbone, dtype, device, labels)
        metrics = tuned.evaluate(rows)
        report.values.update(
            {
                "prompt": str(Path(prompt)),
                "data": data,
                "backbone": tuned.backbone.name,
                "precision": str(tuned.backbone.dtype).removeprefix("torch."),
                "main_metric": tuned.task.main_metric,
                "metrics": metrics,
            }
        )
        report.human.print(metrics_table({"": metrics}, f"{prompt} on {data}"))
        report.human.print(scores(tuned.task.main_metric, metrics), highlight=False, markup=False)
        for message in never_predicted(metrics):
            report.warn(message)
