"""verify.py: proves the training data of a run, and finds forged lines and flipped bytes."""

import json
import logging
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_prep.audit.run_proof import prove_run
from data_prep.audit.run_record import parse_range, read_run
from data_prep.dataset.shards import open_data_set
from data_prep.order.training_data import open_training_data
from data_prep.order.training_stream import TrainingStream
from data_prep.verify import VerifyOptions, main, verify
from storage.retention import SaveConfig
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.launching import python, together
from tests.runs import flags, forget_after, nano_config, run_to_end, tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set, and a run on two ranks that was stopped at step 4 and continued on one.

    20 steps of 8 windows of 16: more than an epoch.
    """
    folder = tmp_path_factory.mktemp("made")
    tiny_data_set(folder / "data", documents=50, mean_length=30, tokenizer=small_tokenizer())
    save = SaveConfig(every=2, every_minutes=0, keep=99)
    config = tiny_config(folder / "data", folder / "run", steps=20, save=save)
    done = together(2, *flags(config, "--save.keep", "99"))
    assert done.returncode == 0, done.stderr[-2000:]
    forget_after(config.out, 4)
    run_to_end(config)
    return folder


@pytest.fixture(autouse=True)
def hear(caplog):
    caplog.set_level(logging.INFO, "data_prep")


@pytest.fixture
def both(made, tmp_path):
    return shutil.copytree(made, tmp_path / "both", symlinks=True)


def check(folder, **more):
    verify(VerifyOptions((folder / "data",), run=folder / "run", **more))


def forge(folder, step, **changes):
    """Change a step's line."""
    path = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[step] |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def not_proven(folder, caplog, **more):
    with pytest.raises(SystemExit) as left:
        check(folder, **more)
    assert left.value.code == 1
    return caplog.text


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_run_stopped_and_continued_on_another_number_of_ranks_is_proven(both, caplog):
    check(both)
    assert "20 of 20 agree with the shards" in caplog.text
    assert "16 steps were lost in a stop and done again: 16 agree" in caplog.text
    assert "windows 0 to 159: no gap, no overlap" in caplog.text


@pytest.mark.parametrize(("steps", "count"), [("3:7", 4), ("15:", 5), (":2", 2), (":", 20)])
def test_a_range_of_steps_is_proven(both, caplog, steps, count):
    check(both, steps=steps)
    assert f"{count} of {count} agree" in caplog.text


def test_a_forged_digest_is_found(both, caplog):
    forge(both, 7, **{"data/digest": "0" * 16})
    printed = not_proven(both, caplog)
    assert "19 of 20 agree" in printed
    assert "step 7: metrics.jsonl has 0000000000000000, the shards give" in printed


@pytest.mark.fault("D10", injected="one byte of a shard, after the run was trained")
def test_a_flipped_byte_of_a_shard_is_named_and_no_step_is_blamed(both, caplog):
    flip(both / "data" / "train_000000.npy")
    with pytest.raises(
        ValueError, match=r"1 of 2 files that the proof reads.*\n.*train_000000\.npy"
    ):
        check(both)
    assert "DIFFERS" not in caplog.text
    assert "agree" not in caplog.text
    with pytest.raises(ValueError, match=r"1 of 9 files differ.*\n.*train_000000\.npy has sha256"):
        verify(VerifyOptions((both / "data",)))


@pytest.mark.fault("D10", injected="one byte of the lengths, after the run was trained")
def test_a_flipped_byte_of_the_lengths_is_named_before_a_step_is_recomputed(both):
    flip(both / "data" / "train_000001.lengths.npy")
    with pytest.raises(ValueError, match=r"train_000001\.lengths\.npy has sha256"):
        check(both, steps="3:4")


def test_of_a_range_of_steps_only_the_shards_that_they_read_are_compared(tmp_path, caplog):
    data = tiny_data_set(tmp_path / "data", lengths=[300] * 40, shards=10, val_fraction=0)
    config = tiny_config(data.folder, tmp_path / "run", steps=3)
    run_to_end(config)
    stream, read = TrainingStream(data.split("train"), config.seed), set()
    for piece in stream.pieces(0, 129):
        read |= {document // 4 for document in piece.documents.tolist()}
    assert len(read) < 3
    other = next(number for number in range(10) if number not in read)
    flip(data.folder / f"train_{other:06d}.npy")
    check(tmp_path, steps="0:1")
    assert "1 of 1 agree" in caplog.text
    with pytest.raises(ValueError, match=f"train_{other:06d}"):
        check(tmp_path)
    flip(data.folder / f"train_{min(read):06d}.npy")
    with pytest.raises(ValueError, match=f"train_{min(read):06d}"):
        check(tmp_path, steps="0:1")


@pytest.mark.fault("S7", injected="the last lines of a finished run lost")
@pytest.mark.parametrize(("state", "kept"), [("finished", 17), ("failed", 10)])
def test_lines_missing_at_the_end_are_not_proven(both, caplog, state, kept):
    path = both / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    status = both / "run" / "status.json"
    status.write_text(status.read_text().replace("finished", state))
    assert f"steps {kept} to 19 have no line" in not_proven(both, caplog)
    check(both, steps=f":{kept}")


@pytest.mark.fault("P1", injected="rank 0 killed before it wrote its last lines", lost="0")
def test_lines_that_only_the_checkpoint_has_are_proven_too(both, caplog):
    path = both / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:17]))
    status = both / "run" / "status.json"
    status.write_text(status.read_text().replace("finished", "failed"))
    check(both)
    assert "20 of 20 agree" in caplog.text


def test_a_run_without_any_line_is_not_proven(both, caplog):
    (both / "run" / "metrics.jsonl").unlink()
    assert "steps 0 to 19 have no line" in not_proven(both, caplog)


def test_a_shifted_window_is_a_gap_and_another_digest(both, caplog):
    forge(both, 7, **{"data/first_window": 57})
    printed = not_proven(both, caplog)
    assert "gap: step 6 ends before window 56, step 7 begins at window 57" in printed
    assert "overlap: step 7 ends before window 65, step 8 begins at window 64" in printed
    assert "step 7: metrics.jsonl has" in printed


def test_a_line_cut_out_is_a_gap(both, caplog):
    path = both / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9] + lines[10:]))
    printed = not_proven(both, caplog)
    assert "19 of 19 agree" in printed
    assert "step 8 is followed by step 10" in printed


def test_lines_missing_at_the_start_are_not_proven(both, caplog):
    path = both / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[4:]))
    assert "steps 0 to 3 have no line" in not_proven(both, caplog)
    check(both, steps="4:")


def test_a_line_with_another_number_of_windows_is_found(both, caplog):
    forge(both, 19, **{"data/windows": 16})
    assert "step 19: 16 windows, the configuration says 8" in not_proven(both, caplog)


def test_another_seed_in_the_record_is_found(both, caplog):
    path = both / "run" / "config.json"
    path.write_text(path.read_text().replace('"seed": 1337', '"seed": 1338'))
    assert "0 of 20 agree" in not_proven(both, caplog)


def test_a_run_of_other_data_is_refused(both):
    other = tiny_data_set(both / "other", documents=50, seed=1, tokenizer=small_tokenizer())
    with pytest.raises(ValueError, match=other.fingerprint[:16]):
        verify(VerifyOptions((both / "other",), run=both / "run"))


def test_a_torn_last_line_is_accepted_of_a_step_that_may_not_be_done(both):
    path = both / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 20, "data/di')
    check(both)


@pytest.mark.fault("S7", injected="a metric line cut in half")
def test_a_torn_line_is_a_step_without_a_line(both, caplog):
    path = both / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], lines[5][:30] + "\n", *lines[6:]]))
    printed = not_proven(both, caplog)
    assert "19 of 19 agree" in printed
    assert "step 4 is followed by step 6" in printed
    assert "damaged lines: 6" in printed


def test_a_torn_line_between_whole_ones_that_tells_of_no_step_changes_nothing(both, caplog):
    path = both / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], lines[5][:30] + "\n", *lines[5:]]))
    check(both)
    assert "20 of 20 agree" in caplog.text


@pytest.mark.parametrize("kind", ["", ".lengths", ".source"])
def test_every_file_is_compared_and_every_differing_one_named(both, kind):
    flip(both / "data" / f"val_000000{kind}.npy")
    flip(both / "data" / "train_000001.npy", 200)
    with pytest.raises(ValueError, match="2 of 9 files differ") as error:
        verify(VerifyOptions((both / "data",)))
    assert f"val_000000{kind}.npy" in str(error.value)
    assert "train_000001.npy" in str(error.value)


def test_an_undamaged_data_set_verifies_and_prints_a_sample(both, caplog):
    verify(VerifyOptions((both / "data",), tokens=3))
    assert "all 9 files match the manifest" in caplog.text
    assert "document 30, none row 35" in caplog.text
    assert "of 3 documents give the same tokens" in caplog.text


def test_a_document_that_cannot_be_encoded_again_is_shown_and_counted(both, caplog, monkeypatch):
    def refuse(*_):
        raise ValueError("Error while tokenizing")

    monkeypatch.setattr("data_prep.tokenizer.Tokenizer.encode", refuse)
    verify(VerifyOptions((both / "data",), tokens=2))
    assert "0 of 2 documents give the same tokens" in caplog.text
    assert "2 cannot be encoded again" in caplog.text


def test_a_run_that_is_not_proven_shows_its_sample_all_the_same(both, caplog):
    forge(both, 7, **{"data/digest": "0" * 16})
    assert "document 0, none row" in not_proven(both, caplog, tokens=1)


def test_exit_codes_and_messages_of_the_script(both):
    script = ("data_prep/verify.py", str(both / "data"))
    assert python(*script).returncode == 0
    forge(both, 3, **{"data/digest": "0" * 16})
    proof = python(*script, "--run", str(both / "run"))
    assert (proof.returncode, "19 of 20 agree" in proof.stdout) == (1, True)
    flip(both / "data" / "val_000000.npy")
    damaged = python(*script)
    assert (damaged.returncode, "val_000000.npy has sha256" in damaged.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1:2"], "needs --run"),
        (["--run", "nowhere", "--steps", "5"], "is no range"),
        (["--run", "nowhere"], "is no run folder"),
        (["--threads", "0"], "threads=0"),
    ],
)
def test_options_that_do_not_fit_together_are_one_sentence_and_exit_code_2(
    made, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(sys, "argv", ["verify.py", str(made / "data"), *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_steps_that_a_run_has_not_done_are_an_error(made):
    with pytest.raises(ValueError, match="no such step, only 0 to 19"):
        check(made, steps="30:")
    assert parse_range("5:") == (5, None)


def test_the_record_of_a_run_is_its_configuration_and_lines(made):
    run = read_run(made / "run")
    assert (run.seed, run.context_length, run.windows) == (1337, 16, 8)
    assert run.data_fingerprint == open_data_set(made / "data").fingerprint
    assert [step.step for step in run.steps] == list(range(20))
    assert np.array_equal([s.first_window for s in run.steps], np.arange(0, 160, 8))
    assert not any(step.skipped for step in run.steps)


def continue_run(config, folder, back_to=None, **changes):
    """Continue with a changed configuration, perhaps from an earlier step; then `prove_run`."""
    if back_to is not None:
        forget_after(config.out, back_to)
    steps = config.steps + 4
    config = replace(config, steps=steps, allow=("steps", *changes), **changes)
    run_to_end(config)
    run = read_run(config.out)
    return config, prove_run(open_training_data((folder / "data",)), run, steps=None, threads=1)


def test_a_run_continued_with_another_batch_size_is_proven(tmp_path, caplog):
    config = nano_config(tmp_path, steps=6, save=SaveConfig(2, 0, 99))
    run_to_end(config)
    config, proven = continue_run(config, tmp_path, back_to=4, batch_tokens=256)
    assert proven, caplog.text
    assert [step.windows for step in read_run(config.out).steps] == [8] * 4 + [16] * 6
    assert continue_run(config, tmp_path, batch_tokens=128)[1], caplog.text
    forge(tmp_path, 5, **{"data/windows": 4})
    assert not prove_run(open_training_data((tmp_path / "data",)), read_run(config.out), None, 1)


def test_a_jump_over_windows_that_an_earlier_start_skipped_is_proven(tmp_path, caplog):
    config = nano_config(tmp_path, steps=6, save=SaveConfig(2, 0, 99), skip_windows=("16:24",))
    run_to_end(config)
    config, proven = continue_run(config, tmp_path, skip_windows=("60:70",))
    assert proven, caplog.text
    firsts = [step.first_window for step in read_run(config.out).steps]
    assert firsts == [0, 8, 24, 32, 40, 48, 70, 78, 86, 94]
    (config.out / "starts.jsonl").unlink()
    assert not prove_run(open_training_data((tmp_path / "data",)), read_run(config.out), None, 1)


def test_a_run_with_damaged_old_lines_is_still_proven(tmp_path, caplog):
    config = nano_config(tmp_path, steps=6, save=SaveConfig(2, 0, 99))
    run_to_end(config)
    with (config.out / "starts.jsonl").open("a") as file:
        file.write('{"started_at')  # by a full disk
    metrics = config.out / "metrics.jsonl"
    content = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*content[:4], b'{"step": 4, "\xff\n', *content[5:]]))
    _, proven = continue_run(config, tmp_path, back_to=4)
    assert proven, caplog.text
    assert len((config.out / "starts.jsonl").read_bytes().splitlines()) == 3
