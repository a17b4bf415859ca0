"""Training: the loop, how its steps are taken, checkpoints, progress."""
