"""A proposal as a YAML file whose comments say what was inferred from what."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from softprompt.beginning.decisions import Proposal

_WIDTH = 110


def written(proposal: Proposal, source: str, command: str) -> str:
    """The text of the file. command: what trains it, which stands at the top."""
    lines = [f"# Proposed by `softprompt init {source}`; it trains as it is: {command}", ""]
    for key, value in proposal.config.items():
        about = [
            d
            for d in proposal.decisions
            if d.key.split(".")[0] == key or (key == "data" and d.key == "columns")
        ]
        for decision in about:
            lines += _comment(decision.said)
        lines += _entry(key, value)
        lines.append("")
    if proposal.doubts:
        lines.append("# Look at this before you trust a score:")
        for doubt in proposal.doubts:
            lines += _comment(doubt, "# - ")
    return "\n".join(lines).rstrip() + "\n"


def _comment(text: str, start: str = "# ") -> list[str]:
    text = " ".join(text.split())  # a line end in a label must not end the comment
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent="#" + " " * (len(start) - 1))


def _entry(key: str, value: Any) -> Iterator[str]:
    """Lines of one key: its own keys below each other, what they hold in one line each."""
    if not isinstance(value, dict):
        yield f"{_inline(key)}: {_inline(value)}"
        return
    yield f"{_inline(key)}:"
    for name, item in value.items():
        if isinstance(item, dict) and name == "labels":
            yield f"  {_inline(name)}:"
            yield from (f"    {_inline(label)}: {_inline(word)}" for label, word in item.items())
        else:
            yield f"  {_inline(name)}: {_inline(item)}"


def _inline(value: Any) -> str:
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value, ensure_ascii=False)  # "\\n" in one line, which YAML reads alike
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
