"""Settings drawn by Optuna. Only the results of the runs are stored.

Trial k is a function of the search's seed, k, and the results of the trials before it: the sampler is made anew for each. A
study that was killed therefore draws what it would have drawn, and so does another process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softprompt.records.run_folders import Outcome
from softprompt.studies.config import Range, SearchConfig, Select
from softprompt.studies.merging import merged
from softprompt.studies.runs import Outcomes, PlannedRun, planned

if TYPE_CHECKING:
    import optuna


def trials(
    search: SearchConfig,
    values: Mapping[str, Any],
    cell: Mapping[str, str],
    select: Select,
    outcomes: Outcomes,
) -> tuple[list[PlannedRun], int]:
    """The trials that can be drawn now, and how many will follow."""
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
        optuna = load_optuna()
        sampler = optuna.samplers.TPESampler(seed=search.seed * 1_000_003 + number, n_startup_trials=5)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        tell(study, select, runs, ended)
        _DRAWN[key] = dict(study.ask(distributions(select)).params)
    return dict(_DRAWN[key])


_DRAWN: dict[str, dict[str, Any]] = {}  # a function of the key


def tell(study: optuna.Study, select: Select, runs: Sequence[PlannedRun], ended: Sequence[Outcome]) -> None:
    """Tell an Optuna study about the trials that have ended."""
    optuna = load_optuna()
    states = {"finished": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    for run, outcome in zip(runs, ended, strict=True):
        state = states.get(outcome.status, optuna.trial.TrialState.FAIL)
        value = outcome.validation
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=dict(run.chosen),
                distributions=distributions(select),
                value=value if state != optuna.trial.TrialState.FAIL else None,
                intermediate_values={e["step"]: e["value"] for e in outcome.facts.get("evaluations", [])},
            )
        )


def distributions(select: Select) -> dict[str, Any]:
    """The distribution that Optuna draws from."""
    kinds = load_optuna().distributions
    found: dict[str, Any] = {}
    for key, choices in select.items():
        if not isinstance(choices, Range):
            found[key] = kinds.CategoricalDistribution(list(choices))
        elif isinstance(choices.low, int) and isinstance(choices.high, int):
            found[key] = kinds.IntDistribution(choices.low, choices.high, log=choices.log)
        else:
            found[key] = kinds.FloatDistribution(choices.low, choices.high, log=choices.log)
    return found


def load_optuna() -> Any:
    """The package optuna. Raises ValueError, which says how to install it, if it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "search: {by: optuna} needs the package optuna: pip install 'softprompt[search]', or use by: grid"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
