"""Metrics of a model that learns one task after the other, from its matrix of accuracies.

a[t][i] is the accuracy on task i after task t was learned; T tasks, row t has the entries of tasks 0 to t. Accuracies may
be shares or percent: every number below is in their unit. Two papers' "average accuracy" are two different numbers, so
each has its own name here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

Matrix = Sequence[Sequence[float]]


def final_average(matrix: Matrix) -> float:
    """A_T, mean over tasks of a[T][i]: what L2P (arXiv 2112.08654) calls average accuracy. Each task counts alike."""
    return fmean(_checked(matrix)[-1])


def incremental_average(matrix: Matrix, rows: Sequence[int] | None = None) -> float:
    """Mean over stages of the accuracy on all classes seen so far: what PILOT and iCaRL call average accuracy.

    rows: test rows of each task, by which its accuracy weighs within a stage; None: all tasks alike.
    """
    return fmean(stage_accuracies(matrix, rows))


def stage_accuracies(matrix: Matrix, rows: Sequence[int] | None = None) -> list[float]:
    """The accuracy of each stage over the test rows of all tasks seen so far: the curve behind `incremental_average`.

    Its last point is `final_average` where all tasks have as many test rows.
    Raises ValueError unless there is one positive number of rows for each task.
    """
    weights = list(rows) if rows is not None else [1] * len(matrix)
    if len(weights) != len(matrix) or any(weight < 1 for weight in weights):
        raise ValueError(f"rows are {weights} for {len(matrix)} tasks: each needs one number above zero")
    return [fmean(row, weights[: len(row)]) for row in _checked(matrix)]


def forgetting(matrix: Matrix) -> float:
    """Mean over all tasks but the last of (max over t of a[t][i]) - a[T][i]; it is never negative.

    The most is taken over all stages, the last among them, as in L2P's release. Chaudhry et al. (arXiv 1801.10112) leave
    the last one out, so that theirs is negative for a task that went on getting better.
    Raises ValueError for a single task.
    """
    matrix = _several(matrix)
    best = [max(row[i] for row in matrix[i:]) for i in range(len(matrix) - 1)]
    return fmean(top - last for top, last in zip(best, matrix[-1][:-1], strict=True))


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all tasks but the last of a[T][i] - a[i][i] (Lopez-Paz, Ranzato, arXiv 1706.08840); negative if it forgets.

    Raises ValueError for a single task.
    """
    matrix = _several(matrix)
    return fmean(matrix[-1][i] - matrix[i][i] for i in range(len(matrix) - 1))


def learning_accuracy(matrix: Matrix) -> float:
    """Mean of a[i][i]: the accuracy on each task right after it was learned."""
    return fmean(row[-1] for row in _checked(matrix))


def _checked(matrix: Matrix) -> Matrix:
    if not matrix or len(matrix[0]) != 1 or any(len(b) != len(a) + 1 for a, b in pairwise(matrix)):
        raise ValueError(
            f"the rows of the matrix have {[len(row) for row in matrix]} entries, expected 1, 2, 3 ...: row t holds the "
            "accuracy on each of the tasks 0 to t after task t"
        )
    return matrix


def _several(matrix: Matrix) -> Matrix:
    if len(_checked(matrix)) < 2:
        raise ValueError("there is only one task, so nothing could be forgotten")
    return matrix
