"""Options that several verbs share, and what they mean."""

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

PromptDir = Annotated[Path, typer.Argument(help="Folder of a saved prompt, or of the run that made it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone", help="Where the backbone is now: built-in model, folder or hub id.", show_default=False
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Of the backbone: auto, float32, bfloat16, float16 or float64.", show_default=False),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first GPU if there is one.", show_default=False)
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="Other classes than the prompt's, one option each: NAME, or LABEL=NAME where the text says something else."
        " For prompts that compare images with texts.",
        show_default=False,
    ),
]


def open_backbone(
    name: str,
    dtype: str | None,
    device: str | None,
    *,
    revision: str | None = None,
    prefix_lm: bool = False,
    packed: bool | None = None,
) -> Backbone:
    """Raises ValueError for an unknown dtype, a device that is not there, and what `load_backbone` raises."""
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
            packed=packed,
        )


def open_configured(config: BackboneConfig) -> Backbone:
    """The backbone that a run's config describes. Raises as `open_backbone` does."""
    return open_backbone(**dataclasses.asdict(config))


@contextlib.contextmanager
def _bars_for_terminals_only() -> Iterator[None]:
    """Without transformers' bar where it would end up in a log."""
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
    """The prompt in a folder, or in a run's `prompt` folder, on its backbone or the one that is named.

    labels: classes that it is asked about instead of its own, as `--label` gives them.
    Raises ValueError for a label without a name, and what `open_backbone`, `load` and `with_labels` raise.
    """
    from softprompt import store
    from softprompt.tuned import load

    if not (folder / "prompt.json").exists() and (folder / "prompt" / "prompt.json").exists():
        folder = folder / "prompt"
    saved = store.load(folder).backbone
    revision = None if backbone else saved.revision
    opened = open_backbone(
        backbone or saved.name, dtype, device, revision=revision, prefix_lm=saved.family == "prefix-lm"
    )
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
