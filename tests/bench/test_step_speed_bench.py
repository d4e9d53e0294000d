"""The scaling model's arithmetic, and what the speed benchmark feeds its peer."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.loss_curves import LAST, PLAIN, YARDSTICK
from bench.loss_curves import judged as judged_curves
from bench.nanogpt_step import read_model_file, write_tokens
from bench.peer_process import PeerProcess
from bench.scaling import LARGE, MIDDLE, SMALL, judged
from bench.scaling_model import (
    NETWORKS,
    NVLINK,
    Link,
    Workload,
    all_reduce_seconds,
    efficiency,
    ring_seconds,
    step_seconds,
)
from tests.data_sets import tiny_data_set

WORK = Workload(1.0, 8, 124_000_000, 38_000_000, 0.003)
NETWORK = NETWORKS["400 Gb/s"]


def seconds(gpus, overlap=False, compressed=False, work=WORK):
    return step_seconds(work, gpus, 8, NVLINK, NETWORK, overlap, compressed)


def test_one_gpu_takes_what_was_measured():
    for overlap, compressed in itertools.product((False, True), repeat=2):
        assert seconds(1, overlap, compressed) == pytest.approx(WORK.step_seconds)


def test_a_ring_moves_the_gradient_nearly_twice():
    link = Link(100.0, 0.5)
    assert ring_seconds(1000.0, 4, link) == pytest.approx(2 * 3 / 4 * 10 + 6 * 0.5)
    assert ring_seconds(1000.0, 1, link) == 0


def test_between_nodes_each_gpu_sends_its_part_only():
    inside, outside = Link(1e12, 0.0), Link(1e9, 0.0)
    took = all_reduce_seconds(8e9, 16, 8, inside, outside)
    assert took == pytest.approx(ring_seconds(8e9, 8, inside) + 1.0)


@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_overlap_and_compression_never_cost_time(gpus):
    assert seconds(gpus, overlap=True) <= seconds(gpus)
    assert seconds(gpus, compressed=True) < seconds(gpus)
    assert seconds(gpus, overlap=True, compressed=True) <= seconds(gpus, overlap=True)


def test_efficiency_falls_with_more_gpus_and_stays_below_one():
    found = [efficiency(1.0, seconds(n, overlap=True), n) for n in (1, 2, 4, 8, 16, 32, 64)]
    assert found[0] == pytest.approx(1.0)
    assert found == sorted(found, reverse=True)


def test_a_bucket_that_is_ready_last_never_hides():
    slow_compute = replace(WORK, step_seconds=1000.0)
    work_beside = (1000.0 - WORK.update_seconds) / 8 + WORK.update_seconds
    exposed = seconds(8, overlap=True, work=slow_compute) - work_beside
    last = ring_seconds(4 * WORK.last_bucket_elements, 8, NVLINK)
    assert exposed == pytest.approx(last, rel=0.05)


def test_the_check_finds_the_link_that_made_its_times():
    link = Link(2e9, 1e-4)
    took = {str(n): ring_seconds(4 * n, 4, link) for n in (SMALL, MIDDLE, LARGE)}
    took |= {"compute": 0.02, "step": 0.02 + took[str(MIDDLE)]}
    found = judged(took, 4)
    assert found["ratio"] == found["exchange_ratio"] == pytest.approx(1.0)
    assert found["link"]["bytes_per_second"] == pytest.approx(2e9)
    assert found["link"]["latency"] == pytest.approx(1e-4)


def test_an_optimisation_passes_only_within_the_yardstick():
    curves = {
        PLAIN: [5.0] * LAST,
        YARDSTICK: [5.01] * LAST,
        "near": [4.995] * LAST,
        "far": [5.02] * LAST,
    }
    verdicts = judged_curves(curves)
    assert {name: found["passes"] for name, found in verdicts.items()} == {
        YARDSTICK: True,
        "near": True,
        "far": False,
    }
    assert verdicts["near"]["shift"] == pytest.approx(-0.005)


def test_the_peer_reads_the_same_tokens_as_we_do(tmp_path):
    data = tiny_data_set(tmp_path / "set", documents=20, shards=2)
    write_tokens(data, tmp_path / "train.bin")
    tokens = np.fromfile(tmp_path / "train.bin", dtype=np.uint16)
    shards = [np.load(data.folder / f"train_{i:06d}.npy") for i in range(2)]
    np.testing.assert_array_equal(tokens, np.concatenate(shards))


def test_a_folder_without_the_peers_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no model.py; give a checkout"):
        read_model_file(tmp_path)


class Counter:
    """Stands for a trainer; its loss is the number of its steps, from `first` on."""

    def __init__(self, first):
        self.steps = first

    def step(self):
        self.steps += 1
        return torch.tensor(self.steps)


def test_a_peer_in_a_process_of_its_own_takes_a_step_each_time_it_is_asked():
    peer = PeerProcess(Counter, 5)
    assert [peer.step().item(), peer.step().item()] == [6, 7]
    peer.close()
    assert peer.exit_code == 0
