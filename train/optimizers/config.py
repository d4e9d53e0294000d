"""What the configuration of every optimizer has."""


class OptimizerConfig:
    """Base of the frozen dataclasses that configure an optimizer, one for each.

    Every field has a default. The command line shows the fields of the preset's optimizer, or of
    the one that `--optimizer NAME` chooses, as `--optimizer.FIELD`.
    """

    lr: float
    """Largest learning rate, reached at the end of the warm-up."""
    clip: float | None
    """Scale the gradient down to this norm if it is larger. None disables clipping."""
