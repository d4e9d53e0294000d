"""What the configuration of every optimizer has."""

from typing import Self

from model.config import GPTConfig
from model.estimates.updates import UpdateCost, adamw_update

# Times a learning rate of 6e-4 that takes 6 % of every weight in each step.
_LARGEST_DECAY = 100.0


class OptimizerConfig:
    """Base of the frozen dataclasses that configure an optimizer, one for each.

    Every field has a default. The command line shows the fields of the preset's optimizer, or of
    the one that `--optimizer NAME` chooses, as `--optimizer.FIELD`.
    """

    lr: float
    """Largest learning rate, reached at the end of the warm-up."""
    clip: float | None
    """Scale the gradient down to this norm if it is larger. None disables clipping."""

    @classmethod
    def defaults_for(cls, network: GPTConfig) -> Self:
        """The defaults for a network, if it was chosen by `--optimizer NAME`."""
        return cls()

    def update_cost(self, network: GPTConfig, device: str) -> UpdateCost:
        """What the optimizer keeps, and what its update takes on `device` (cuda or cpu).

        Default: two float32 moments for each parameter, and nothing else.
        """
        return adamw_update(network, device)


def check_rates(
    config: OptimizerConfig,
    positive: tuple[str, ...],
    shares: tuple[str, ...],
    not_negative: tuple[str, ...],
) -> None:
    """Check the named fields: positive and finite, from 0 to below 1, or finite and 0 or more.

    Raises: ValueError naming the first field that is none, or a `clip` that is not positive.
    """
    infinite = float("inf")
    for name in positive:
        value = getattr(config, name)
        if not 0 < value < infinite:
            what = "a learning rate" if name.endswith("lr") else "positive"
            default = getattr(type(config), name)
            raise ValueError(
                f"optimizer.{name}={value} is not {what}; use a positive number like {default:g}"
            )
    for name in shares:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ValueError(f"optimizer.{name}={value} is out of range; use 0 <= {name} < 1")
    for name in not_negative:
        value, most = getattr(config, name), _LARGEST_DECAY if name.endswith("decay") else infinite
        if not 0 <= value < infinite:
            raise ValueError(f"optimizer.{name}={value} is out of range; use 0 or more")
        if value > most:
            raise ValueError(f"optimizer.{name}={value} is out of range; use at most {most:g}")
    if config.clip is not None and not 0 < config.clip < infinite:
        raise ValueError(
            f"optimizer.clip={config.clip} is not positive; use None to disable clipping"
        )
