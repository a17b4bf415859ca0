"""The training loop: the same for every method, backbone and task, on one process or many, for one run or several.

It knows trained tensors, a model that scores rows and a loss for each row, nothing else. `train_together` is the loop;
`OngoingRun` (ongoing.py) does what each run does by itself, `take_steps` (steps.py) is forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from softprompt.concerns import warn_of
from softprompt.errors import TrainingDiverged
from softprompt.surroundings import Turns
from softprompt.training.ongoing import OngoingRun, begin_accelerator
from softprompt.training.parallel import RowLoss, Scorer
from softprompt.training.randomness import Streams
from softprompt.training.run import Run, TrainingResult
from softprompt.training.steps import take_steps


def train(model: Scorer, encoder: RowLoss, run: Run) -> TrainingResult:
    """Train the run's parameters in place and leave the best tensors in them.

    The rows of a step, its learning rate and its randomness depend on nothing but recipe and step: a run that
    was killed and resumed on the same machine, with as many threads, ends bit-identical to one that was not, as
    far as the device's kernels are deterministic. Each process of `accelerate launch` or torchrun calls it and
    takes its share of every batch.

    model    scores rows with the current parameters
    encoder  gives the loss of each row
    run      what is trained, on which rows and how

    Raises ValueError for arguments that do not fit together, TrainingDiverged when loss or gradient is not
    finite (the best tensors, else those before the step, are in the parameters), CheckpointError for a
    checkpoint that cannot be written or is of another run. On KeyboardInterrupt a checkpoint is written and
    the interrupt is raised again. Warns with SoftpromptWarning when nothing was learned.
    """
    [outcome] = train_together(model, encoder, [run])
    if isinstance(outcome, TrainingDiverged):
        raise outcome
    if outcome.concern is not None:
        warn_of([outcome.concern])
    return outcome


def train_together(
    model: Scorer, encoder: RowLoss, runs: Sequence[Run], streams: Streams | None = None
) -> list[TrainingResult | TrainingDiverged]:
    """Train several runs, each as `train` trains it alone; their steps share one pass, nothing else.

    model    scores the rows of all runs, run by run, each row with the parameters of its own run
    encoder  gives the loss of each row
    streams  where the model draws its random numbers, if it draws any

    Returns the result of each run; for a run that diverged, the error that `train` would raise. Such a run drops
    out, as does one that ended, and the others continue.
    Raises whatever else `train` raises, if it happens to any of them. On KeyboardInterrupt all checkpoints are written.
    """
    for run in runs:
        run.check()
    device = next(iter(runs[0].parameters.values())).device
    streams = streams or Streams(device)
    ongoing = [OngoingRun(number, run, begin_accelerator(run)) for number, run in enumerate(runs)]
    # Each step seeds torch's own generators: trainings in other threads wait for their turn, and the caller finds them as
    # they were.
    turns = Turns(device)
    try:
        with turns.take():
            for each in ongoing:
                each.begin()
            for each in ongoing:  # a run may have been interrupted in an evaluation, or just before its end
                _conclude_step(each)
        while active := [each for each in ongoing if each.outcome is None]:
            with turns.take():
                steps = {each.number: each.next_step() for each in active}
                taken = take_steps(model, encoder, steps, streams, active[0].accelerator)
                for each in active:
                    each.apply(taken[each.number])
                    if each.outcome is None:  # else it diverged
                        _conclude_step(each)
    except KeyboardInterrupt as interrupt:
        for each in ongoing:
            with suppress(KeyboardInterrupt):
                each.save_interrupted(interrupt)
        raise
    finally:
        for each in ongoing:
            each.end()
    return [each.outcome for each in ongoing if each.outcome is not None]


def _conclude_step(run: OngoingRun) -> None:
    run.evaluate_if_due()
    run.checkpoint_if_due()
    run.finish_if_over()
