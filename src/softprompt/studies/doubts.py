"""What a reader should know about a study before trusting its tables."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from softprompt.studies.results import Result, StudyResults

_FEW = 3  # seeds, below which a spread says little


def doubts(results: StudyResults) -> list[str]:
    """Sentences about missing, few or mixed runs in the tables, and the warnings of the runs themselves."""
    found = list(results.plan.stuck)
    if results.missing:
        found.append(f"{results.missing} runs have not been made yet: the tables are incomplete.")
    found += [*_lost(results), *_few_seeds(results)]
    if results.data == ["validation"]:
        found.append(
            "There are no test data: these are scores on the rows by which checkpoints and settings were chosen."
        )
    found += [*_mixed_software(results), *_changed_rows([*results.searched, *results.finals])]
    return [*found, *_concerns(results)]


def _concerns(results: StudyResults) -> list[str]:
    """Warnings of most runs. Sentences that differ only in their numbers count as one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for result in results.finals:
        for concern in result.outcome.facts.get("concerns", ()):
            alike[re.sub(r"\d+(\.\d+)?", "0", concern)].append(concern)
    most = sorted(alike.values(), key=len, reverse=True)[:8]
    return [f"{len(told)} runs{', for example' * (len(set(told)) > 1)}: {told[0]}" for told in most]


def _lost(results: StudyResults) -> list[str]:
    """Final runs that failed, grouped by their error."""
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for result in results.failed:
        if result.run.stage == "final":
            seeds[result.outcome.status, _name(result.line, result.condition)].add(result.run.seed)
    lost: dict[str, list[str]] = defaultdict(list)
    for (status, name), found in seeds.items():
        lost[status].append(f"{name} (seed{'s' * (len(found) != 1)} {', '.join(map(str, sorted(found)))})")
    return [f"The tables are without runs that {status}: {_some(names)}." for status, names in lost.items()]


def _few_seeds(results: StudyResults) -> list[str]:
    names: dict[int, list[str]] = defaultdict(list)
    for line in filter(results.trains, results.lines):
        counts = {
            condition: len({r.run.seed for r in found})
            for condition in results.conditions
            if (found := results.of(line, condition))
        }
        everywhere = len(set(counts.values())) == 1
        for condition, count in counts.items():
            name = line if everywhere else _name(line, condition)
            if count < _FEW and name not in names[count]:
                names[count].append(name)
    return [
        f"{count} seed{'s' * (count != 1)} only of {_some(few)}: a spread over fewer than {_FEW} says little."
        for count, few in sorted(names.items())
        if few
    ]


def _mixed_software(results: StudyResults) -> list[str]:
    made = [
        facts for r in (*results.searched, *results.finals) if (facts := r.outcome.facts.get("environment"))
    ]
    kinds: dict[str, set[str]] = defaultdict(set)
    for environment in made:
        for what in ("softprompt", "commit", "device", "precision"):
            kinds[what].add(str(environment.get(what)))
        for library, version in environment.get("versions", {}).items():
            kinds[library].add(version)
    if "backbone" in results.study.axes:
        del kinds["precision"]  # by default each backbone has that which its machine is good at
    return [
        f"Runs were made with different {what}: {', '.join(sorted(found))}."
        for what, found in kinds.items()
        if len(found) > 1
    ]


def _changed_rows(ended: Sequence[Result]) -> list[str]:
    digests: dict[str, set[str]] = defaultdict(set)
    names = {}
    for result in ended:
        for key, name, digest in _rows_read(result):
            digests[key].add(digest)
            names[key] = name
    changed = [names[key] for key, found in digests.items() if len(found) > 1]
    return [f"The {name} changed while the study ran." for name in dict.fromkeys(changed)]


def _rows_read(result: Result) -> Iterator[tuple[str, str, str]]:
    """For each of a run's data sets: everything that decides its rows, its name in words, and the digest of the rows."""
    values, protocol = result.run.values, result.run.settings().protocol
    own_sources = {name: source.as_dict() for name, source in protocol.sources().items()}
    sources, shots = {**values["data"], **own_sources}, protocol.draws()
    for name, rows in result.outcome.facts.get("rows", {}).items():
        own = sources.get(name)
        source = own or values["data"]["train"]  # validation rows that were drawn beside few training rows
        settings = [
            f"{key} {value}" for key, value in source.items() if key != "source" and value is not None
        ]
        told = " ".join([f"{name} rows of {source['source']}", *settings])
        drawn = shots is not None and (name == "train" or own is None)
        draw = [shots, result.run.seed, values["task"]] if drawn else []
        yield json.dumps([told, draw], sort_keys=True), told, rows["sha256"]


def _name(line: str, condition: str) -> str:
    return ", ".join(part for part in (line, condition) if part)


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
