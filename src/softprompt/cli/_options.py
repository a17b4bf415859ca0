"""Options that several verbs share, and functions that act on them."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from softprompt.backbones.base import Backbone
    from softprompt.fitting.run_config import BackboneConfig
    from softprompt.tuned import TunedPrompt

PromptDir = Annotated[Path, typer.Argument(help="Folder of a saved prompt, or of the run that wrote it.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout and everything else to stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Backbone to use instead of the recorded one: a built-in name, a folder or a hub id.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision of the backbone: auto, float32, bfloat16, float16 or float64.", show_default=False
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device of the backbone: cpu, cuda, cuda:1 ...; by default the first GPU, if there is one.",
        show_default=False,
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="Class to ask about instead of the prompt's own; repeat the option for each class. NAME, or LABEL=NAME where"
        " the text uses another name than the label. For prompts that compare images with texts.",
        show_default=False,
    ),
]


Encoding = Annotated[str, typer.Option(help="Encoding of a text file with rows, e.g. cp1252.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows that are run together.")]


def open_backbone(
    name: str,
    dtype: str | None,
    device: str | None,
    *,
    revision: str | None = None,
    prefix_lm: bool = False,
    family: str | None = None,
    packed: bool | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a backbone as the options say.

    Raises ValueError for an unknown dtype and for a device that does not exist, and whatever `load_backbone` raises.
    """
    import torch

    from softprompt.backbones.loading import load_backbone

    try:
        where = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, expected cpu, cuda, cuda:1 or the like: {error}") from error
    if where is not None and where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {device!r}, and torch finds {torch.cuda.device_count()} GPUs: try --device cpu"
        )
    with _bars_for_terminals_only():
        # load_backbone checks the name of the dtype.
        return load_backbone(
            name,
            dtype=dtype or "auto",  # type: ignore[arg-type]
            device=where,
            revision=revision,
            prefix_lm=prefix_lm,
            family=family,
            packed=packed,
            trust_remote_code=trust_remote_code,
        )


def open_configured(config: BackboneConfig) -> Backbone:
    """The backbone that a run's config describes. Raises as `open_backbone` does."""
    return open_backbone(**dataclasses.asdict(config))


@contextlib.contextmanager
def _bars_for_terminals_only() -> Iterator[None]:
    """Within the block transformers shows no progress bar if stderr is not a terminal."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def open_prompt(
    folder: Path,
    backbone: str | None,
    dtype: str | None,
    device: str | None,
    labels: Sequence[str] | None = None,
) -> TunedPrompt:
    """Load the prompt in a folder, or in the `prompt` folder of a run.

    backbone  name of the backbone to use; None: the one that the prompt was trained on
    labels    classes to ask about instead of the prompt's own, as `--label` gives them

    Raises ValueError for a label without a name, and whatever `open_backbone`, `load` and `with_labels` raise.
    """
    from softprompt import store
    from softprompt.store.folders import standing
    from softprompt.tuned import load

    if not (standing(folder) / "prompt.json").exists() and standing(folder / "prompt").exists():
        folder = folder / "prompt"
    saved = store.load(folder).backbone
    revision = None if backbone else saved.revision
    try:
        is_prefix = saved.family == "prefix-lm"
        opened = open_backbone(
            backbone or saved.name,
            dtype,
            device,
            revision=revision,
            prefix_lm=is_prefix,
            family="causal-lm" if is_prefix else saved.family,
        )
    except OSError as error:
        if backbone is not None:
            raise
        raise FileNotFoundError(
            f"the prompt was trained on {saved.name!r}, which was not found from this folder: give --backbone, with the"
            f" folder or the name that it has here. {error}"
        ) from error
    tuned = load(folder, opened)
    return _asked_about(tuned, labels) if labels else tuned


def _asked_about(tuned: TunedPrompt, given: Sequence[str]) -> TunedPrompt:
    pairs = [one.partition("=") for one in given]
    labels = [label for label, _, _ in pairs]
    if not all(labels):
        raise ValueError(f"--label {given[labels.index('')]!r} names no label: expected NAME or LABEL=NAME")
    other: Any = tuned.with_labels(labels)
    names = {label: name for label, equals, name in pairs if equals}
    # Names of the prompt's own classes stay where they are asked about again.
    return tuned.with_labels(labels, names={**other.task.names, **names}) if names else other
