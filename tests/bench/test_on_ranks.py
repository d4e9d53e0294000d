"""Tests of bench/on_ranks.py: ranks that a benchmark starts."""

import pytest

from bench.on_ranks import run_on_ranks

SCRIPT = """
import os, sys, time
if os.environ["RANK"] == "1":
    sys.exit("no room for " + os.environ["COLOUR"] + " " + sys.argv[1])
time.sleep(60)
"""


def test_a_rank_that_fails_ends_the_others_and_is_quoted(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with pytest.raises(ValueError, match=r"(?s)chairs failed: .*no room for green chairs"):
        run_on_ranks(str(script), ["chairs"], 2, {"COLOUR": "green"})
