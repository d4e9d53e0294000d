"""How the windows of a step are split over ranks and micro-steps."""

from dataclasses import dataclass

from train.config import Config

_WINDOWS_WELL_DIVIDED = 16  # of each rank, in proposals: micro-batches of 1 to 16 divide them


@dataclass(frozen=True)
class BatchPlan:
    """How a step's windows are split: micro-batch `i` of the step goes to rank `i % world_size`.

    With `blocks`, each rank has micro-batches that follow one another instead.
    """

    context_length: int
    windows: int
    """Windows of one step, over all ranks."""
    micro_batch: int
    """Windows of one forward pass on one rank."""
    world_size: int
    blocks: bool = False
    """Whether the first micro-batches of a step are rank 0's, the next ones rank 1's, and so on."""

    @property
    def grad_accum_steps(self) -> int:
        """Micro-steps of each rank in one optimizer step."""
        return self.windows // (self.micro_batch * self.world_size)

    @property
    def tokens(self) -> int:
        """Target tokens of one optimizer step over all ranks."""
        return self.windows * self.context_length

    def windows_of(self, rank: int) -> list[range]:
        """This rank's windows, one range for each micro-step, counted from the step's first."""
        starts = range(rank * self.micro_batch, self.windows, self.world_size * self.micro_batch)
        if self.blocks:
            share = self.windows // self.world_size
            starts = range(rank * share, (rank + 1) * share, self.micro_batch)
        return [range(start, start + self.micro_batch) for start in starts]

    def rank_of(self, window: int) -> int:
        """The rank that takes a window, counted from the step's first."""
        if self.blocks:
            return window // (self.windows // self.world_size)
        return window // self.micro_batch % self.world_size


def share_of(config: Config, world_size: int) -> int:
    """Windows of one step on one rank.

    Raises: ValueError proposing values that divide, if `batch_tokens` does not.
    """
    T = config.network.context_length
    unit = T * world_size
    if config.reduction == "tree" and world_size not in _powers_up_to(world_size):
        raise ValueError(
            f"--reduction tree needs a power of two of processes, not {world_size}; start "
            f"{_nearest(world_size, 2 * world_size)}, or give --reduction ddp"
        )
    if config.batch_tokens % unit:
        well_divided = min(_WINDOWS_WELL_DIVIDED, largest_power_of_two(config.batch_tokens // unit))
        raise ValueError(
            f"batch_tokens={config.batch_tokens} is not a multiple of {T} x {world_size} "
            f"(context_length x world_size) = {unit}; "
            f"{_other_batches(config.batch_tokens, unit * well_divided)}"
        )
    return config.batch_tokens // unit


def plan_batch(config: Config, world_size: int, micro_batch: int) -> BatchPlan:
    """Split `batch_tokens` over ranks and micro-steps.

    Raises: ValueError proposing values that divide, if these do not.
    """
    T = config.network.context_length
    if config.reduction == "tree":
        _check_tree(config, world_size, micro_batch)
    unit = micro_batch * T * world_size
    if config.batch_tokens % unit:
        some = config.batch_tokens % (T * world_size) == 0
        raise ValueError(
            f"batch_tokens={config.batch_tokens} is not a multiple of {micro_batch} x {T} x "
            f"{world_size} (micro_batch x context_length x world_size) = {unit}; "
            f"{_other_batches(config.batch_tokens, unit)}"
            f"{', or --micro-batch auto' if some else ''}"
        )
    blocks = config.reduction == "tree"
    return BatchPlan(T, config.batch_tokens // T, micro_batch, world_size, blocks)


def _check_tree(config: Config, world_size: int, micro_batch: int) -> None:
    """Raises: ValueError if the ranks cannot each take a subtree of a step's micro-batches."""
    windows = config.batch_tokens // config.network.context_length
    micro_batches, rest = divmod(windows, micro_batch)
    most = micro_batches & -micro_batches  # the largest power of two that divides
    if rest or world_size in _powers_up_to(most):  # a rest is an error of its own
        return
    share, rest = divmod(windows, world_size)
    smaller = min(largest_power_of_two(micro_batch), share & -share)
    fits = rest == 0 and world_size in _powers_up_to(world_size)
    raise ValueError(
        f"--reduction tree cannot split the {micro_batches} micro-batches of a step over "
        f"{world_size} processes: their number must be a power of two that divides; start "
        f"{_nearest(world_size, most)}, {f'give --micro-batch {smaller}, ' if fits else ''}"
        "or give --reduction ddp"
    )


def _powers_up_to(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length())]


def _nearest(world_size: int, most: int) -> str:
    """The powers of two up to `most` on either side, as advice."""
    powers = _powers_up_to(most)
    near = [n for n in powers if n < world_size][-1:] + [n for n in powers if n > world_size][:1]
    return " or ".join(map(str, near))


def _other_batches(batch_tokens: int, unit: int) -> str:
    """The multiples of `unit` on either side, as advice."""
    below = batch_tokens // unit * unit
    return f"try --batch-tokens {' or '.join(str(n) for n in (below, below + unit) if n)}"


def largest_power_of_two(number: int) -> int:
    """The largest power of two up to `number`, at least 1."""
    return 1 << max(number.bit_length() - 1, 0)
