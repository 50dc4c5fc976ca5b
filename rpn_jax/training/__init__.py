"""Training: the step, the loop around it, optimizers, checkpoints and the workdir."""
