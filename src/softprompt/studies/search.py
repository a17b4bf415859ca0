"""Settings drawn by Optuna. Nothing but the results of the runs is kept.

Trial k is a function of the search's seed, k, and the results of the trials before it: the sampler is made anew for each. A
study that was killed therefore draws what it would have drawn, and so does another process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softprompt.studies.config import Range, SearchConfig, Select, Study, cells, merged
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import Outcome, Outcomes, PlannedRun, plan, planned
from softprompt.studies.watching import Prune

if TYPE_CHECKING:
    import optuna


def trials(
    search: SearchConfig,
    values: Mapping[str, Any],
    cell: Mapping[str, str],
    select: Select,
    outcomes: Outcomes,
) -> tuple[list[PlannedRun], int]:
    """The trials that can be drawn by now, and how many will follow."""
    runs: list[PlannedRun] = []
    ended: list[Outcome] = []
    for start in range(0, search.trials, search.at_once):
        numbers = range(start, min(start + search.at_once, search.trials))
        drawn = [_ask(search, select, runs[:start], ended, number) for number in numbers]
        batch = [
            planned(merged(values, chosen), cell, search.seeds[0], "search", chosen, number)
            for number, chosen in zip(numbers, drawn, strict=True)
        ]
        runs += batch
        found = [outcomes(run.id) for run in batch]
        if any(outcome is None for outcome in found):
            return runs, search.trials - len(runs)
        ended += [outcome for outcome in found if outcome is not None]
    return runs, 0


def pruner(study: Study, run: PlannedRun, folder: StudyFolder) -> Prune:
    """Whether a trial is worse than the median of those that it was drawn after, at the same step."""
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
        optuna = _optuna()
        quiet = optuna.create_study(
            direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=4)
        )
        _tell(quiet, select, [o for o, _ in before], [outcome for _, outcome in before])
        quiet.enqueue_trial(dict(run.chosen))
        trial = quiet.ask(_distributions(select))
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


def _ask(
    search: SearchConfig, select: Select, runs: Sequence[PlannedRun], ended: Sequence[Outcome], number: int
) -> dict[str, Any]:
    """A trial's settings. A study is planned after each run: what was drawn before is not drawn again."""
    seen = [
        (o.status, o.validation, o.facts.get("evaluations"), dict(r.chosen))
        for r, o in zip(runs, ended, strict=True)
    ]
    key = repr((search, dict(select), seen, number))
    if key not in _DRAWN:
        optuna = _optuna()
        sampler = optuna.samplers.TPESampler(seed=search.seed * 1_000_003 + number, n_startup_trials=5)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        _tell(study, select, runs, ended)
        _DRAWN[key] = dict(study.ask(_distributions(select)).params)
    return dict(_DRAWN[key])


_DRAWN: dict[str, dict[str, Any]] = {}  # a function of the key


def _tell(study: optuna.Study, select: Select, runs: Sequence[PlannedRun], ended: Sequence[Outcome]) -> None:
    optuna = _optuna()
    states = {"finished": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    for run, outcome in zip(runs, ended, strict=True):
        state = states.get(outcome.status, optuna.trial.TrialState.FAIL)
        value = outcome.validation
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=dict(run.chosen),
                distributions=_distributions(select),
                value=value if state != optuna.trial.TrialState.FAIL else None,
                intermediate_values={e["step"]: e["value"] for e in outcome.facts.get("evaluations", [])},
            )
        )


def _distributions(select: Select) -> dict[str, Any]:
    distributions = _optuna().distributions
    found: dict[str, Any] = {}
    for key, choices in select.items():
        if not isinstance(choices, Range):
            found[key] = distributions.CategoricalDistribution(list(choices))
        elif isinstance(choices.low, int) and isinstance(choices.high, int):
            found[key] = distributions.IntDistribution(choices.low, choices.high, log=choices.log)
        else:
            found[key] = distributions.FloatDistribution(choices.low, choices.high, log=choices.log)
    return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "search: {by: optuna} needs the package optuna: pip install 'softprompt[search]', or use by: grid"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
