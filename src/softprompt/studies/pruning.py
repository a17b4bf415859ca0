"""Early pruning of trials, as in Optuna's median pruner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.studies.config import Select, Study, cells
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import plan
from softprompt.studies.runs import PlannedRun
from softprompt.studies.search import distributions, load_optuna, tell
from softprompt.studies.watching import Prune


def pruner(study: Study, run: PlannedRun, folder: StudyFolder) -> Prune:
    """A function that says whether a trial is worse, at the same step, than the median of the trials before it."""
    assert run.trial is not None
    block = run.trial - run.trial % study.search.at_once
    runs = [
        other
        for other in plan(study, folder.outcome).runs
        if other.cell == run.cell and other.trial is not None and other.trial < block
    ]
    select = _select_of(study, run.cell)
    before = [(other, outcome) for other in runs if (outcome := folder.outcome(other.id)) is not None]

    def prune(evaluations: Sequence[Mapping[str, Any]]) -> bool:
        optuna = load_optuna()
        quiet = optuna.create_study(
            direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=4)
        )
        tell(quiet, select, [o for o, _ in before], [outcome for _, outcome in before])
        quiet.enqueue_trial(dict(run.chosen))
        trial = quiet.ask(distributions(select))
        for entry in evaluations:
            trial.report(entry["value"], entry["step"])
        return bool(trial.should_prune())

    return prune


def _select_of(study: Study, cell: Mapping[str, str]) -> Select:
    select = study.select
    options = next(options for labels, options in cells(study) if labels == dict(cell))
    for option in options:
        select = select if option.select is None else option.select
    return select
