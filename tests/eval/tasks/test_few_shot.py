"""Few-shot examples: drawn as lm-evaluation-harness draws them, and named in tags."""

import json
import random

import numpy as np
import pytest

from eval.scoring.multiple_choice import Item, score_items
from eval.subject import EvalOptions
from eval.tasks.few_shot import SEED, with_examples
from eval.tasks.hellaswag import HELLASWAG, hellaswag
from eval.tasks.questions import ARC_EASY, PIQA, question_task
from eval.tasks.registry import measure
from tests.eval_subjects import tiny_subject

SUBJECT = tiny_subject()


def question(i: int) -> Item:
    return Item(f"Question: {i}?\nAnswer:", (f"no {i}", f"yes {i}"), 1, harness=True)


def file_of(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def piqa_rows(begin: int, count: int) -> list[dict]:
    numbers = range(begin, begin + count)
    return [{"goal": f"go {i}", "sol1": "so", "sol2": f"or {i}", "label": i % 2} for i in numbers]


def piqa_options(folder, **changes) -> EvalOptions:
    files = {"piqa": piqa_rows(0, 6), "piqa.train": piqa_rows(50, 9)}
    named = (f"{n}={file_of(folder / f'{n}.jsonl', rows)}" for n, rows in files.items())
    return EvalOptions(task_file=tuple(named), **changes)


def test_an_example_is_its_question_its_right_answer_and_a_blank_line():
    [item] = with_examples(ARC_EASY, [question(0)], [question(7)], 1)
    assert item.context == "Question: 7?\nAnswer: yes 7\n\nQuestion: 0?\nAnswer:"
    assert (item.endings, item.label, item.harness) == (("no 0", "yes 0"), 1, True)


@pytest.mark.parametrize(("source", "drawn"), [(ARC_EASY, 2), (PIQA, 3), (HELLASWAG, 3)])
def test_items_draw_their_examples_in_order_from_one_random_stream(source, drawn):
    pool = [question(i) for i in range(100, 140)]
    stream = random.Random(SEED)
    for item in with_examples(source, [question(i) for i in range(5)], pool, 2):
        first, second = stream.sample(pool, drawn)[:2]
        assert item.context.startswith(f"{first.context} {first.endings[1]}\n\n{second.context} ")


def test_with_a_spare_example_a_question_is_never_an_example_of_itself():
    pool = [question(i) for i in range(4)]
    for item, plain in zip(with_examples(PIQA, pool, pool, 3), pool, strict=True):
        assert item.context.count(plain.context) == 1
        assert item.context.count("\n\n") == 3


def test_a_question_that_is_in_the_pool_does_not_change_later_draws():
    pool = [question(i) for i in range(4)]
    known, new = (
        with_examples(ARC_EASY, [first, question(9)], pool, 3)[1]
        for first in (pool[0], question(8))
    )
    assert known == new


@pytest.mark.parametrize(("source", "count"), [(ARC_EASY, 5), (PIQA, 4)])
def test_too_many_examples_are_an_error_with_the_cure(source, count):
    pool = [question(i) for i in range(4)]
    with pytest.raises(ValueError, match=rf"few_shot={count} needs .* use fewer, or a larger"):
        with_examples(source, [question(9)], pool, count)


def test_tags_and_items_name_the_number_of_examples(tmp_path):
    result = measure(SUBJECT, piqa_options(tmp_path, few_shot=2), ["piqa", "pydoc_choice"])
    assert {tag.split("/")[0] for tag in result.tags} == {"piqa_2shot", "pydoc_choice"}
    assert set(result.items) == {"piqa_2shot", "pydoc_choice"}


def test_a_prompt_that_does_not_fit_loses_its_first_examples_and_is_counted(tmp_path):
    options = piqa_options(tmp_path, few_shot=7)
    result = question_task(PIQA, SUBJECT, options)
    assert result.tags["piqa_7shot/truncated_rows"] == 12
    long = question_task(PIQA, tiny_subject(context_length=200), options)
    assert "piqa_7shot/truncated_rows" not in long.tags


def test_a_long_prompt_is_scored_as_its_last_tokens():
    [item] = with_examples(ARC_EASY, [question(0)], [question(i) for i in range(1, 9)], 8)
    encode, T = SUBJECT.tokenizer.encode, SUBJECT.model.config.context_length
    found = score_items(SUBJECT, [item], EvalOptions()).sums[0]
    for ending, nats in zip(item.endings, found, strict=True):
        room = T + 1 - len(encode(" " + ending))
        kept = SUBJECT.tokenizer.decode(encode(item.context)[-room:])
        alone = Item(kept, (ending, "x"), 0, harness=True)
        wanted = score_items(SUBJECT, [alone], EvalOptions()).sums[0, 0]
        np.testing.assert_allclose(nats, wanted, rtol=1e-5)


def test_hellaswag_with_examples_is_harness_style_only(tmp_path):
    row = {"activity_label": "Baking", "ctx_a": "She bakes", "ctx_b": "", "ctx": "She bakes",
           "endings": ["a", "b", "c", "d"], "label": "2"}  # fmt: skip
    rows = [{**row, "ctx_a": f"She bakes {i}"} for i in range(6)]
    names = ("hellaswag", "hellaswag.train")
    files = tuple(f"{n}={file_of(tmp_path / n, rows[i::2])}" for i, n in enumerate(names))
    tags = hellaswag(SUBJECT, EvalOptions(task_file=files, few_shot=1)).tags
    assert {tag.split("/")[0] for tag in tags} == {"hellaswag_harness_1shot"}


def test_bad_numbers_and_names_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="few_shot=-1 is negative"):
        EvalOptions(few_shot=-1)
    path = file_of(tmp_path / "x.jsonl", [])
    with pytest.raises(ValueError, match="there is no task pika"):
        measure(SUBJECT, EvalOptions(task_file=(f"pika.train={path}",)), ["pydoc_choice"])
    with pytest.raises(ValueError, match=r"the file for piqa\.train, does not exist"):
        EvalOptions(task_file=(f"piqa.train={tmp_path / 'nothing'}",))
