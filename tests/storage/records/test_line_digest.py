"""The running digest of metric lines: all figures but speeds count, and so does their order."""

from storage.records.line_digest import LineDigest

LINES = [
    {"step": step, "train/loss": 3.0 - step, "data/digest": f"{step:016x}", "speed/mfu": 0.1}
    for step in range(4)
]


def digest_of(lines):
    digest = LineDigest.begin(0, "weights")
    for line in lines:
        digest.add(line)
    return digest


def test_speeds_do_not_count_and_every_other_figure_does():
    whole = digest_of(LINES)
    assert whole.until == 4
    assert digest_of([line | {"speed/mfu": 0.2} for line in LINES]) == whole
    edited = digest_of([LINES[0] | {"train/loss": 2.999}, *LINES[1:]])
    assert edited.value != whole.value


def test_a_line_that_is_missing_or_in_another_place_changes_it():
    values = [digest_of(lines).value for lines in (LINES, LINES[:2] + LINES[3:], LINES[::-1])]
    assert len(set(values)) == 3


def test_the_last_line_of_a_run_belongs_to_no_step():
    assert digest_of([*LINES, {"step": 4, "val/loss": 1.0}]) == digest_of(LINES)


def test_it_depends_on_the_weights_with_which_it_began():
    assert LineDigest.begin(0, "a").value != LineDigest.begin(0, "b").value
