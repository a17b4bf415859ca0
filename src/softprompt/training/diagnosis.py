"""Messages that say what went wrong in a run, and what to try."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from softprompt.errors import TrainingDiverged
from softprompt.training.checkpoint import RunState

_SHORTEST_JUDGED_RUN = 20  # steps: in a shorter run a tenth is one batch, too little to judge by


def nothing_learned(losses: Sequence[float], gradient_norms: Sequence[float]) -> str | None:
    """A sentence if every gradient was zero or the training loss did not fall; None: there is no such sign.

    losses, gradient_norms  one per step; the loss is judged by the medians of the first and the last tenth of the steps,
                            and only from 20 steps on
    """
    if gradient_norms and max(gradient_norms) == 0:
        return (
            "every gradient was zero, so nothing was trained: does the loss depend on the trained tensors? "
            "A prompt that starts at zero behind a gate of zero never moves"
        )
    if len(losses) >= _SHORTEST_JUDGED_RUN:
        tenth = len(losses) // 10
        first, last = statistics.median(losses[:tenth]), statistics.median(losses[-tenth:])
        if last >= first:
            return (
                f"the training loss did not fall: its median was {first:.4g} over the first {tenth} steps "
                f"and {last:.4g} over the last {tenth}. Try another learning_rate (ten times more or less), "
                "or more steps"
            )
    return None


def diverged(state: RunState, loss: float, norm: float, lr: float) -> TrainingDiverged:
    """The error for the step after `state`; the caller restores the best tensors before it is raised.

    loss, norm  what the step found, one of them not finite
    lr          learning rate of the first parameter group at that step
    """
    step = state.step + 1
    restored = (
        "before this step" if state.best_step is None else f"of step {state.best_step}, the best so far"
    )
    return TrainingDiverged(
        f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
        f"{lr:.3g}. The tensors {restored}, are back in place. Try a learning_rate of {lr / 10:.2g}, a longer "
        "warmup, or a smaller clip_norm; at the first step, look for overflow in the backbone's precision",
        step=step,
        lr=lr,
    )
