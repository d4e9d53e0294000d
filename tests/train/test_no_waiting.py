"""A step compiles once and reads nothing back: no host waits for the GPU, seen on the CPU."""

import json

import pytest
import torch

from tests.host_reads import HostReads
from tests.launching import together
from tests.programs.counted_run import STEPS
from tests.runs import nano_config

# Ranks, recipe, and settings that differ from its own.
CASES = {
    "one rank, recomputed": (1, "gpt2", {"dtype": "bfloat16", "recompute": "blocks"}),
    "two ranks, modern": (2, "modern", {}),
    "two ranks, tree": (2, "gpt2", {"reduction": "tree", "compile": "max"}),
}


@pytest.fixture(scope="module", params=CASES)
def counted(request, tmp_path_factory):
    """Pieces of the graph, and what a whole run counted (tests/programs/counted_run.py)."""
    folder = tmp_path_factory.mktemp("counted")
    nano_config(folder)  # copies the data set
    ranks, recipe, changes = CASES[request.param]
    words = ("tests/programs/counted_run.py", str(folder), recipe, json.dumps(changes))
    done = together(ranks, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    cut = ranks == 2 and "reduction" not in changes  # where the two buckets of DDP end
    return 2 if cut else 1, json.loads((folder / "counts.json").read_text())


def test_a_run_compiles_once_and_once_more_when_its_micro_batch_is_halved(counted):
    pieces, found = counted
    assert found["breaks"] == {}
    assert found["graphs"] == [pieces] * STEPS + [2 * pieces] * 2


def test_a_step_reads_no_value_on_the_host(counted):
    assert counted[1]["reads"] == []


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "mask": lambda x: x[x > 0],
    "put by a mask": lambda x: x.index_put_((x > 0,), torch.tensor(1.0)),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": torch.nonzero,
}


@pytest.mark.parametrize("name", READS)
def test_a_planted_read_is_found(name):
    with HostReads() as reads:
        READS[name](torch.ones(4))
    assert len(reads.found) == 1


def test_what_only_computes_is_no_read():
    with HostReads() as reads:
        x = torch.where(torch.ones(4) > 0, 1.0, 2.0)[torch.tensor([0, 2])]
        x[0] = 3.0
    assert reads.found == []
    assert reads.operations > 3
