"""Every item of every task compared with lm-evaluation-harness, if that is installed.

Both evaluate one model: ours from the checkpoint, the harness from its export by transformers.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.tokenizer import load_tokenizer
from eval.result import TaskResult
from eval.subject import EvalOptions, Subject
from eval.tasks.few_shot import with_examples
from eval.tasks.items import ItemSource, read_examples, read_items
from eval.tasks.registry import TASKS, measure
from model.checkpoint import load_model
from model.hf_format.convert import export_model
from tests.eval_subjects import ALONE, TINY_MODERN, tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

WORDS = "the cat sat on a mat, 'then' slept [header] in Paris ; [title] it's 3.5 ( far ) \n ok"


def texts(seed: int, count: int, words: int) -> list[str]:
    """Made-up sentences with the marks that the harness removes."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS.split(" "), k=draw.randint(1, words))).strip() or "cat"
        for _ in range(count)
    ]


def rows_of(task: str, n: int, seed: int = 1) -> list[dict]:
    """Rows in the schema of the task's published data set."""
    long, short = texts(seed, n, 40), texts(seed + 1, 4 * n, 9)
    fours = [short[4 * i : 4 * i + 4] for i in range(n)]

    def keyed(i: int) -> dict:
        choices = {"text": fours[i], "label": list("ABCD")}
        return {"id": str(i), "choices": choices, "answerKey": "ABCD"[i % 4]}

    made = {
        "hellaswag": lambda i: {
            "ind": i, "activity_label": "Baking bread", "ctx_a": long[i], "ctx_b": fours[i][0],
            "ctx": f"{long[i]} {fours[i][0]}", "endings": fours[i], "label": str(i % 4),
            "split": "val", "split_type": "indomain", "source_id": "made~up",
        },
        "piqa": lambda i: {
            "goal": long[i], "sol1": fours[i][0], "sol2": fours[i][1], "label": i % 2
        },
        "arc_easy": lambda i: {"question": long[i], **keyed(i)},
        "openbookqa": lambda i: {"question_stem": long[i], **keyed(i)},
        "lambada": lambda i: {"text": f"{long[i]} {fours[i][0]}"},
        "wikitext": lambda i: {"page": " = Title = \n " + " @-@ ".join(texts(i, 5, 30))},
    }  # fmt: skip
    return [made[task](i) for i in range(n)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("lm_eval")
    checkpoint = tiny_checkpoint(folder / "checkpoint", shape=getattr(request, "param", None))
    export_model(checkpoint, folder / "exported")
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def harness(folder, name: str, path, train=None, few_shot=0) -> tuple[list[dict], dict[str, float]]:
    """The harness's samples, in the order of the file, and its numbers."""
    from lm_eval import tasks
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    files = dict.fromkeys(("train", "validation", "test"), str(path))
    files["train"] = str(train or path)
    [include] = (p for p in Path(tasks.__file__).parent.rglob(f"{name}.yaml"))
    task = {"include": str(include), "task": f"local_{name}", "dataset_path": "json",
            "dataset_name": None, "dataset_kwargs": {"data_files": files}}  # fmt: skip
    spec = path.with_suffix(".yaml")
    spec.write_text(json.dumps(task))  # JSON is YAML
    model = HFLM(str(folder / "exported"), device="cpu", dtype="float32", batch_size=4)
    found = simple_evaluate(model, tasks=[str(spec)], num_fewshot=few_shot, bootstrap_iters=0)
    [samples] = found["samples"].values()
    [numbers] = found["results"].values()
    return sorted(samples, key=lambda sample: sample["doc_id"]), numbers


def subject_of(exported: Path) -> Subject:
    folder = exported / "checkpoint"
    model = load_model(folder, torch.device("cpu"))
    return Subject(model, load_tokenizer(folder / "tokenizer"), ALONE)


def check_items(tag: str, ours: TaskResult, samples: list[dict], theirs: dict[str, float]) -> None:
    """Compare every loss, every answer and the numbers."""
    table = ours.items[tag]
    answers = [s["filtered_resps"] for s in samples]
    losses = -np.array([[float(answer[0]) for answer in item] for item in answers])
    np.testing.assert_allclose(table.losses, losses, rtol=1e-4, atol=1e-4)
    for key, chosen in table.predictions.items():
        np.testing.assert_array_equal(chosen == table.labels, [bool(s[key]) for s in samples])
        assert ours.tags[f"{tag}/{key}"] == pytest.approx(theirs[f"{key},none"])


@pytest.mark.parametrize(
    ("exported", "task", "name"),
    [
        (None, "hellaswag", "hellaswag"),
        (None, "piqa", "piqa"),
        (None, "arc_easy", "arc_easy"),
        (None, "openbookqa", "openbookqa"),
        (None, "lambada", "lambada_openai"),
        (None, "wikitext", "wikitext"),
        (TINY_MODERN, "hellaswag", "hellaswag"),
        (TINY_MODERN, "wikitext", "wikitext"),
    ],
    indirect=["exported"],
)
def test_every_item_is_scored_as_the_harness_scores_it(exported, tmp_path, monkeypatch, task, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = write(tmp_path / "rows.jsonl", rows_of(task, 24))
    samples, theirs = harness(exported, name, path)
    ours = measure(subject_of(exported), EvalOptions(task_file=(f"{task}={path}",)), [task])
    tag = "hellaswag_harness" if task == "hellaswag" else task
    if task == "wikitext":
        for key in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            assert ours.tags[f"wikitext/{key}"] == pytest.approx(theirs[f"{key},none"], rel=1e-4)
        return
    check_items(tag, ours, samples, theirs)
    if task == "lambada":
        wanted = theirs["perplexity,none"]
        assert ours.tags["lambada/perplexity"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("task", ["hellaswag", "piqa", "arc_easy", "openbookqa"])
def test_few_shot_prompts_and_scores_equal_the_harness(exported, tmp_path, monkeypatch, task):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = TASKS[task].data
    assert isinstance(source, ItemSource)
    rows, others = rows_of(task, 24), rows_of(task, 30, seed=7)
    train = others + rows if source.spare_example else others
    path, pool = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "train.jsonl", train)
    samples, theirs = harness(exported, task, path, pool, few_shot=3)
    files = (f"{task}={path}", f"{task}.train={pool}")
    options = EvalOptions(task_file=files, few_shot=3)
    ours = measure(subject_of(exported), options, [task])
    name = "hellaswag_harness_3shot" if task == "hellaswag" else f"{task}_3shot"
    check_items(name, ours, samples, theirs)
    assert ours.tags[f"{name}/truncated_rows"] > 0  # 48 tokens are few
    read = read_items(source, subject_of(exported), options)
    examples = read_examples(source, subject_of(exported), options)
    if task == "hellaswag":
        read, examples = ([harness for _, harness in pairs] for pairs in (read, examples))
    contexts = [item.context for item in with_examples(source, read, examples, 3)]
    assert contexts == [sample["arguments"][0][0] for sample in samples]
