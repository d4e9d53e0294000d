"""The judge: its verdicts on finished runs, and the runs that it makes itself."""

import json
import re
from dataclasses import replace

import pytest

from eval.training_config import EvalConfig
from storage.atomic import read_json, write_json
from tests.damage import call, files_below
from tests.launching import python
from tests.made_runs import made_run
from tests.runs import flags, nano_config
from tests.train.experiments.test_run_pairs import SPIKE
from train.experiments.trial_runs import Ended
from train.judge import main


def groups(folder, gain, seeds=5, noise=0.001, **made):
    """Runs a_s1 … and b_s1 …; B's loss is lower by `gain`, give or take."""
    for seed in range(1, seeds + 1):
        floor = 3 + seed / 10
        made_run(folder / "runs" / f"a_s{seed}", floor=floor, settings={"seed": seed}, **made)
        floor += -gain + noise * (-1) ** seed
        changed = {"seed": seed, "optimizer.lr": 0.02}
        made_run(folder / "runs" / f"b_s{seed}", floor=floor, settings=changed, **made)
    names = [[f"runs/{side}_s{n}" for n in range(1, seeds + 1)] for side in "ab"]
    return [*names[0], "--", *names[1]]


def judged(folder, *words):
    """What the judge says of runs, and its JSON."""
    done = call(main, [*words, "--json", "v.json"], folder)
    return done, read_json(folder / "v.json")


def test_better_is_one_sentence_with_interval_ratios_and_cost(tmp_path):
    done, found = judged(tmp_path, *groups(tmp_path, gain=0.1))
    assert (done.code, done.err) == (0, "")
    first, _, *figures = done.out.splitlines()
    assert first.startswith("B is better than A: its final validation loss is lower by 0.1")
    assert re.search(r"by 0.1\d* ± 0.00\d+ nats per token, and for equal loss it needs 0.\d", first)
    assert "of its seconds (5 pairs of runs; it cost 10 runs, 51,200 tokens, 800 seconds" in first
    text = "\n".join(figures)
    assert "optimizer.lr 0.02 instead of 0.01" in text
    assert "Student's t at 95 % (one look)" in text
    assert "steps to equal loss: B needs 0." in text
    assert found["verdict"] == "better"
    assert found["version"] == 1
    assert found["loss"]["mean"] == pytest.approx(-0.1, abs=0.001)
    assert found["loss"]["low"] < -0.1 < found["loss"]["high"] < 0
    assert found["tokens_to_equal_loss"]["mean"] < 1
    assert [run["seed"] for run in found["runs"] if run["side"] == "b"] == [1, 2, 3, 4, 5]


def test_worse_is_the_mirror_of_better(tmp_path):
    words = groups(tmp_path, gain=0.1)
    at = words.index("--")
    _, better = judged(tmp_path, *words)
    done, worse = judged(tmp_path, *words[at + 1 :], "--", *words[:at])
    assert done.out.startswith("B is worse than A: its final validation loss is higher by 0.1")
    assert worse["loss"]["mean"] == pytest.approx(-better["loss"]["mean"])
    ratios = [v["tokens_to_equal_loss"]["mean"] for v in (better, worse)]
    assert ratios[0] * ratios[1] == pytest.approx(1)


def test_noise_is_not_told_apart_and_what_would_tell_is_said(tmp_path):
    done, found = judged(tmp_path, *groups(tmp_path, gain=0.001, noise=0.05))
    assert "A and B are not told apart: B's final validation loss differs by -0.0" in done.out
    assert "pairs would show it in nine of ten judgements" in done.out
    assert found["verdict"] == "not told apart"
    assert found["pairs_needed"] > 5


def test_a_difference_too_small_to_matter_is_excluded(tmp_path):
    words = groups(tmp_path, gain=0, noise=0.0005)
    assert "any difference is smaller than 0.002 nats" in judged(tmp_path, *words)[0].out
    found = judged(tmp_path, *words, "--smallest", "1e-4")[1]
    assert not found["below_smallest"]


def test_equal_bits_are_the_same_to_the_bit(tmp_path):
    done, found = judged(tmp_path, *groups(tmp_path, gain=0, noise=0))
    assert done.out.startswith(
        "A and B are the same to the bit: equal final validation losses (5 pairs"
    )
    assert found["verdict"] == "the same to the bit"


@pytest.mark.parametrize(("word", "code"), [("better", 0), ("worse", 1), ("not-told-apart", 1)])
def test_a_program_learns_from_the_exit_code_whether_it_is_the_required_verdict(
    tmp_path, word, code
):
    done = call(main, [*groups(tmp_path, gain=0.1), "--require", word], tmp_path)
    assert done.code == code


def test_runs_of_another_horizon_are_refused_and_nothing_is_written(tmp_path):
    words = groups(tmp_path, gain=0.1)
    made_run(tmp_path / "runs" / "long", steps=44, settings={"seed": 9})
    before = files_below(tmp_path)
    done = call(main, [*words[:6], "runs/long", "--json", "v.json"], tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "5,120 tokens in all (40 steps of 128), B on 5,632 (44 of 128)" in done.err
    assert files_below(tmp_path) == before


class MadeRuns:
    """Stands for the runner: makes run folders without training."""

    gain = 0.1
    started: list[str] = []  # noqa: RUF012

    def __init__(self, parallel, processes):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, trials):
        for trial in trials:
            if trial.folder.is_finished():
                yield Ended(trial, 0, 0.0, taken=True)
                continue
            self.started.append(trial.name)
            seed = trial.config.seed
            floor = 3 + seed / 10 + 0.001 * (seed % 3)
            if trial.name.startswith("B"):
                floor -= self.gain + 0.002 * (seed % 2)
            self.make(trial, floor)
            yield Ended(trial, 0, 1.0)

    def make(self, trial, floor):
        network = replace(trial.config.network, vocab_size=300)
        config = trial.config.as_json(network, 2)
        made_run(trial.config.out, steps=8, every=2, floor=floor, config=config)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr("train.judge.TrialRunner", MadeRuns)
    monkeypatch.setattr(MadeRuns, "started", [])
    monkeypatch.setattr(MadeRuns, "gain", 0.1)
    return MadeRuns


def nano_words(folder, **changes):
    """A command line of a run of milliseconds, quoted as one word."""
    evals = EvalConfig(every=2, val_tokens=64, tasks_every=0, tasks=())
    words = flags(nano_config(folder, **{"eval": evals} | changes))[1:]
    at = words.index("--out")
    return " ".join([*words[:at], *words[at + 2 :]])


def test_pairs_are_run_until_the_difference_is_sure(tmp_path, made):
    words = nano_words(tmp_path)
    done = call(main, [words, f"{words} --optimizer.lr 0.02"], tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "at most 40 runs, seeds 1 to 20; judged after 3, 5, 8, 12, 20 pairs" in done.out
    assert "The runs of a pair have the same initial weights" in done.out
    assert "B is better than A" in done.out
    assert "Student's t at 99 % (one of at most 5 looks)" in done.out
    assert made.started == [f"{side} seed {n}" for n in (1, 2, 3) for side in "AB"]


def test_what_is_finished_is_taken_and_more_seeds_are_added(tmp_path, made):
    words = nano_words(tmp_path)
    sides = [words, f"{words} --optimizer.lr 0.02"]
    call(main, [*sides, "--seeds", "2"], tmp_path)
    done = call(main, [*sides, "--seeds", "4"], tmp_path)
    assert "it cost 8 runs (4 of them taken)" in done.out
    assert len(made.started) == 8
    call(main, [words, f"{words} --optimizer.lr 0.03", "--seeds", "4"], tmp_path)
    assert made.started[8:] == [f"B seed {n}" for n in (1, 2, 3, 4)]


def test_without_a_difference_it_ends_with_the_most_seeds(tmp_path, made):
    made.gain = 0.0
    words = nano_words(tmp_path)
    sides = [words, f"{words} --optimizer.lr 0.02"]
    done = call(main, [*sides, "--most-seeds", "4", "--smallest", "0"], tmp_path)
    assert "after 3 pairs: not told apart" in done.out
    assert "A and B are not told apart: " in done.out
    assert len(made.started) == 8


def test_a_run_in_the_way_with_other_settings_is_named_before_anything_runs(tmp_path, made):
    words = nano_words(tmp_path)
    call(main, [words, f"{words} --optimizer.lr 0.02", "--seeds", "2"], tmp_path)
    config = next(tmp_path.glob("runs/judge/*/s1/config.json"))
    record = json.loads(config.read_text())
    record["config"]["optimizer"]["lr"] = 0.5
    write_json(config, record)
    done = call(main, [words, f"{words} --optimizer.lr 0.02", "--seeds", "3"], tmp_path)
    assert done.code == 2
    assert "holds a run with other settings (optimizer.lr 0.5 instead of 0.0" in done.err
    assert len(made.started) == 4


@pytest.mark.parametrize(
    ("b", "words"),
    [
        ("--optimizer.lr 0", "is not a learning rate"),
        ("--no-such-flag 1", "there is no option --no-such-flag"),
        ("--seed 3", "gives --seed"),
        (
            "--steps 9",
            "A trains on 1,024 tokens in all (8 steps of 128), B on 1,152 (9 steps of 128)",
        ),
        ("--eval.every 0", "B seed 1: eval.every=0 measures nothing"),
        ("--eval.val-tokens 32", "A is validated on 64 tokens, B on 32"),
        ("--micro-batch 3", "B seed 1: batch_tokens=128 is not a multiple of"),
        ("--data nowhere", "there is no data set at nowhere"),
        ("--model.n-embd '8", "is no command line"),
        ("", "A and B are both"),
    ],
)
def test_a_side_that_is_wrong_is_named_before_anything_runs(tmp_path, made, b, words):
    a = nano_words(tmp_path)
    done = call(main, [a, f"{a} {b}".strip()], tmp_path)
    assert (done.code, made.started) == (2, [])
    assert words in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["demo"], "1 sides"),
        (["demo", "demo --steps 9", "--at", "3"], "--at compares finished runs"),
        (["runs/a", "--", "runs/b", "--seeds", "3"], "are for command lines"),
        (["demo", "demo --steps 9", "--seeds", "1"], "seeds=1 is out of range"),
        (["demo", "demo --steps 9", "--seeds", "3", "--until-sure"], "contradict"),
        (["demo", "demo --steps 9", "--error-rate", "1"], "is no chance"),
        (["runs/a", "--", "runs/b"], "A: no run is there (runs/a)"),
        (["--", "runs/b"], "A: no run is there (nothing was given)"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_sentence(tmp_path, words, error):
    done = call(main, words, tmp_path)
    assert (done.code, done.out) == (2, "")
    assert error in done.err


def test_run_folders_without_the_two_dashes_are_asked_for_with_them(tmp_path):
    words = groups(tmp_path, gain=0.1, seeds=1)
    done = call(main, [words[0], words[2]], tmp_path)
    assert done.code == 2
    assert "runs/a_s1 holds a finished run, not a command line; give A's folders, then" in done.err


def test_a_side_may_begin_with_a_flag(tmp_path, made):
    words = nano_words(tmp_path)
    (tmp_path / "own.toml").write_text("[optimizer]\nlr = 0.02\n")
    rest = words.removeprefix("gpt2 ").replace("--optimizer.lr 0.01", "")
    done = call(main, [words, f"--config own.toml {rest}", "--seeds", "2"], tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "optimizer.lr 0.02 instead of 0.01" in done.out


def test_a_run_that_diverged_is_worse_and_is_not_run_again(tmp_path, made, monkeypatch):
    finish = MadeRuns.make

    def make(self, trial, floor):
        finish(self, trial, floor)
        if trial.name.startswith("B"):
            status = {"state": "failed", "step": 5, "reason": SPIKE}
            write_json(trial.config.out / "status.json", status)

    monkeypatch.setattr(MadeRuns, "make", make)
    words = nano_words(tmp_path)
    sides = [words, f"{words} --optimizer.lr 0.02", "--seeds", "3"]
    call(main, sides, tmp_path)
    done = call(main, sides, tmp_path)
    assert "B is worse than A" in done.out
    assert "3 of 3 runs of B diverged (seed 1, 2, 3)" in done.out
    assert "(6 of them taken)" in done.out
    assert len(made.started) == 6


@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (2, 2), (75, 1)])
def test_a_run_that_fails_ends_the_judgement_with_its_words(
    tmp_path, made, monkeypatch, code, exit_code
):
    def run(self, trials):
        trials[0].log.parent.mkdir(parents=True)
        trials[0].log.write_text("step 1\nerror: the disk is full\n")
        yield Ended(trials[0], code, 1.0)

    monkeypatch.setattr(MadeRuns, "run", run)
    words = nano_words(tmp_path)
    done = call(main, [words, f"{words} --optimizer.lr 0.02", "--json", "v.json"], tmp_path)
    assert done.code == exit_code
    assert "A seed 1" in done.err
    assert "the disk is full" in done.err
    assert not (tmp_path / "v.json").exists()


@pytest.mark.long
def test_real_runs_of_a_rate_that_is_better(tmp_path):
    words = nano_words(tmp_path)
    sides = [words, f"{words} --optimizer.lr 0.02"]
    done = python("train/judge.py", *sides, "--out", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "B is better than A" in done.stdout
