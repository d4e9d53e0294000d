"""With which settings steps are repeated on another device."""

from tests.runs import GOLDEN
from train.auditing.recorded_run import read_recorded_run
from train.auditing.reexecution import config_here

RUN = read_recorded_run(GOLDEN.parent / "format_5" / "run")


def formats(made, device="cpu"):
    """The number formats of the repeated steps, and of those that measure rounding."""
    stretch = RUN.stretch_at(0)._replace(made=made)
    return [config_here(stretch, device, otherwise).dtype for otherwise in (False, True)]


def test_the_number_format_is_that_which_the_run_had():
    assert formats({"dtype": "bfloat16", "device": "cpu"}) == ["bfloat16"] * 2
    assert formats({"dtype": "float32", "device": "cpu"}) == ["float32"] * 2


def test_bfloat16_measures_rounding_where_the_device_is_another():
    assert formats({"dtype": "float32", "device": "cuda"}) == ["float32", "bfloat16"]
