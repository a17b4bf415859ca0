"""Metrics of the accuracy matrix, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from softprompt.protocols.accuracy_matrix import (
    backward_transfer,
    final_average,
    forgetting,
    incremental_average,
    learning_accuracy,
    stage_accuracies,
)

MATRIX = [
    [0.9],
    [0.5, 0.8],
    [0.6, 0.2, 1.0],
]


def test_every_metric_of_a_matrix_worked_out_by_hand() -> None:
    assert final_average(MATRIX) == pytest.approx((0.6 + 0.2 + 1.0) / 3)
    # 0.9; (0.5 + 0.8) / 2 = 0.65; 1.8 / 3 = 0.6
    assert stage_accuracies(MATRIX) == pytest.approx([0.9, 0.65, 0.6])
    assert incremental_average(MATRIX) == pytest.approx(2.15 / 3)
    # task 0: 0.9 - 0.6, task 1: 0.8 - 0.2
    assert forgetting(MATRIX) == pytest.approx((0.3 + 0.6) / 2)
    assert backward_transfer(MATRIX) == pytest.approx((-0.3 - 0.6) / 2)
    assert learning_accuracy(MATRIX) == pytest.approx((0.9 + 0.8 + 1.0) / 3)


def test_a_task_that_got_better_later_is_not_forgotten_and_transfers_backward() -> None:
    better = [[0.4], [0.7, 0.5], [0.6, 0.9, 0.3]]
    assert forgetting(better) == pytest.approx((0.7 - 0.6) / 2)  # task 1 is at its best in the end: 0
    assert backward_transfer(better) == pytest.approx(((0.6 - 0.4) + (0.9 - 0.5)) / 2)


def test_large_tasks_weigh_more_in_the_accuracy_on_all_classes_seen_so_far() -> None:
    # 100, 300 and 600 rows: 90 right; 50 + 240 of 400; 60 + 60 + 600 of 1000
    assert stage_accuracies(MATRIX, [100, 300, 600]) == pytest.approx([0.9, 0.725, 0.72])
    assert incremental_average(MATRIX, [100, 300, 600]) == pytest.approx((0.9 + 0.725 + 0.72) / 3)
    assert final_average(MATRIX) == pytest.approx(0.6)
    assert incremental_average(MATRIX, [7, 7, 7]) == pytest.approx(incremental_average(MATRIX))


def test_percent_stay_percent() -> None:
    percent = [[100 * a for a in row] for row in MATRIX]
    assert forgetting(percent) == pytest.approx(100 * forgetting(MATRIX))


def test_a_single_task_has_nothing_to_forget() -> None:
    assert final_average([[0.5]]) == incremental_average([[0.5]]) == learning_accuracy([[0.5]]) == 0.5
    for metric in (forgetting, backward_transfer):
        with pytest.raises(ValueError, match="only one task"):
            metric([[0.5]])


@pytest.mark.parametrize("matrix", [[], [[]], [[0.5, 0.5], [0.5, 0.5]], [[0.5], [0.5]]])
def test_what_is_no_triangle_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"entries, expected 1, 2, 3"):
        final_average(matrix)


@pytest.mark.parametrize("rows", [[1, 2], [1, 2, 0]])
def test_rows_that_are_not_one_number_for_each_task_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="for 3 tasks: each needs one number above zero"):
        stage_accuracies(MATRIX, rows)
