"""Trials of optimizers: what is changed in PyTorch's, what may be the cause, and how it is written in optax."""
