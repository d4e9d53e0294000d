"""A run that gives up leaves what is needed to see why, and the fault can be replayed."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from data_prep.dataset.shards import open_data_set
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows
from storage.atomic import read_json, write_json
from storage.checkpoint_folder import free_path
from storage.retention import SaveConfig
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.faults import poison, scaled, with_fault
from tests.launching import python
from tests.runs import built, tiny_config
from train.checks import StopTraining
from train.guards.spikes import GuardConfig, Skipped
from train.guards.window_by_window import score_windows
from train.loop import train
from train.replay import Arguments, read_box, replay
from train.reporting import black_box
from train.reporting.black_box import write_black_box


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100, tokenizer=small_tokenizer())
    return folder


@pytest.fixture(scope="module")
def box(data, tmp_path_factory):
    """The box of a run whose weights were damaged before its first step."""
    run = built(tiny_config(data, tmp_path_factory.mktemp("runs") / "run", steps=40))
    poison(run)
    with pytest.raises(StopTraining, match=r"train/replay\.py .*step_000009 shows where"):
        train(run)
    run.close()
    return run.folder.path / "blackbox" / "step_000009"


def test_the_box_names_the_step_the_weights_the_module_and_the_device(box):
    found = read_json(box / "box.json")
    assert (found["step"], found["kind"], found["loss"]) == (9, "not finite", "nan")
    assert found["weights_are_the_steps"]
    assert found["layers"]["ln_f.weight"]["weights_not_finite"] == 1
    assert found["layers"]["wte.weight"]["weight_norm"] > 0
    assert {f["broken_at"] for f in found["findings"]} == {"ln_f"}
    assert "cpu" in found["ranks"][0]
    assert found["config"]["batch_tokens"] == 128


@pytest.mark.fault("D10", injected="one byte of a shard, then a replay of a bad step")
def test_a_step_is_not_replayed_with_what_a_damaged_shard_holds(box, data, tmp_path):
    other = shutil.copytree(data, tmp_path / "set")
    path = other / "train_000000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train_000000\.npy has sha256"):
        replay(Arguments(box, data=(other,)))


def test_the_box_holds_the_windows_of_the_step_and_their_text(box, data):
    found = read_json(box / "box.json")
    assert [f["window"] for f in found["findings"]] == list(range(72, 80))
    ids = read_windows(
        OneSource(TrainingStream(open_data_set(data).split("train"), 1337)), 72, 1, 16
    )[0]
    text = open_data_set(data).tokenizer().decode(ids.tolist())
    assert found["text"]["72"] == text
    report = (box / "report.txt").read_text(encoding="utf-8")
    assert "step 9: not finite" in report
    assert "--- window 72 ---" in report


def broken_on(rank, monkeypatch):
    """Let the examination fail on this rank of two, both of which are this process."""

    def both(own):
        other = ("rank 1: OutOfMemoryError: 80 GB", *own[1:])
        return [own, other] if rank else [own]

    def fail(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(black_box, "all_gather_object", both)
    if rank == 0:
        monkeypatch.setattr(black_box, "score_windows", fail)


@pytest.mark.parametrize(
    ("rank", "trouble"),
    [(0, "rank 0: RuntimeError: CUDA out of memory"), (1, "rank 1: OutOfMemoryError: 80 GB")],
)
def test_a_rank_that_cannot_examine_its_part_is_told_and_no_gradient_is_made_up(
    data, tmp_path, monkeypatch, caplog, rank, trouble
):
    run = built(tiny_config(data, tmp_path / "run"))
    broken_on(rank, monkeypatch)
    path = write_black_box(run, Skipped(0, 0, math.nan, math.nan), exact=True)
    run.close()
    found = read_json(path / "box.json")
    assert (found["trouble"], found["layers"], found["step"]) == ([trouble], {}, 0)
    assert trouble in (path / "report.txt").read_text(encoding="utf-8")
    assert f"step 0 could not be examined whole: {trouble}" in caplog.text


def test_a_replay_finds_the_fault_again_with_exit_code_0(box):
    done = python("train/replay.py", str(box), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "window 79  loss nan" in done.stdout
    assert "NOT FINITE, first at ln_f" in done.stdout
    assert "weights that are not finite: ln_f.weight" in done.stdout


def test_a_replay_with_sound_weights_does_not(box, data, tmp_path):
    other = built(tiny_config(data, tmp_path / "other", save=SaveConfig(every=2, every_minutes=0)))
    train(other)
    other.close()
    latest = other.folder.checkpoints / "latest"
    assert not replay(Arguments(box, checkpoint=latest, device="cpu"))


def test_a_spike_is_replayed_against_the_limits_it_broke(box, tmp_path):
    content = read_json(box / "box.json")
    folder = tmp_path / "blackbox" / "step_000009"
    folder.mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (folder / name).write_bytes((box / name).read_bytes())
    spike = {"kind": "spike", "loss_limit": 1.0, "grad_norm_limit": 1.0}
    write_json(folder / "box.json", content | spike)
    assert replay(Arguments(folder, device="cpu"))


def test_without_weights_in_the_box_the_nearest_checkpoint_is_replayed(data, tmp_path, caplog):
    config = tiny_config(data, tmp_path / "run", steps=14, save=SaveConfig(4, 0, keep=99))
    config = replace(config, guard=GuardConfig(window=8, skip_spikes=6, box_weights=False))
    run = with_fault(built(config), scaled(10, 1e4))
    train(run)
    run.close()
    folder = config.out / "blackbox" / "step_000010"
    assert not (folder / "model.safetensors").exists()
    caplog.set_level("INFO")
    assert not replay(Arguments(folder, device="cpu"))  # the data are good: it was the fault's
    assert "weights of step_000008, before step 10" in caplog.text


def test_windows_one_by_one_have_the_gradient_of_the_step(data, tmp_path):
    run = built(tiny_config(data, tmp_path / "run"))
    windows = read_windows(run.loader.stream, 0, 8, 16)
    found = score_windows(run.model, dict(enumerate(windows)), torch.float32)
    ids = torch.from_numpy(windows.astype("int64"))
    loss = run.learner.step_model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    run.close()
    assert math.fsum(f.loss for f in found.windows) / 8 == pytest.approx(loss.item(), rel=1e-5)
    for parameter, total in zip(run.model.parameters(), found.gradient, strict=True):
        torch.testing.assert_close(total / 8, parameter.grad, atol=1e-6, rtol=1e-4)


def test_windows_that_there_is_no_time_for_are_named(data, tmp_path):
    run = built(tiny_config(data, tmp_path / "run"))
    windows = dict(enumerate(read_windows(run.loader.stream, 0, 4, 16)))
    found = score_windows(run.model, windows, torch.float32, seconds=-1)
    run.close()
    assert found.left_out == [0, 1, 2, 3]


def test_a_second_box_of_a_step_gets_another_name(tmp_path):
    (tmp_path / "step_000009").mkdir()
    assert free_path(tmp_path / "step_000009").name == "step_000009.2"


@pytest.mark.parametrize("content", [None, "[]", '{"format": 99}'])
def test_what_is_no_box_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "box.json").write_text(content)
    with pytest.raises(ValueError, match=r"not a black box|not of format 1"):
        read_box(tmp_path)


def test_a_box_with_a_field_of_another_type_is_refused(box, tmp_path):
    """Every field that a replay needs."""
    content = json.loads((box / "box.json").read_text())
    path = tmp_path / "box.json"
    path.write_text(json.dumps(content))
    assert read_box(tmp_path) == content
    needed = ("step", "windows", "first_window", "context_length", "seed", "loss_limit", "dtype")
    for name in (*needed, "data", "data_fingerprint", "kind", "weights_are_the_steps"):
        for wrong in (None, [], "x" if name != "data" and name != "kind" else 3, -1.5):
            path.write_text(json.dumps(content | {name: wrong}))
            if (name, wrong) in (("loss_limit", -1.5), ("data_fingerprint", "x"), ("data", [])):
                continue
            with pytest.raises(ValueError, match=rf"box\.json is damaged: .*{name.split('_')[0]}"):
                read_box(tmp_path)
