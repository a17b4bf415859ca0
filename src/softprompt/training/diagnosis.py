"""Messages that say what went wrong in a run, and what to try."""

from __future__ import annotations

from softprompt.errors import TrainingDiverged
from softprompt.training.checkpoint import RunState


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
