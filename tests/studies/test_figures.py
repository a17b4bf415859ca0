"""Which plots a study gets, and that their error bars are spreads over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from softprompt.studies.drawing import Plot
from softprompt.studies.figures import plots
from softprompt.studies.results import read_results
from tests.studies.made_up import ended, made_up


def drawn(plot: Plot) -> Figure:
    assert plot.svg().startswith("<svg")
    return plot.draw("black")


def named(folder: Any) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots(read_results(folder))}


def widths(axes: Any) -> list[list[float]]:
    """Of each curve its error bars' lengths."""
    return [
        [
            round(float(max(abs(end[1] - start[1]), abs(end[0] - start[0]))), 6)
            for start, end in bars.lines[2][0].get_segments()
        ]
        for bars in axes.containers
    ]


def test_an_error_bar_is_the_spread_over_seeds_and_not_that_between_tasks(tmp_path: Path) -> None:
    level = {"easy": 0.9, "hard": 0.3}

    def facts(run: Any) -> Any:
        return ended(run, level[run.cell["data"]] + 0.02 * run.seed)

    axes = {
        "method": {"prompts": {}},
        "data": {name: {"data.train": f"{name}.csv"} for name in level},
        "method.length": [1, 10],
    }
    plot = named(made_up(tmp_path, facts, axes=axes, seeds=[0, 1, 2]))["by-method-length"]
    panels = drawn(plot).axes
    assert [panel.get_title() for panel in panels] == ["easy", "hard"]
    assert [widths(panel) for panel in panels] == [
        [[0.04, 0.04]]
    ] * 2  # twice 0.02, not the 0.6 between the tasks
    assert "easy, prompts: 1: 0.920, 10: 0.920; hard, prompts: 1: 0.320" in plot.alternative


def test_backbones_stand_where_their_size_is(tmp_path: Path) -> None:
    sizes = {"large": 10**8, "small": 10**6}

    def facts(run: Any) -> Any:
        return ended(run, 0.5, backbone_parameters=sizes[run.cell["backbone"]])

    axes = {"method": {"prompts": {}}, "backbone": list(sizes)}
    folder = made_up(tmp_path, facts, axes=axes)
    plot = named(folder)["by-backbone"]
    [panel] = drawn(plot).axes
    assert panel.get_xlabel() == "parameters of the backbone"
    assert panel.get_xscale() == "log"
    assert sorted(panel.lines[0].get_xdata()) == [10**6, 10**8]


@pytest.mark.slow
def test_no_condition_is_left_out_of_the_curves(tmp_path: Path) -> None:
    axes = {"method": {"prompts": {}}, "recipe.weight_decay": [i / 100 for i in range(11)]}
    plot = named(made_up(tmp_path, lambda run: ended(run, 0.5), axes=axes))["learning-curves"]
    figure = drawn(plot)
    assert sum(bool(panel.lines) for panel in figure.axes) == 11
    assert plot.alternative.count("ends at 0.500") == 11


def test_every_data_set_has_its_panel(tmp_path: Path) -> None:
    axes = {"method": {"prompts": {}}, "method.length": [1, 10]}
    folder = made_up(
        tmp_path,
        lambda run: ended(run, 0.5),
        axes=axes,
        protocol={"name": "domain-shift", "domains": {"hotels": "hotels.csv"}},
    )
    panels = drawn(named(folder)["by-method-length"]).axes
    assert [panel.get_title() for panel in panels] == ["test", "hotels"]


def test_memory_is_what_a_run_added_to_what_stood_before_it(tmp_path: Path) -> None:
    axes = {"method": {"first": {}, "second": {"method.length": 3}}}

    def facts(run: Any) -> Any:
        left_over = 500 if run.cell["method"] == "second" else 0
        need = 50 if run.cell["method"] == "second" else 100
        peak = {"host": (200 + left_over + need) * 2**20, "host_before": (200 + left_over) * 2**20}
        return ended(run, 0.5, peak_memory=peak)

    results = read_results(made_up(tmp_path, facts, axes=axes))
    assert [results.cost(line, "memory") for line in ("first", "second")] == [100, 50]
    plot = next(plot for plot in plots(results) if plot.name == "score-by-peak-memory")
    assert "On the Pareto front: second." in plot.alternative


def test_accuracy_falls_with_the_tasks_that_came(tmp_path: Path) -> None:
    def facts(run: Any) -> Any:
        metrics = {"accuracy": 0.5, "accuracy_matrix": [[1.0], [0.4, 0.8]]}
        return ended(run, 0.5, metrics={"test": metrics}, evaluations=[])

    found = named(made_up(tmp_path, facts))
    assert "learning-curves" not in found
    [panel] = drawn(found["after-each-task"]).axes
    assert [list(panel.lines[0].get_xdata()), list(panel.lines[0].get_ydata())] == [
        [1, 2],
        [1.0, 0.6000000000000001],
    ]
