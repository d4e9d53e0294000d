"""The memory plan of each shape on GPUs: a micro-batch that changes must be meant."""

from tests.train.memory.micro_batch_table import RECORDED, table


def test_every_shape_takes_the_recorded_micro_batch_on_gpus_of_80_and_141_gb():
    """After a change that is meant: `.venv/bin/python -m tests.golden.make micro_batches`."""
    assert table().splitlines() == RECORDED.read_text().splitlines()
