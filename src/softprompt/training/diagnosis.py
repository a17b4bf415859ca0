"""What went wrong in a run, in words that help."""

from __future__ import annotations

from softprompt.errors import TrainingDiverged
from softprompt.training.checkpoint import RunState


def diverged(state: RunState, loss: float, norm: float, lr: float) -> TrainingDiverged:
    """The error for the step after `state`, to be raised once its best tensors are restored."""
    step = state.step + 1
    kept = "before this step" if state.best_step is None else f"of step {state.best_step}, the best so far"
    return TrainingDiverged(
        f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
        f"{lr:.3g}. The tensors {kept}, are back in place. Try a learning_rate of {lr / 10:.2g}, a longer "
        "warmup, or a smaller clip_norm; at the first step, look for overflow in the backbone's precision",
        step=step,
        lr=lr,
    )
