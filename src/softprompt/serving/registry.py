"""The prompts that are served, by name. Each was checked against the backbone before it got in."""

from __future__ import annotations

import difflib
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from softprompt import store
from softprompt.backbones.base import Backbone
from softprompt.baselines.untrained import ZeroShot
from softprompt.prompts.base import BuildContext
from softprompt.serving.errors import BadRequestError, PromptNotFoundError
from softprompt.store.identity import identity_of, recognised
from softprompt.tasks import TextGeneration
from softprompt.tuned import TunedPrompt, restore_saved

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_SLOT = re.compile(r"(?<!\{)\{soft(?::\d+)?\}(?!\})")

Stamp = tuple[int, int]
"""When a prompt's file was written, in nanoseconds, and its bytes: another stamp means another prompt."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A served prompt. It never changes: a prompt that is loaded again is another entry.

    name     that requests give
    tuned    the prompt
    folder   that it was loaded from; None: it was given as an object
    stamp    of that folder's prompt.json when it was read
    created  Unix time of its loading
    """

    name: str
    tuned: TunedPrompt
    folder: Path | None = None
    stamp: Stamp | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def writes_text(self) -> bool:
        """Whether the answer is a text; otherwise it is a label, a number, tags or a span."""
        return self.tuned.task.writes_text

    @cached_property
    def without_prompt(self) -> Entry:
        """The same task asked of the backbone itself. Raises BadRequestError where a trained head answers."""
        task: Any = self.tuned.task
        if task.outputs is not None or self.tuned.backbone.spec.image is not None:
            raise BadRequestError(
                f"{self.name} is answered by what was trained with it: the backbone alone cannot be asked"
            )
        if hasattr(task, "template"):
            task = replace(task, template=_SLOT.sub("", task.template))
        return Entry(self.name, untrained(self.tuned.backbone, task))


def untrained(backbone: Backbone, task: Any) -> TunedPrompt:
    """The backbone with a task and no prompt."""
    method = ZeroShot()
    module = method.build(BuildContext(backbone.spec, generator=torch.Generator()))
    return TunedPrompt(backbone=backbone, task=task, method=method, module=module.to(backbone.device))


class Registry:
    """Prompts by name, on one backbone. It may be used from several threads.

    backbone  that all prompts are checked against
    on_drop   is called with every entry that is no longer served
    """

    def __init__(self, backbone: Backbone, on_drop: Callable[[Entry], None] = lambda entry: None) -> None:
        self.backbone = backbone
        self._on_drop = on_drop
        self._entries: dict[str, Entry] = {}
        self._lock = RLock()
        self._left_out: dict[Path, Stamp] = {}
        self.base: Entry | None = None
        if backbone.spec.family == "causal-lm":
            task = TextGeneration(
                "{text}", end="eos" if backbone.tokenizer.eos_token_id is not None else "\0"
            )
            self.base = Entry(backbone.name, untrained(backbone, task))

    @cached_property
    def _identity(self) -> store.BackboneIdentity:
        return identity_of(self.backbone)  # reads the whole embedding table: once

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            return iter([self._entries[name] for name in sorted(self._entries)])

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Entry:
        """The entry of a name; the backbone's own name is the model without a prompt.

        Raises PromptNotFoundError, which gives near names.
        """
        return self.find(name)

    def __contains__(self, name: str) -> bool:
        return name in self._entries or (self.base is not None and name == self.base.name)

    def find(self, name: str, *, hints: bool = True) -> Entry:
        """The same; without `hints` an error gives no near names."""
        entry = self._entries.get(name)
        if entry is None and self.base is not None and name == self.base.name:
            entry = self.base
        if entry is not None:
            return entry
        with self._lock:
            names = [*self._entries, *([self.base.name] if self.base else [])]
        near = difflib.get_close_matches(name[:128], names, n=3) if hints else []
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; GET /v1/models lists them"
        raise PromptNotFoundError(f"there is no prompt {name[:128]!r}{hint}", param="model")

    def load(self, name: str, folder: Path, *, overwrite: bool = False) -> Entry:
        """Read a saved prompt and serve it under a name.

        Raises BadRequestError for a name that is taken or not allowed, and for prompts that changed weights of the
        backbone; PromptFileError and WrongBackboneError as `softprompt.load` does.
        """
        if not (folder / "prompt.json").exists() and (folder / "prompt" / "prompt.json").exists():
            folder = folder / "prompt"  # of a run
        stamp = stamp_of(folder)
        saved = store.load(folder)
        if any(key.startswith("backbone.") for key in saved.tensors):
            raise BadRequestError(
                f"{name}: {saved.method['name']} changed weights of the backbone, so that it shares no model with others: use"
                " sp.load and predict"
            )
        known = self._identity
        if saved.backbone.tokenizer_digest not in (None, known.tokenizer_digest):
            known = recognised(saved.backbone, self.backbone)
        store.check_backbone(saved, known)
        return self.add(name, restore_saved(saved, self.backbone, folder), folder, stamp, overwrite=overwrite)

    def add(
        self,
        name: str,
        tuned: TunedPrompt,
        folder: Path | None = None,
        stamp: Stamp | None = None,
        *,
        overwrite: bool = False,
    ) -> Entry:
        """Serve a prompt under a name. Raises BadRequestError for a name that is taken or not allowed, for another backbone
        object, and for a task with options of `generate`."""
        if not _NAME.fullmatch(name) or (self.base is not None and name == self.base.name):
            raise BadRequestError(
                f"the name {name[:128]!r} is not allowed: expected up to 128 letters, digits, '_', '.' and '-', beginning with"
                " a letter or digit, and not the backbone's own name",
                param="name",
            )
        if tuned.backbone.model is not self.backbone.model:
            raise BadRequestError(
                f"{name} is on another backbone object: load it with sp.load(folder, backbone), with the engine's backbone"
            )
        if given := getattr(tuned.task, "generation", None):
            raise BadRequestError(
                f"{name} writes with the options {dict(given)}, which a server would not follow: save it with generation={{}},"
                " and let requests say temperature, top_p, top_k and seed"
            )
        entry = Entry(name, tuned, folder, stamp)
        with self._lock:
            old = self._entries.get(name)
            if old is not None and not overwrite:
                raise BadRequestError(
                    f"there is a prompt {name!r} already: remove it first, or ask for it to be replaced",
                    param="name",
                )
            self._entries[name] = entry
        if old is not None:
            self._on_drop(old)
        return entry

    def remove(self, name: str) -> Entry:
        """Serve a prompt no longer. Requests that have it already are answered. Its folder stays on disk, and `follow` leaves
        it out until it is written again. Raises PromptNotFoundError, and BadRequestError for the backbone itself."""
        with self._lock:
            if self[name] is self.base:
                raise BadRequestError("the backbone itself cannot be removed", param="model")
            entry = self._entries.pop(name)
            if entry.folder is not None and entry.stamp is not None:
                # `follow` would load it again at its next look.
                self._left_out |= {entry.folder: entry.stamp, entry.folder.parent: entry.stamp}
        self._on_drop(entry)
        return entry

    def follow(self, root: Path) -> list[str]:
        """Make the registry hold what the folders inside `root` hold: new ones are loaded, changed ones replaced, and those
        that were deleted removed. Returns a sentence for each folder that cannot be served; what was loaded from it stays.

        A prompt's name is that of its folder. Prompts that were added by hand, or loaded from elsewhere, stay.
        """
        problems = []
        found = (
            {path.name: path for path in sorted(root.iterdir()) if _is_prompt(path)} if root.is_dir() else {}
        )
        with self._lock:
            folders = set(found.values())
            self._left_out = {at: stamp for at, stamp in self._left_out.items() if at in folders}
            mine = {
                e.name: e for e in self._entries.values() if e.folder is not None and _inside(e.folder, root)
            }
        for name in mine.keys() - found.keys():
            if stamp_of(mine[name].folder) is None and self._entries.get(name) is mine[name]:
                self.remove(name)
        for name, folder in found.items():
            stamp = stamp_of(folder) or stamp_of(folder / "prompt")
            served = self._entries.get(name)
            if stamp is None or (served is not None and served.stamp in (stamp, None)):
                continue
            if self._left_out.get(folder) == stamp:
                continue
            try:
                self.load(name, folder, overwrite=True)
                self._left_out.pop(folder, None)
            except (ValueError, OSError, RuntimeError) as error:
                self._left_out[folder] = stamp
                problems.append(f"{name} is not served: {error}")
        return problems


def stamp_of(folder: Path | None) -> Stamp | None:
    """The stamp of a folder's prompt.json; None where there is none."""
    try:
        stat = (folder / "prompt.json").stat() if folder is not None else None
    except OSError:
        return None
    return None if stat is None else (stat.st_mtime_ns, stat.st_size)


def _is_prompt(path: Path) -> bool:
    return (
        not path.name.startswith(".")
        and path.is_dir()
        and any((path / inner).exists() for inner in ("prompt.json", "prompt/prompt.json"))
    )


def _inside(folder: Path, root: Path) -> bool:
    return root in folder.parents
