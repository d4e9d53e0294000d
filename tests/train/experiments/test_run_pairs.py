"""Groups of finished runs: paired by seed, and refused where they do not compare."""

import pytest

from tests.made_runs import made_run
from train.experiments.run_pairs import pair_runs
from train.reporting.run_summary import summarize_run

SPIKE = "3 steps in a row up to step 9 had a loss or gradient that is not finite; their updates"


def group(folder, seeds, settings=None, **made):
    """Summaries of runs with these seeds; the floor of the loss is 3 + seed / 100."""
    return [
        summarize_run(
            made_run(
                folder / f"s{seed}",
                **{"floor": 3 + seed / 100} | made,
                settings={"seed": seed} | (settings or {}),
            ),
            f"{folder.name}/s{seed}",
        )
        for seed in seeds
    ]


def test_runs_of_one_seed_are_a_pair_in_any_order(tmp_path):
    pairs = pair_runs(
        group(tmp_path / "a", [3, 1, 2]),
        group(tmp_path / "b", [2, 3, 1, 4], {"optimizer.lr": 0.02}),
    )
    assert pairs.paired
    assert [end.run.seed for end in pairs.a] == [end.run.seed for end in pairs.b] == [1, 2, 3]
    assert pairs.a[0].loss == pytest.approx(3.01 + 4 / 41)
    assert pairs.differences == {"optimizer.lr": (0.01, 0.02)}
    assert pairs.same_batches
    assert any("left out of B" in note and note.endswith(": 4") for note in pairs.notes)


def test_groups_of_other_seeds_are_no_pairs_and_that_is_said(tmp_path):
    pairs = pair_runs(group(tmp_path / "a", [1, 2]), group(tmp_path / "b", [2, 3, 4, 5, 6]))
    assert not pairs.paired
    assert (len(pairs.a), len(pairs.b)) == (2, 5)
    assert "Welch" in " ".join(pairs.notes)


def test_a_batch_of_another_size_is_no_same_batch_but_the_same_horizon(tmp_path):
    half = {"batch_tokens": 64}
    pairs = pair_runs(group(tmp_path / "a", [1]), group(tmp_path / "b", [1], half, steps=80))
    assert not pairs.same_batches


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({"seeds": []}, {}, ["A has no run", "give its run folders"]),
        ({}, {"steps": 44}, ["5,120 tokens", "5,632", "--steps"]),
        ({}, {"data_fingerprint": "b" * 64}, ["different text", "b" * 16, "one data set"]),
        ({}, {"settings": {"eval.val_tokens": 32}}, ["different text", "64 and 32", "--eval.val"]),
        ({"state": "preempted", "done": 20}, {}, ["20 of 40 steps", "preempted", "--at"]),
        ({"state": "failed", "done": 20}, {}, ["20 of 40 steps", "failed"]),
        ({}, {"every": 1000, "last": False}, ["not validated after step 40"]),
    ],
)
def test_runs_that_do_not_compare_are_refused_with_values_and_cure(tmp_path, a, b, words):
    with pytest.raises(ValueError, match="; give|; train|; finish") as error:
        pair_runs(altered(tmp_path / "a", a), altered(tmp_path / "b", b))
    assert all(word in str(error.value) for word in words), error.value


def altered(folder, change):
    """A group of two runs with one change."""
    change = {"seeds": [1, 2]} | change
    done, last = change.pop("done", None), change.pop("last", True)
    runs = group(folder, change.pop("seeds"), change.pop("settings", None), **change)
    for path in folder.glob("*/metrics.jsonl"):
        lines = path.read_text().splitlines()
        kept = lines[:done] if done else lines if last else lines[:-1]
        path.write_text("\n".join(kept) + "\n")
        if done:
            status = path.with_name("status.json")
            status.write_text(status.read_text().replace('"step": 40', f'"step": {done}'))
    return [summarize_run(folder / run.name.split("/")[1], run.name) for run in runs]


def test_a_group_with_one_seed_twice_or_mixed_settings_is_refused(tmp_path):
    a = group(tmp_path / "a", [1, 2])
    with pytest.raises(ValueError, match="A has seed 1 2 times"):
        pair_runs([*a, a[0]], a)
    mixed = [*group(tmp_path / "b", [1]), *group(tmp_path / "c", [2], {"optimizer.lr": 0.5})]
    with pytest.raises(ValueError, match=r"B differ in optimizer.lr \(0.01, 0.5\)"):
        pair_runs(a, mixed)


def test_other_micro_batches_in_a_group_are_noted(tmp_path):
    a = [*group(tmp_path / "a", [1]), *group(tmp_path / "c", [2], {"micro_batch": 4})]
    notes = pair_runs(a, group(tmp_path / "b", [1, 2])).notes
    assert "the runs of A also differ in micro_batch, which only rounds" in notes


def test_unfinished_runs_are_compared_after_a_step_that_all_have_reached(tmp_path):
    a = altered(tmp_path / "a", {"state": "preempted", "done": 31})
    b = altered(tmp_path / "b", {})
    pairs = pair_runs(a, b, at=30)
    assert [end.loss for end in pairs.a] == [end.loss for end in pairs.b]
    assert pairs.b[0].run.val_curve.tokens == [0, 1280, 2560, 3840]
    with pytest.raises(ValueError, match=r"not validated after step 25 .* at 0, 10, 20, 30"):
        pair_runs(a, b, at=25)


def test_a_run_that_diverged_counts_with_its_largest_loss(tmp_path):
    b = altered(tmp_path / "b", {"state": "failed", "done": 12})
    for path in (tmp_path / "b").glob("*/status.json"):
        path.write_text(path.read_text().replace('"reason": ""', f'"reason": "{SPIKE}"'))
    b = [summarize_run(tmp_path / run.name, run.name) for run in b]
    pairs = pair_runs(altered(tmp_path / "a", {}), b)
    assert [end.loss for end in pairs.b] == pytest.approx([7.01, 7.02])
    assert "2 of 2 runs of B diverged (seed 1, 2)" in " ".join(pairs.notes)
