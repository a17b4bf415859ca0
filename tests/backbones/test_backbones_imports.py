"""The rooms of the backbones: a family knows no other one, and what is private stays in its file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import softprompt
from softprompt.backbones import BackboneSpec
from tests.tiny.dual import dual_backbone
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import vision_backbone

SOURCE = Path(softprompt.__file__).parent
ROOM = "softprompt.backbones"
FAMILIES = {"causal", "dual", "encoder_decoder", "masked", "vision"}
# Two towers make a dual encoder: it takes whole backbones of these families, by their doors.
TOWERS = {("dual", f"{ROOM}.vision"), ("dual", f"{ROOM}.masked")}


def imports(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, module, name) of each name that a folder's files import from this library."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("softprompt"):
                yield from ((file, node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_knows_no_other_family(family: str) -> None:
    others = FAMILIES - {family}
    found = [
        (family, module)
        for _, module, _ in imports(SOURCE / "backbones" / family)
        if module.startswith(f"{ROOM}.") and module.split(".")[2] in others
    ]
    assert set(found) <= TOWERS


def test_the_engine_knows_no_family() -> None:
    known = {
        module.split(".")[2] for _, module, _ in imports(SOURCE / "backbones" / "engine") if ROOM in module
    }
    assert known <= {"engine"}


@pytest.mark.slow
def test_no_private_name_of_the_backbones_is_imported() -> None:
    private = [
        (file.name, name) for file, module, name in imports(SOURCE) if ROOM in module and name[0] == "_"
    ]
    assert private == []


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        (tiny_backbone().spec, "text"),
        (vision_backbone().spec, "images"),
        (dual_backbone().spec, "images and text"),
    ],
)
def test_a_backbone_says_what_it_reads(spec: BackboneSpec, reads: str) -> None:
    assert spec.reads == reads
    assert spec.reads_images == ("images" in reads)
    assert spec.reads_text == ("text" in reads)
