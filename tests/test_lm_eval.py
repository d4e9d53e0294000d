"""Item by item against lm-evaluation-harness, where it is installed, on files in the real schemas.

Both read one exported model: ours as it is, the harness by transformers.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.tokenizer import load_tokenizer
from eval.subject import EvalOptions, Subject
from eval.tasks import measure
from model.checkpoint import load_model
from model.huggingface import ExportOptions, export_model
from tests.eval_subjects import ALONE, tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

WORDS = "the cat sat on a mat, 'then' slept [header] in Paris ; [title] it's 3.5 ( far ) \n ok"


def texts(seed: int, count: int, words: int) -> list[str]:
    """Made-up sentences with the marks that the harness's cleaning is about."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS.split(" "), k=draw.randint(1, words))).strip() or "cat"
        for _ in range(count)
    ]


def rows_of(task: str, n: int) -> list[dict]:
    """Rows in the schema of the task's published data set."""
    long, short = texts(1, n, 40), texts(2, 4 * n, 9)
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
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    checkpoint = tiny_checkpoint(folder / "checkpoint")
    export_model(ExportOptions(checkpoint, folder / "exported"))
    return folder


def harness(folder, name: str, path) -> tuple[list[dict], dict[str, float]]:
    """The harness's own samples, in the order of the file, and its numbers."""
    from lm_eval import tasks
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    files = dict.fromkeys(("train", "validation", "test"), str(path))
    [include] = (p for p in Path(tasks.__file__).parent.rglob(f"{name}.yaml"))
    task = {"include": str(include), "task": f"local_{name}", "dataset_path": "json",
            "dataset_name": None, "dataset_kwargs": {"data_files": files}}  # fmt: skip
    spec = path.with_suffix(".yaml")
    spec.write_text(json.dumps(task))  # JSON is YAML
    model = HFLM(str(folder / "exported"), device="cpu", dtype="float32", batch_size=4)
    found = simple_evaluate(model, tasks=[str(spec)], bootstrap_iters=0)
    [samples] = found["samples"].values()
    [numbers] = found["results"].values()
    return sorted(samples, key=lambda sample: sample["doc_id"]), numbers


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("hellaswag", "hellaswag"),
        ("piqa", "piqa"),
        ("arc_easy", "arc_easy"),
        ("openbookqa", "openbookqa"),
        ("lambada", "lambada_openai"),
        ("wikitext", "wikitext"),
    ],
)
def test_every_item_is_scored_as_the_harness_scores_it(exported, tmp_path, monkeypatch, task, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task, 24)))
    samples, theirs = harness(exported, name, path)
    checkpoint = exported / "checkpoint"
    subject = Subject(
        load_model(checkpoint, torch.device("cpu")), load_tokenizer(checkpoint / "tokenizer"), ALONE
    )
    ours = measure(subject, EvalOptions(task_file=(f"{task}={path}",)), [task])
    tag = "hellaswag_harness" if task == "hellaswag" else task
    table = ours.items[tag]
    if task == "wikitext":
        for key in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            assert ours.tags[f"wikitext/{key}"] == pytest.approx(theirs[f"{key},none"], rel=1e-4)
        return
    answers = [s["filtered_resps"] for s in samples]
    losses = -np.array([[float(answer[0]) for answer in item] for item in answers])
    np.testing.assert_allclose(table.losses, losses, rtol=1e-4, atol=1e-4)
    for key, chosen in table.predictions.items():
        np.testing.assert_array_equal(chosen == table.labels, [bool(s[key]) for s in samples])
        assert ours.tags[f"{tag}/{key}"] == pytest.approx(theirs[f"{key},none"])
    if task == "lambada":
        wanted = theirs["perplexity,none"]
        assert ours.tags["lambada/perplexity"] == pytest.approx(wanted, rel=1e-4)
