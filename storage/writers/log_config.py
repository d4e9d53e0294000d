"""Settings of what is shown of a run while it trains."""

from dataclasses import dataclass

from storage.option_values import check_at_least


@dataclass(frozen=True)
class LogConfig:
    """The log on the console, and other places that get the metrics."""

    seconds: float = 1.0
    """Shortest time between two lines of steps, ten times that below a progress bar (on a
    terminal). 0: a line for every step."""
    to: tuple[str, ...] = ()
    """Also send metrics and samples to trackio or wandb (Weights & Biases)."""

    def __post_init__(self) -> None:
        check_at_least("log.seconds", self.seconds, 0, 86_400)
