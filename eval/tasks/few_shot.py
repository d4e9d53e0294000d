"""Few-shot prompts: solved examples before a question, the same as in lm-evaluation-harness.

Its rule: each task has one random stream with seed 1234, from which the items in turn draw their
examples out of the training split. An example is context, space, right ending and a blank line.
Source: lm_eval/api/samplers.py and api/task.py `fewshot_context`, version 0.4.13
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from eval.scoring.multiple_choice import Item
from eval.tasks.items import ItemSource

SEED = 1234  # lm-evaluation-harness's fewshot_random_seed
_SEPARATOR = "\n\n"


def few_shot_name(task: str, count: int) -> str:
    """The name of a task's results with `count` examples, such as piqa_5shot."""
    return f"{task}_{count}shot" if count else task


def with_examples(
    source: ItemSource, items: Sequence[Item], pool: Sequence[Item], count: int
) -> tuple[Item, ...]:
    """Put `count` solved items of `pool` before the context of each item.

    With `source.spare_example`, an item is never an example of itself.
    Raises: ValueError if the pool is too small.
    """
    drawn = count + source.spare_example  # True counts as 1
    if drawn > len(pool):
        raise ValueError(
            f"few_shot={count} needs {drawn} examples, but {source.task} has only {len(pool)}; "
            f"use fewer, or a larger --task-file {source.task}.train=FILE"
        )
    random = Random(SEED)
    return tuple(_prompted(item, pool, drawn, count, random) for item in items)


def _prompted(item: Item, pool: Sequence[Item], drawn: int, count: int, random: Random) -> Item:
    # All items draw from one stream, so this line must run once per item, in item order.
    examples = random.sample(pool, drawn)
    if drawn > count:
        examples = [one for one in examples if one != item][:count]
    if len(examples) < count:
        others = [one for one in pool if one != item]
        if len(others) < count:
            raise ValueError(
                f"few_shot={count} needs {count} examples besides the question itself, there are "
                f"only {len(others)}; use fewer, or give a larger training file"
            )
        examples = random.sample(others, count)
    solved = (f"{one.context} {one.endings[one.label]}{_SEPARATOR}" for one in examples)
    return replace(item, context="".join(solved) + item.context)
