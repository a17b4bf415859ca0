"""The folder of a run.

config.yaml    the config of the run with every default filled in
checkpoint/    the state of training, to resume from, and .lock, which a process holds while it trains here: the system
               frees it when that process ends, however it ends
history.jsonl  a line for each optimizer step
curve.png      a plot of the history
prompt/        the saved prompt
metrics.json   results, and what they were made with; it is written last and marks the run as finished
last-good/     written instead of prompt/ if training diverged: the prompt before that
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from softprompt import store
from softprompt.cli._results import scores
from softprompt.files import finite, read_text, unwritable_explained, write_text
from softprompt.fitting.run_config import RunConfig, differences
from softprompt.inspection import plots
from softprompt.store.places import from_home, to_home
from softprompt.training import checkpoint
from softprompt.tuned import TunedPrompt
from softprompt.version import __version__

# Settings that may differ when a run is resumed: none of them changes the tensors.
_FREE = (
    "recipe.trackers",
    "recipe.checkpoint_every",
    "recipe.gradient_checkpointing",
    "backbone.device",
    "data.test",
    "cache_features",
)


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, below `path`."""

    path: Path

    @property
    def prompt(self) -> Path:
        return self.path / "prompt"

    @property
    def last_good(self) -> Path:
        return self.path / "last-good"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def _lock(self) -> Path:
        return self.checkpoint / ".lock"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def _is_finished(self) -> bool:
        # A prompt without a config beside it was put there by somebody else.
        return self._metrics.exists() or (self.prompt.exists() and not self._config.exists())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block no other process trains into this folder. Raises ValueError if one does."""
        with unwritable_explained(self.path):
            self.checkpoint.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._lock)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(
                f"another training writes to {self.path}: wait for its end, or give another --output"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def refuse_if_held(self) -> None:
        """Raise ValueError if another process trains into this folder: before anything is loaded."""
        if self._lock.exists():
            with self.held():
                pass

    def check(self, config: RunConfig, *, overwrite: bool, resume: bool) -> None:
        """Check that a run may be written here.

        Raises FileExistsError for a finished run unless `overwrite` is True, and ValueError for an unfinished run with
        other settings that would be resumed.
        """
        if self._is_finished:
            if not overwrite:
                raise FileExistsError(
                    f"{self.path} holds a finished run: give another --output, or --overwrite to replace it"
                )
            return
        if not (resume and self._config.exists() and (self.checkpoint / checkpoint.FILE).exists()):
            return
        found = to_home(yaml.safe_load(read_text(self._config)))
        changed = {
            key: values
            for key, values in differences(found, to_home(yaml.safe_load(_config_text(config)))).items()
            if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
        }
        if changed:
            told = "; ".join(f"{key} is {old!r} there and {new!r} now" for key, (old, new) in changed.items())
            raise ValueError(
                f"{self.path} holds an unfinished run with other settings: {told}. "
                "Give another --output, or --no-resume to start anew"
            )

    def begin(self, config: RunConfig) -> None:
        """Write the config. The checkpoint and the metrics of an earlier, finished run are removed."""
        if self._is_finished:
            (self.checkpoint / checkpoint.FILE).unlink(missing_ok=True)
            self._metrics.unlink(missing_ok=True)
        with unwritable_explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self._config, _config_text(config))

    def finish(
        self, config: RunConfig, tuned: TunedPrompt, test: Mapping[str, Any] | None, rows: Mapping[str, int]
    ) -> TunedPrompt:
        """Write the history, the prompt and the metrics; returns the prompt with the test metrics added.

        config  of the run
        tuned   the prompt
        test    metrics on the test rows; None: there were none
        rows    number of rows of each data set
        """
        if test is not None:
            tuned = replace(tuned, metrics={**tuned.metrics, "test": dict(test)})
        write_text(
            self.path / "history.jsonl",
            "".join(json.dumps(finite(record)) + "\n" for record in tuned.history),
        )
        curve = self.path / "curve.png"
        curve.unlink(missing_ok=True)
        if tuned.history:
            figure = plots.learning_curve(
                tuned.history,
                tuned.task.main_metric,
                baseline=tuned.metrics.get("validation", {}).get("majority_accuracy"),
                title=f"{config.method.name} on {config.backbone.name}",
            )
            plots.save_figure(figure, curve)
        tuned.save(self.prompt, overwrite=True)
        shutil.rmtree(self.last_good, ignore_errors=True)
        results = {
            "metrics": dict(tuned.metrics),
            "summary": {
                name: scores(tuned.task.main_metric, metrics) for name, metrics in tuned.metrics.items()
            },
            "main_metric": tuned.task.main_metric,
            "backbone": store.shown_name(tuned.backbone.name),
            "precision": str(tuned.backbone.dtype).removeprefix("torch."),
            "device": str(tuned.backbone.device),
            "method": config.method.name,
            "rows": dict(rows),
            "recipe": dict(tuned.recipe),
            "softprompt": __version__,
            "versions": store.library_versions(),
        }
        write_text(self._metrics, json.dumps(finite(results), indent=2) + "\n")
        return tuned


def _config_text(config: RunConfig) -> str:
    return yaml.safe_dump(from_home(config.as_dict()), sort_keys=False, allow_unicode=True, width=100)
