"""The proof of a mixture's run: shares, places of documents, and faults that it must find.

The run has two sources, was on two ranks up to a stop, and continued on one with another change of
weights and with windows left out.
"""

import json
import logging
import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from data_prep.audit.run_data import open_run_data, weight_starts_of
from data_prep.audit.run_record import read_run
from data_prep.audit.tracing import tracers_of
from data_prep.browse import BrowseOptions, browse
from data_prep.dataset.shards import open_data_set
from data_prep.lookup import LookupOptions, look_up
from data_prep.order.training_data import open_training_data
from data_prep.order.weights import WeightStart
from data_prep.order.windows import read_windows, windows_digest
from data_prep.verify import VerifyOptions, verify
from storage.retention import SaveConfig
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.faults import poison
from tests.launching import together
from tests.runs import NANO, alone, built, flags, forget_after, run_to_end, tiny_config
from train import audit, replay
from train.auditing.recorded_run import read_recorded_run
from train.checks import StopTraining
from train.loop import train

STEPS = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """16 steps of 8 windows of 16: `a` is read about once, `b` more than twice."""
    folder = tmp_path_factory.mktemp("made")
    for name, documents, seed in (("a", 50, 0), ("b", 20, 1)):
        tiny_data_set(
            folder / name, documents, seed, mean_length=30, tokenizer=small_tokenizer(), shards=3
        )
    config = replace(
        tiny_config(folder / "a", folder / "run", steps=STEPS, model=NANO),
        data=(folder / "a:3", folder / "b:1"),
        data_weights_at=("8", "1", "1"),
        save=SaveConfig(every=4, every_minutes=0, keep=99),
    )
    done = together(2, *flags(config, "--save.keep", "99", "--data-weights-at", "8", "1", "1"))
    assert done.returncode == 0, done.stderr[-2000:]
    forget_after(config.out, 4)
    changed = {"data_weights_at": ("8", "1/3", "2/3"), "skip_windows": ("90:99",)}
    run_to_end(replace(config, allow=tuple(changed), **changed))
    return folder


@pytest.fixture(autouse=True)
def hear(caplog):
    caplog.set_level(logging.INFO, "data_prep")


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copied", symlinks=True)


def sources(folder):
    return (folder / "a", folder / "b")


def check(folder, **more):
    verify(VerifyOptions(sources(folder), run=folder / "run", **more))


def not_proven(folder, caplog, **more):
    with pytest.raises(SystemExit) as left:
        check(folder, **more)
    assert left.value.code == 1
    return caplog.text


def forge(folder, step, **changes):
    path = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[step] |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def reconfigure(folder, **changes):
    path = folder / "run" / "config.json"
    content = json.loads(path.read_text())
    content["config"] |= changes
    path.write_text(json.dumps(content))


def opened(folder):
    """Its record, and the windows that it read."""
    run = read_run(folder / "run")
    return run, open_run_data(run, sources(folder)).stream(run.seed, weight_starts_of(run))


def test_a_mixture_is_proven_and_its_shares_are_stated(made, caplog):
    check(made)
    assert "16 of 16 agree with the shards" in caplog.text
    assert "12 steps were lost in a stop and done again: 12 agree" in caplog.text
    assert "windows 0 to 63: after every one of them each source is within 0.50 win" in caplog.text
    assert "  a  weight 75.00%, read 48 of 64 windows, 75.00%" in caplog.text
    assert "windows 64 to 138: after every one of them each source is within 0.33 w" in caplog.text
    assert "(11 of them are not read by these steps)" in caplog.text
    assert "  b  weight 66.67%, read 43 of 64 windows, 67.19%" in caplog.text
    assert "a 0.93 times, b 2.01 times; 4 of 4 epochs begun have every document" in caplog.text


def test_a_range_of_steps_is_proven_by_itself_also_where_the_change_has_lost_its_line(
    copied, caplog
):
    check(copied, steps="7:9")
    assert caplog.text.count("of 8 windows") == 4
    path = copied / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[9:]))
    check(copied, steps="12:")  # the newest checkpoint says where the change began
    shutil.rmtree(copied / "run" / "checkpoints")
    check(copied, steps="12:")
    assert "DIFFERS" not in caplog.text


def test_a_line_of_other_weights_is_found(copied, caplog):
    run = read_run(copied / "run")
    windows = read_windows(open_run_data(run, sources(copied)).stream(run.seed), 64, 8, 16)
    forge(copied, 8, **{"data/digest": f"{windows_digest(64, windows):016x}"})
    assert "step 8: metrics.jsonl has" in not_proven(copied, caplog)
    assert "15 of 16 agree" in caplog.text


@pytest.mark.parametrize(("what", "value"), [("share", 0.5), ("epochs", 0.9), ("share", None)])
def test_a_share_in_a_line_that_was_not_read_is_found(copied, caplog, what, value):
    forge(copied, 3, **{f"data/b/{what}": value})
    printed = not_proven(copied, caplog)
    if value is None:
        assert "damaged lines: 4" in printed
    else:
        assert f"step 3: metrics.jsonl has the {what.rstrip('s')}s " in printed
        assert "15 of 16 agree" in printed


def test_the_line_of_a_change_at_another_window_is_found(copied, caplog, monkeypatch):
    forge(copied, 8, **{"data/first_window": 63})
    printed = not_proven(copied, caplog)
    assert "overlap: step 7 ends before window 64, step 8 begins at window 63" in printed
    assert "15 of 16 agree" in printed  # the newest checkpoint says where the change began
    shutil.rmtree(copied / "run" / "checkpoints")
    assert "step 15: metrics.jsonl has" in not_proven(copied, caplog)
    forge(copied, 8, **{"data/windows": 0})
    assert "step 8: 0 windows, the configuration says 8" in not_proven(copied, caplog, steps="8:9")
    forge(copied, 8, **{"data/first_window": 0, "data/windows": 8})  # where no change can begin
    assert not_proven(copied, caplog).count("15 of 16 agree") == 2
    monkeypatch.setattr("data_prep.audit.shares_read._MOST_WINDOWS", 1 << 20)
    monkeypatch.setattr("data_prep.audit.shares_read._MOST_EPOCHS", 9)
    forge(copied, 15, **{"data/first_window": 1 << 39})  # as a damaged line may say
    assert "begun have every document of their source once, " in not_proven(copied, caplog)


def test_another_change_in_the_configuration_is_found(copied, caplog):
    reconfigure(copied, data_weights_at=["8", "1", "3"])
    printed = not_proven(copied, caplog)
    assert "on as 0.333333 0.666667, the run's record gives window 64 and 1 3" in printed
    reconfigure(copied, data_weights_at=[])
    assert "gives no change there" in not_proven(copied, caplog)


def test_other_weights_in_the_configuration_are_found(copied, caplog):
    reconfigure(copied, data=[str(copied / "a:1"), str(copied / "b:1")])
    with pytest.raises(ValueError, match=r"with the weights 0\.5 0\.5 of its config\.json is"):
        check(copied)
    path = copied / "run" / "config.json"
    forged = json.loads(path.read_text())
    places = (copied / "a:1", copied / "b:1")
    forged["data_fingerprint"] = open_training_data(places).fingerprint
    path.write_text(json.dumps(forged))
    assert "step 0: metrics.jsonl has" in not_proven(copied, caplog)


def test_sources_in_another_order_are_refused_with_the_right_one(copied):
    right = f"name them as {copied / 'a'} {copied / 'b'}"
    with pytest.raises(ValueError, match=right):
        verify(VerifyOptions((copied / "b", copied / "a"), run=copied / "run"))
    (copied / "a").rename(copied / "c")
    (copied / "b").rename(copied / "a")
    (copied / "c").rename(copied / "b")
    with pytest.raises(ValueError, match=f"name them as {copied / 'b'} {copied / 'a'}"):
        check(copied)
    verify(VerifyOptions((copied / "b", copied / "a"), run=copied / "run"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no data set is named"),
        (("a",), "reads 2 data sets .* and 1 are named"),
        (("a", "a"), "named twice"),
        (("a:1", "b:1"), "began with the weights 0.75 0.25, other ones are named"),
        (("a:0.7", "b"), "b has no weight"),
        (("a:-1", "b:1"), "is no weight"),
    ],
)
def test_folders_that_are_not_those_of_the_run_are_one_sentence(made, names, message):
    named = tuple(made / name for name in names)
    for tool in (
        lambda: verify(VerifyOptions(named, run=made / "run")),
        lambda: look_up(LookupOptions(named, made / "run", step=1)),
        lambda: browse(BrowseOptions(named, run=made / "run", step=1)),
    ):
        with pytest.raises(ValueError, match=message):
            tool()


def test_the_weights_of_the_run_may_be_named(made, caplog):
    verify(VerifyOptions((made / "a:0.75", made / "b:0.25"), run=made / "run", steps=":1"))
    assert "1 of 1 agree" in caplog.text


@pytest.mark.fault("D10", injected="one byte of a shard of one source of a mixture")
def test_a_flipped_byte_of_one_source_is_named(copied):
    path = copied / "b" / "train_000001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of 6 files that the proof reads.*\n.*b/train_000001"):
        check(copied)
    with pytest.raises(ValueError, match=r"1 of 12 files differ.*\n.*b/train_000001\.npy has"):
        verify(VerifyOptions(sources(copied)))
    for tool in (look_up, browse):
        options = {look_up: LookupOptions, browse: BrowseOptions}[tool]
        if tool is look_up:
            with pytest.raises(ValueError, match=r"b/train_000001\.npy"):
                tool(options(sources(copied), run=copied / "run", step=1))


def test_several_data_sets_are_all_checked_and_sampled(made, caplog):
    verify(VerifyOptions(sources(made), tokens=1))
    assert caplog.text.count("files match the manifest") == 2
    assert caplog.text.count("of 1 documents give the same tokens") == 2


def ask(folder, **question):
    return look_up(LookupOptions(sources(folder), folder / "run", **question))


def test_the_documents_of_a_step_are_its_windows_source_by_source(made):
    run, stream = opened(made)
    for record in run.steps:
        windows = read_windows(stream, record.first_window, 8, 16)[:, :-1]
        listed = ask(made, step=record.step)[0]["documents"]
        for part in stream.by_source(record.first_window, 8):
            name, shards = "ab"[part.source], open_data_set(made / "ab"[part.source]).split("train")
            read = [
                shards.read_document(found["document"])[found["first_token"] :][: found["tokens"]]
                for found in listed
                if found["data"] == name
            ]
            assert np.array_equal(np.concatenate(read), windows[part.rows].ravel())


def test_a_document_was_read_in_the_steps_that_list_it(made):
    run = read_run(made / "run")
    for tracer in tracers_of(open_run_data(run, sources(made)), run):
        listed = {}
        for step in run.steps:
            for part in tracer.documents_of(step, 1):
                key = (part.document, part.epoch)
                listed.setdefault(key, []).append((step.step, part.tokens))
        for document in range(tracer.shards.documents):
            for seen in tracer.occurrences(document):
                parts = listed.pop((document, seen.epoch))
                assert (seen.first_step, seen.last_step) == (parts[0][0], parts[-1][0])
                assert seen.tokens == sum(tokens for _, tokens in parts)
                first, last = run.step(seen.first_step), run.step(seen.last_step)
                assert first.first_window <= seen.first_window < first.stop_window
                assert last.first_window <= seen.last_window < last.stop_window
        assert not listed


def test_the_coverage_of_the_sources_adds_up(made):
    found, lines = ask(made, steps=":")
    assert [source["data"] for source in found["sources"]] == ["a", "b"]
    assert found["tokens"] == sum(source["tokens"] for source in found["sources"]) == STEPS * 128
    assert found["tokens_dropped"] == 11 * 16
    a, b = found["sources"]
    shards = open_data_set(made / "b").split("train")
    assert b["epochs"][0]["documents"] == b["documents_seen"] == shards.documents
    assert a["most_times_in_one_epoch"] == b["most_times_in_one_epoch"] == 1
    assert [line.split(":")[0] for line in lines if line[:2] in ("a:", "b:")] == ["a", "b"]


def test_a_document_needs_its_source(made):
    row = ask(made, document="b:3")[0]["row"]
    assert ask(made, document="b:3")[1][0].startswith(f"b: document 3 (none:{row}), ")
    with pytest.raises(ValueError, match="NAME:N with a or b as NAME"):
        ask(made, document=3)
    with pytest.raises(ValueError, match="--document c:3: give its number with the source"):
        ask(made, document="c:3")
    with pytest.raises(ValueError, match=r"in 2 of the sources; give --document a:\d+ or --docu"):
        ask(made, source=f"none:{row + 5}")
    with pytest.raises(ValueError, match="in no source of the run: a: --source none:0 is no tra"):
        ask(made, source="none:0")
    assert ask(made, source="none:30")[0]["data"] == "a"  # `b` has 20 rows


def test_browse_shows_the_documents_of_a_step_and_each_of_several_data_sets(made):
    options = BrowseOptions(sources(made), run=made / "run", step=9, text=100)
    value, lines = browse(options)
    assert value["documents"] == ask(made, step=9)[0]["documents"]
    assert any(line.startswith("--- b: document ") for line in lines)
    value, lines = browse(BrowseOptions(sources(made), random=2))
    assert [len(one["documents"]) for one in value["data_sets"]] == [2, 2]
    assert [line for line in lines if line.endswith(":")] == [f"{made / n}:" for n in "ab"]
    with pytest.raises(ValueError, match=r"x\.png shows one data set, and 2 are named"):
        browse(BrowseOptions(sources(made), plot=made / "x.png"))


def audited(folder, segments):
    options = audit.Arguments(folder / "run", segments=segments, seed=1)
    return audit.audit(options, read_recorded_run(folder / "run"), alone())


def test_an_audit_repeats_a_mixture_over_its_change_of_weights(made, copied):
    found = audited(made, 9)
    assert found.holds, found.text()
    assert [segment.how for segment in found.segments[1:]] == ["bit for bit"] * 3
    reconfigure(copied, data_weights_at=["8", "1", "3"])
    assert "was made with data_weights_at=" in audited(copied, 0).text()


def test_a_bad_step_after_a_change_of_weights_is_replayed_with_its_windows(made, tmp_path):
    config = replace(
        tiny_config(made / "a", tmp_path / "run", steps=40, model=NANO),
        data=(made / "a:3", made / "b:1"),
        data_weights_at=("9", "1", "4"),
    )
    run = built(config)
    poison(run)
    with pytest.raises(StopTraining, match="shows where"):
        train(run)
    run.close()
    box = tmp_path / "run" / "blackbox" / "step_000009"
    named = replay.Arguments(box, data=(made / "a", made / "b"), device="cpu")
    starts = [WeightStart(9, 72, (Fraction(1), Fraction(4)))]
    expected = read_windows(open_training_data(config.data).stream(config.seed, starts), 72, 8, 16)
    read = replay._read_step(named, replay.read_box(box))
    assert np.array_equal(list(read.values()), expected)
    assert replay.replay(named)
    with pytest.raises(ValueError, match="is not the run's data set"):
        replay.replay(replace(named, data=(made / "b", made / "a")))
