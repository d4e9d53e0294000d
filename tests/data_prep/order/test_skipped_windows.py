"""Skipped windows are in no step, also after a resume, and `verify` can prove it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.audit.run_proof import prove_run
from data_prep.audit.run_record import read_run
from data_prep.dataset.shards import open_data_set
from data_prep.order.skipped_windows import after_skips, parse_skips
from data_prep.order.training_data import open_training_data
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.runs import (
    KEEP_ALL,
    built,
    deterministic,
    forget_after,
    lines,
    losses,
    run_to_end,
    tiny_config,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100, tokenizer=small_tokenizer())
    return folder


def first_windows(folder):
    return [line["data/first_window"] for line in lines(folder) if "data/first_window" in line]


RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda r: (r[0], r[0] + r[1])), max_size=5
).map(lambda found: tuple(sorted(found)))


@given(window=st.integers(0, 80), count=st.integers(1, 10), skips=RANGES)
def test_a_step_begins_at_the_first_window_where_it_touches_no_range(window, count, skips):
    def touches_none(start):
        return all(stop <= start or start + count <= first for first, stop in skips)

    expected = next(start for start in range(window, 200) if touches_none(start))
    assert after_skips(window, count, skips) == expected
    assert after_skips(expected, count, skips) == expected


@pytest.mark.parametrize("text", ["5", "a:b", "7:7", "9:3", ":4", "4:", "-1:3", "1:2:3", "²:9"])
def test_what_is_no_range_is_refused_before_anything_is_read(data, tmp_path, text):
    with pytest.raises(ValueError, match="is no range of windows"):
        tiny_config(data, tmp_path / "run", skip_windows=(text,))


def test_ranges_are_sorted():
    assert parse_skips(["30:40", "5:9"]) == ((5, 9), (30, 40))


def test_the_run_jumps_over_the_range_and_its_record_is_proven(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", skip_windows=("20:50", "70:71"))
    run_to_end(config)
    assert first_windows(config.out) == [0, 8, 50, 58, 71, 79, 87, 95]
    record = read_run(config.out)
    assert record.skips == ((20, 50), (70, 71))
    assert prove_run(open_training_data((data,)), record, steps=None, threads=1)


def test_a_jump_that_the_configuration_does_not_explain_is_a_gap(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", skip_windows=("20:50",))
    run_to_end(config)
    record = replace(read_run(config.out), skips=())
    assert not prove_run(open_training_data((data,)), record, steps=None, threads=1)


def test_the_step_after_the_range_reads_the_windows_there(data, tmp_path):
    run = built(tiny_config(data, tmp_path / "run", skip_windows=("0:50",)))
    batch = run.loader.next_step()
    run.close()
    stream = TrainingStream(open_data_set(data).split("train"), 1337)
    expected = read_windows(OneSource(stream), 50, 8, 16)
    assert np.array_equal(batch.windows.numpy().view(np.uint16), expected)
    assert (batch.first_window, run.loader.next_window) == (50, 58)


@pytest.mark.parametrize("step", [2, 4])
def test_a_resume_before_or_after_the_range_repeats_the_straight_run(data, tmp_path, step):
    config = tiny_config(data, tmp_path / "run", save=KEEP_ALL, skip_windows=("30:50",))
    run_to_end(config)
    straight = [deterministic(line) for line in lines(config.out)]
    forget_after(config.out, step)
    run_to_end(config)
    assert [deterministic(line) for line in lines(config.out)] == straight


def test_the_token_count_leaves_skipped_windows_out(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=KEEP_ALL, skip_windows=("30:50",))
    run_to_end(config)
    forget_after(config.out, 6)  # after the range: the count comes from the checkpoint
    assert run_to_end(config).tokens == 8 * 128
    trained = [128 * n for n in range(1, 9)]
    assert [line["tokens"] for line in lines(config.out)] == [*trained, 8 * 128]


def test_a_run_can_go_back_to_before_a_spike_and_skip_its_windows(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=KEEP_ALL)
    run_to_end(config)
    before = losses(config.out)
    forget_after(config.out, 4)
    cured = replace(config, skip_windows=("40:56",))
    with pytest.raises(ValueError, match="--allow skip_windows"):
        built(cured)
    run_to_end(replace(cured, allow=("skip_windows",)))
    assert first_windows(config.out) == [0, 8, 16, 24, 32, 56, 64, 72]
    assert losses(config.out)[:5] == before[:5]
    kept = json.loads((config.out / "config.json").read_text())["config"]["skip_windows"]
    assert kept == ["40:56"]
