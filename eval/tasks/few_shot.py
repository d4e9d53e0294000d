"""Few-shot prompts: solved examples before a question, the same ones as lm-evaluation-harness's.

Its rule: one random stream a task, seeded with 1234, from which each item in turn draws examples
out of the training split; each is shown as context, space, right ending and a blank line.
Source: lm_eval/api/samplers.py and api/task.py `fewshot_context`, version 0.4.13
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from eval.scoring.multiple_choice import Item
from eval.tasks.items import ItemSource

SEED = 1234  # the harness's fewshot_random_seed
BETWEEN = "\n\n"


def few_shot_name(task: str, count: int) -> str:
    """What to call a task's results with so many examples, so that nobody confuses them."""
    return f"{task}_{count}shot" if count else task


def with_examples(
    source: ItemSource, items: Sequence[Item], pool: Sequence[Item], count: int
) -> tuple[Item, ...]:
    """The items, each with `count` solved ones of `pool` before its context.

    Where the harness draws one to spare, an item is never an example of itself.
    Raises: ValueError if the pool is too small.
    """
    drawn = count + source.spare_example
    if drawn > len(pool):
        raise ValueError(
            f"few_shot={count} needs {drawn} examples, {source.task} has only {len(pool)} to draw "
            f"from; use fewer, or a larger --task-file {source.task}.train=FILE"
        )
    random = Random(SEED)
    return tuple(_prompted(item, pool, drawn, count, random) for item in items)


def _prompted(item: Item, pool: Sequence[Item], drawn: int, count: int, random: Random) -> Item:
    examples = random.sample(pool, drawn)
    if drawn > count:
        examples = [one for one in examples if one != item][:count]
    if len(examples) < count:
        others = [one for one in pool if one != item]
        if len(others) < count:
            raise ValueError(
                f"few_shot={count} needs so many examples besides the question itself, there are "
                f"{len(others)}; use fewer, or give a larger training file"
            )
        examples = random.sample(others, count)
    solved = (f"{one.context} {one.endings[one.label]}{BETWEEN}" for one in examples)
    return replace(item, context="".join(solved) + item.context)
