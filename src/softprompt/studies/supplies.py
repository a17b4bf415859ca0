"""Supplies that runs share: the frozen backbone, the rows, and their encodings, cached for the runs that follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.data import Row
from softprompt.features.encodings import Encodings
from softprompt.fitting.run_config import BackboneConfig, SourceConfig
from softprompt.fitting.sources import source_rows
from softprompt.protocols.base import Workbench
from softprompt.store import BackboneIdentity
from softprompt.store.identity import identity_of, settings_of
from softprompt.studies.run_settings import RunSettings

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
    _draws: dict[str, Any] = field(default_factory=dict)
    _about: dict[int, dict[str, Any]] = field(default_factory=dict)  # by identity of lists that are kept

    def backbone(self, config: BackboneConfig) -> Backbone:
        """The backbone, loaded once for consecutive runs on it; only one at a time, since memory may not hold two."""
        return self._loaded(config)[0]

    def identity(self, config: BackboneConfig) -> BackboneIdentity:
        """The fingerprint of this backbone, which is in every saved prompt."""
        backbone, _ = self._loaded(config)
        if self._identity is None:
            self._identity = identity_of(backbone)
        return self._identity

    def parameters(self, config: BackboneConfig) -> int:
        """The number of weights of this backbone."""
        return sum(parameter.numel() for parameter in self._loaded(config)[0].model.parameters())

    def features(self, config: BackboneConfig) -> RowFeatures:
        """Features of rows from this backbone without a prompt, for methods whose prompt is a function of them."""
        return self._loaded(config)[1]

    def rows(self, source: SourceConfig, usual: str) -> list[Row]:
        """The rows of a source, read once. usual: the split, if the source has splits and names none."""
        key = repr((source, usual))
        if key not in self._rows:
            self._rows[key] = self._known([*source_rows(source, usual)])
        return self._rows[key]

    def about(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The number of rows and their digest, which is computed once for lists that `rows` returned."""
        return self._about.get(id(rows)) or _about(rows)

    def bench(self, settings: RunSettings) -> Workbench:
        """The workbench that the run shares with others of its task on its backbone."""
        return Workbench(
            read=self.rows,
            encodings=self.encodings(settings),
            features=self.features(settings.config.backbone),
            draws=self._draws,
        )

    def encodings(self, settings: RunSettings) -> Encodings:
        """Encodings of rows for the run's task on its backbone."""
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

    def _known(self, rows: Sequence[Row]) -> list[Row]:
        kept = list(rows)
        self._about[id(kept)] = _about(kept)
        return kept


def _about(rows: Sequence[Row]) -> dict[str, Any]:
    text = json.dumps([dict(row) for row in rows], sort_keys=True, default=_of_value)
    return {"count": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _of_value(value: Any) -> str:
    """The identity of a value that is not JSON: its bytes if it has any, since repr may shorten it."""
    content = value if isinstance(value, bytes) else getattr(value, "tobytes", lambda: repr(value).encode())()
    return hashlib.sha256(content).hexdigest()
