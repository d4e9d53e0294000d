"""Tests of bench/scaling.py and of the arithmetic in bench/scaling_model.py."""

import itertools
from dataclasses import replace

import pytest

from bench.scaling import LARGE, MIDDLE, SMALL, fit_and_predict
from bench.scaling_model import (
    NETWORKS,
    NVLINK,
    Link,
    Workload,
    all_reduce_seconds,
    efficiency,
    halving_seconds,
    ring_seconds,
    step_seconds,
    tree_step_seconds,
)

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


def test_halving_and_doubling_moves_the_bytes_of_a_ring_in_fewer_messages():
    link = Link(100.0, 0.5)
    assert halving_seconds(1000.0, 8, link) == pytest.approx(2 * 7 / 8 * 10 + 2 * 3 * 0.5)
    assert halving_seconds(1000.0, 2, link) == ring_seconds(1000.0, 2, link)
    assert halving_seconds(1000.0, 1, link) == 0


def test_a_tree_costs_more_than_overlapped_buckets_and_on_one_gpu_only_its_sums():
    alone, eight = (tree_step_seconds(WORK, n, 8, NVLINK, NETWORK) for n in (1, 8))
    assert alone == pytest.approx(WORK.step_seconds + 3 * 3 * 4 * 124e6 / 2.7e12)
    assert seconds(8, overlap=True) < eight < 1.05 * seconds(8, overlap=True)


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


def test_the_last_bucket_is_never_hidden():
    slow_compute = replace(WORK, step_seconds=1000.0)
    compute = (1000.0 - WORK.update_seconds) / 8 + WORK.update_seconds
    exposed = seconds(8, overlap=True, work=slow_compute) - compute
    last = ring_seconds(4 * WORK.last_bucket_elements, 8, NVLINK)
    assert exposed == pytest.approx(last, rel=0.05)


def test_the_check_finds_the_link_that_made_its_times():
    link = Link(2e9, 1e-4)
    took = {str(n): ring_seconds(4 * n, 4, link) for n in (SMALL, MIDDLE, LARGE)}
    took |= {"compute": 0.02, "step": 0.02 + took[str(MIDDLE)]}
    found = fit_and_predict(took, 4)
    assert found["ratio"] == found["exchange_ratio"] == pytest.approx(1.0)
    assert found["link"]["bytes_per_second"] == pytest.approx(2e9)
    assert found["link"]["latency"] == pytest.approx(1e-4)
