"""What an optimizer's update takes, from the shape of the network: memory and FLOPs.

The settings of an optimizer name its cost (train/optimizers/config.py); the trainer and
model/cost.py count with it. Letters: n matrices of one shape, R rows, C columns.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from model.config import GPTConfig
from model.estimates.parameters import (
    block_matrix_elements,
    block_matrix_shapes,
    count_parameters,
)

_FLOAT = 4  # momentum and moments are float32
MUON_ITERATIONS = 5  # of train/optimizers/muon.py; a test compares them


@dataclass(frozen=True)
class UpdateCost:
    """What the update of one step takes on one rank."""

    state_bytes: int
    """What the optimizer keeps between updates; checkpoints contain it."""
    scratch_bytes: int = 0
    """Tensors that exist only during the update, at their largest moment."""
    flops: int = 0
    """FLOPs of its matrix products."""


def adamw_update(config: GPTConfig, device: str = "cuda") -> UpdateCost:
    """AdamW: two float32 moments for each parameter; the fused kernel needs nothing else."""
    return UpdateCost(2 * _FLOAT * count_parameters(config).total)


def muon_update(config: GPTConfig, device: str = "cuda") -> UpdateCost:
    """Muon: one float32 for each element of a block's matrix, two for each other parameter.

    It orthogonalises all matrices of one shape together.
    """
    matrices = config.n_layer * block_matrix_elements(config)
    others = count_parameters(config).total - matrices
    shapes = Counter(block_matrix_shapes(config))
    return UpdateCost(
        state_bytes=_FLOAT * (matrices + 2 * others),
        scratch_bytes=max(
            _orthogonal_bytes(config.n_layer * count, *shape, device)
            for shape, count in shapes.items()
        ),
        flops=sum(
            config.n_layer * count * orthogonal_flops(*shape) for shape, count in shapes.items()
        ),
    )


def sgd_update(config: GPTConfig, device: str = "cuda", momentum: bool = False) -> UpdateCost:
    """SGD: nothing, or one float32 for each parameter with a momentum."""
    return UpdateCost(_FLOAT * count_parameters(config).total if momentum else 0)


def orthogonal_flops(rows: int, columns: int) -> int:
    """FLOPs of making one matrix orthogonal: each iteration has three products."""
    m, k = sorted((rows, columns))
    return MUON_ITERATIONS * (2 * m * m * k + 2 * m**3 + 2 * m * m * k)


def _orthogonal_bytes(n: int, rows: int, columns: int, device: str) -> int:
    """Bytes while n matrices are made orthogonal, at the largest moment.

    float32: X before and after an iteration and X times its transpose. On CUDA these are bfloat16,
    and the float32 matrices before and after their division are more.
    """
    elements, square = n * rows * columns, n * min(rows, columns) ** 2
    return _FLOAT * (2 * elements + (0 if device == "cuda" else square))


# By the names of train/optimizers/registry.py, which model/ may not import.
UPDATES: dict[str, Callable[[GPTConfig], UpdateCost]] = {
    "adamw": adamw_update,
    "muon": muon_update,
    "sgd": sgd_update,
}
