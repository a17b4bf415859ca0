"""What a reader should know of a study before believing its tables."""

from __future__ import annotations

from collections import Counter, defaultdict

from softprompt.studies.results import StudyResults


def doubts(results: StudyResults) -> list[str]:
    """What a reader should know before believing the tables."""
    found = list(results.plan.stuck)
    if results.missing:
        found.append(f"{results.missing} runs have not been made yet: the tables are not whole.")
    few = min(len({r.run.seed for r in results.of(line)}) for line in results.lines)
    if few < 3:
        found.append(
            f"Some lines have {few} seed{'s' * (few != 1)} only: a spread over fewer than 3 says little."
        )
    if results.data == ["validation"]:
        found.append(
            "There are no test data: these are scores on the rows that checkpoints and settings were chosen by."
        )
    for what in ("softprompt", "commit", "device", "precision"):
        kinds = {str(r.outcome.facts["environment"].get(what)) for r in results.finals}
        if len(kinds) > 1 and not (what == "precision" and "backbone" in results.study.axes):
            found.append(f"Runs were made with different {what}: {', '.join(sorted(kinds))}.")
    digests: dict[str, set[str]] = defaultdict(set)
    for result in results.finals:
        for name, source in result.run.values["data"].items():
            rows = result.outcome.facts["rows"].get(name)
            if source and rows and "shots" not in result.run.values:
                settings = [f"{k} {v}" for k, v in source.items() if k != "source" and v is not None]
                digests[" ".join([f"{name} rows of {source['source']}", *settings])].add(rows["sha256"])
    found += [f"The {name} changed while the study ran." for name, kinds in digests.items() if len(kinds) > 1]
    concerns = Counter(concern for r in results.finals for concern in r.outcome.facts.get("concerns", ()))
    found += [f"{count} runs: {concern}" for concern, count in concerns.most_common(8)]
    return found
