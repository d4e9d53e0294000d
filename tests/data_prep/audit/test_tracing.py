"""Tracing: a document that is read in several pieces of one epoch counts once."""

from data_prep.audit.run_record import RunRecord, StepRecord
from data_prep.audit.tracing import tracers_of
from data_prep.order.training_data import open_training_data
from tests.data_sets import tiny_data_set


def test_a_document_around_skipped_windows_counts_as_read_once(tmp_path):
    data = tiny_data_set(tmp_path / "data", lengths=[2000] * 20)
    steps = (StepRecord(0, 0, 8, "", False), StepRecord(1, 24, 8, "", False))
    run = RunRecord(tmp_path, 7, 16, 8, data.fingerprint, steps, (), ((8, 24),))
    found = tracers_of(open_training_data((data.folder,)), run)[0].coverage(steps)
    assert found["documents_by_times_seen"] == {0: 17, 1: 1}
    assert (found["most_times_in_one_epoch"], found["tokens_dropped"]) == (1, 256)
    assert found["epochs"] == {0: {"documents": 1, "tokens": 256}}
