"""Disk space and money of a run.

The time that the money follows from is an estimate (model/estimates/prediction.py).
"""

from dataclasses import dataclass

from model.config import GPTConfig
from model.estimates.parameters import count_parameters
from model.estimates.updates import UpdateCost
from storage.byte_pairs import token_dtype

_WEIGHT = 4  # bytes: checkpoints hold the weights in float32
# FineWeb-Edu's sample-10BT has parquet files of about 2.15 GB, 29 GB for 9.95 billion tokens. The
# one that is read and two ahead of it are on the disk (data_prep/hub/supply.py).
# https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu
_SOURCE_FILES, _SOURCE_TOKEN = 3 * 2_150_000_000, 3


@dataclass(frozen=True)
class _DiskBudget:
    """Bytes on the disk at their most, for one run and its data set."""

    checkpoint: int
    """One checkpoint: weights and the optimizer's state, in float32."""
    checkpoints: int
    """All that are kept, and one more that is being written."""
    data: int
    """Token shards. Lengths and origins of the documents add about a hundredth."""
    source: int
    """Files of FineWeb-Edu while they are tokenized; they are deleted afterwards."""

    @property
    def total(self) -> int:
        """The data set beside the larger of source and checkpoints, which are not there at once."""
        return self.data + max(self.checkpoints, self.source)


def checkpoint_bytes(network: GPTConfig, update: UpdateCost) -> int:
    """Bytes of one checkpoint, without its small files."""
    return _WEIGHT * count_parameters(network).total + update.state_bytes


def disk_budget(
    network: GPTConfig, update: UpdateCost, kept_checkpoints: int, tokens: int
) -> _DiskBudget:
    """The disk space of a run that keeps this number of checkpoints and reads each token once."""
    each = checkpoint_bytes(network, update)
    source = min(_SOURCE_FILES, _SOURCE_TOKEN * tokens)
    shards = token_dtype(network.vocab_size).itemsize * tokens
    return _DiskBudget(each, (kept_checkpoints + 1) * each, shards, source)
