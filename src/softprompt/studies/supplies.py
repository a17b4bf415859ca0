"""What runs are made of, kept for the runs that follow: the frozen backbone, the rows, what an encoder made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.data import Row
from softprompt.features.cache import FeatureCache
from softprompt.features.encodings import Encodings
from softprompt.fitting.preparation import Data
from softprompt.fitting.run_config import BackboneConfig, SourceConfig, source_rows
from softprompt.protocols.few_shot import few_shot_splits
from softprompt.store import BackboneIdentity
from softprompt.store.identity import identity_of, settings_of
from softprompt.studies.run_settings import RunSettings
from softprompt.tasks.base import Task

OpenBackbone = Callable[[BackboneConfig], Backbone]

_ENCODED = 2 * 2**30  # bytes that the encoded rows of one task may take between runs


@dataclass
class Supplies:
    """open_backbone: loads what a config describes."""

    open_backbone: OpenBackbone
    _backbone: tuple[BackboneConfig, Backbone, RowFeatures] | None = None
    _identity: BackboneIdentity | None = None
    _encodings: dict[str, Encodings] = field(default_factory=dict)  # by task, on this backbone
    _rows: dict[str, list[Row]] = field(default_factory=dict)
    _splits: dict[str, tuple[list[Row], list[Row]]] = field(default_factory=dict)
    _about: dict[int, dict[str, Any]] = field(default_factory=dict)  # by identity of lists that are kept

    def backbone(self, config: BackboneConfig) -> Backbone:
        """Loaded once for all runs in a row that are on it: one at a time, as memory may hold no second."""
        return self._loaded(config)[0]

    def identity(self, config: BackboneConfig) -> BackboneIdentity:
        """The fingerprint of this backbone, which every saved prompt holds."""
        backbone, _ = self._loaded(config)
        if self._identity is None:
            self._identity = identity_of(backbone)
        return self._identity

    def parameters(self, config: BackboneConfig) -> int:
        """How many numbers this backbone has."""
        return sum(parameter.numel() for parameter in self._loaded(config)[0].model.parameters())

    def features(self, config: BackboneConfig) -> RowFeatures:
        """What this backbone itself says of rows, for methods whose prompt is a function of it."""
        return self._loaded(config)[1]

    def rows(self, source: SourceConfig, usual: str) -> list[Row]:
        """Read once. usual: the split of a source that has splits and names none."""
        key = repr((source, usual))
        if key not in self._rows:
            self._rows[key] = self._known(source_rows(source, usual))
        return self._rows[key]

    def about(self, rows: Sequence[Row]) -> dict[str, Any]:
        """How many rows that were given out here are, and a digest of them."""
        return self._about[id(rows)]

    def data(self, settings: RunSettings, cache: FeatureCache | None = None) -> Data:
        """The rows that a run is trained on and validated on; encoded once for all runs of its task on its backbone."""
        train, validation = self._training_rows(settings)
        return Data(train, validation, cache, self.encodings(settings))

    def encodings(self, settings: RunSettings) -> Encodings:
        """What was made of rows for the run's task on its backbone."""
        self._loaded(settings.config.backbone)
        task = settings.config.task
        key = json.dumps([task.name, settings_of(task)], sort_keys=True)
        return self._encodings.setdefault(key, Encodings(_ENCODED))

    def _loaded(self, config: BackboneConfig) -> tuple[Backbone, RowFeatures]:
        if self._backbone is None or self._backbone[0] != config:
            self._backbone, self._identity, self._encodings = None, None, {}
            backbone = self.open_backbone(config)
            self._backbone = config, backbone, RowFeatures(backbone)
        return self._backbone[1:]

    def _training_rows(self, settings: RunSettings) -> tuple[list[Row], list[Row] | None]:
        config = settings.config
        train = self.rows(config.data.train, "train")
        validation = (
            None if config.data.validation is None else self.rows(config.data.validation, "validation")
        )
        if settings.shots is None:
            return train, validation
        drawn = self._few_shot(train, config.task, settings.shots, config.recipe.seed)
        # Few-shot validation is as small as the training data, unless rows of their own are given.
        return drawn[0], validation or drawn[1]

    def _few_shot(self, rows: list[Row], task: Task, shots: int, seed: int) -> tuple[list[Row], list[Row]]:
        key = repr((id(rows), task, shots, seed))
        if key not in self._splits:
            [split] = few_shot_splits(rows, task, [shots], [seed])
            train, validation = ([rows[i] for i in part] for part in (split.train, split.validation))
            self._splits[key] = self._known(train), self._known(validation)
        return self._splits[key]

    def _known(self, rows: Sequence[Row]) -> list[Row]:
        kept = list(rows)
        text = json.dumps([dict(row) for row in kept], sort_keys=True, default=_of_value)
        self._about[id(kept)] = {"count": len(kept), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        return kept


def _of_value(value: Any) -> str:
    """What a value that is no JSON is known by: its bytes where it has them, since repr may cut them short."""
    content = value if isinstance(value, bytes) else getattr(value, "tobytes", lambda: repr(value).encode())()
    return hashlib.sha256(content).hexdigest()
