"""A rank that never arrives is named, in bounded time."""

import re

from parallel.meeting import dump_flight_record, meet
from tests.launching import together
from tests.runs import alone

LATE = """
import time
from parallel.meeting import meet
from parallel.ranks import start, stop, user_errors
with user_errors():
    me = start("cpu")
    meet(me)
    if me.rank == 1:
        time.sleep(2)
    meet(me, seconds=1)
"""


def test_a_rank_that_does_not_arrive_is_named_on_rank_0(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = together(2, str(script))
    assert done.returncode != 0
    said = r"error: not all 2 ranks came to the start within 1 s \(.*1 failed to pass"
    assert re.search(said, done.stderr), done.stderr


def test_one_rank_alone_waits_for_nobody_and_has_no_flight_record(tmp_path):
    meet(alone(), seconds=0)
    assert not dump_flight_record(tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()
