"""The other tasks, from local files and from a Hub on this machine; rows with a bad schema."""

import json
import math
import re
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eval.result import perplexity
from eval.subject import EvalOptions
from eval.tasks.hellaswag import both_items, hellaswag, without_marks
from eval.tasks.items import ItemSource, rows_of_file
from eval.tasks.lambada import LAMBADA, lambada, lambada_item
from eval.tasks.questions import arc_item, openbookqa_item, piqa_item
from eval.tasks.registry import TASKS, measure, run_tasks
from eval.tasks.wikitext import detokenized, text_windows, wikitext
from tests.eval_subjects import tiny_subject
from tests.fake_hub import FakeHub
from tests.hub_fixtures import Maker
from tests.launching import python

SUBJECT = tiny_subject()
CHOICES = {"text": ["ice", "steam", "rain"], "label": ["1", "2", "3"]}
PIQA = {"goal": "Boil water", "sol1": "heat it", "sol2": "cool it", "label": 0}
ARC = {"question": "Boiling gives?", "choices": CHOICES, "answerKey": "2"}
BOOK = {"question_stem": "Boiling gives", "choices": CHOICES, "answerKey": " 3"}
SWAG = {
    "activity_label": "Baking", "ctx_a": "[header] How to bake [title] Heat.  Then",
    "ctx_b": "THE cook", "ctx": "[header] How to bake [title] Heat.  Then the cook", "label": "1",
    "endings": [" waits [substeps] long.", "eats.", "sleeps.", "sings."],
}  # fmt: skip


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_are_those_of_the_harness():
    assert piqa_item("x", PIQA).context == "Question: Boil water\nAnswer:"
    arc = arc_item("x", ARC)
    assert (arc.context, arc.endings, arc.label) == (
        "Question: Boiling gives?\nAnswer:", ("ice", "steam", "rain"), 1)  # fmt: skip
    assert openbookqa_item("x", BOOK).context == "Boiling gives"
    assert openbookqa_item("x", BOOK).label == 2
    word = lambada_item("x", {"text": "He went  home."})
    assert (word.context, word.endings) == ("He went ", ("home.",))


def test_hellaswag_is_read_in_both_styles():
    plain, harness = both_items("x", SWAG)
    assert (plain.context, plain.endings) == (SWAG["ctx"], tuple(SWAG["endings"]))
    assert harness.context == "Baking: How to bake. Heat. Then The cook"
    assert harness.endings[0] == "waits long."
    assert without_marks("[title] a [title] b") == " a. b"
    assert not plain.harness
    assert harness.harness


def test_one_call_scores_both_styles_with_standard_errors_and_items(tmp_path):
    path = write(tmp_path / "swag.jsonl", SWAG, {**SWAG, "label": 2})
    result = hellaswag(SUBJECT, EvalOptions(hellaswag_file=path))
    tags = {f"{t}{e}" for t in ("acc", "acc_norm") for e in ("", "_stderr")}
    assert set(result.tags) == {
        f"{s}/{t}" for s in ("hellaswag", "hellaswag_harness") for t in tags
    }
    table = result.items["hellaswag_harness"]
    assert table.lengths[0].tolist() == [11, 5, 7, 6]
    assert result.items["hellaswag"].lengths.max() < 9
    assert table.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (piqa_item, {"goal": "x"}, "here must have goal, sol1, sol2, label"),
        (piqa_item, {**PIQA, "label": -1}, "here has label '-1', which must be 0 to 1"),
        (piqa_item, {**PIQA, "label": ""}, "here has an empty label"),
        (piqa_item, {**PIQA, "sol2": None}, "here must have a text as context and a list"),
        (arc_item, {**ARC, "answerKey": "D"}, "here has answerKey 'D', which is none of"),
        (arc_item, {**ARC, "answerKey": ""}, "here has an empty label"),
        (openbookqa_item, ARC, "here must have question_stem"),
        (lambada_item, {"text": ""}, "here must have a text"),
        (both_items, {**SWAG, "ctx_a": 5}, "here must have texts"),
        (both_items, {k: SWAG[k] for k in ("ctx", "endings", "label")}, "activity_label"),
    ],
)
def test_a_row_with_another_schema_is_named_with_the_rule(read, row, message):
    with pytest.raises(ValueError, match=message):
        read("here", row)


def test_parquet_and_json_lines_give_the_same_rows(tmp_path):
    lines = write(tmp_path / "a.jsonl", ARC, ARC)
    pq.write_table(pa.Table.from_pylist([ARC, ARC]), tmp_path / "a.parquet")
    both = [[row for _, row in rows_of_file(p)] for p in (lines, tmp_path / "a.parquet")]
    assert both[0] == both[1]
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read"):
        list(rows_of_file(tmp_path / "b.parquet"))


def test_every_task_accepts_a_local_file_by_the_same_option(tmp_path):
    files = {"piqa": PIQA, "arc_easy": ARC, "openbookqa": BOOK, "lambada": {"text": "a b c"},
             "wikitext": {"page": " = A = \n b c \n"}}  # fmt: skip
    options = EvalOptions(
        task_file=tuple(
            f"{t}={write(tmp_path / f'{t}.jsonl', row, row)}" for t, row in files.items()
        )
    )
    result = measure(SUBJECT, options, list(files))
    assert {tag.split("/")[0] for tag in result.tags} == set(files) == set(result.items)
    assert files.keys() < TASKS.keys()


def test_an_option_for_an_unknown_task_or_missing_file_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", PIQA)
    with pytest.raises(ValueError, match="there is no task pika"):
        run_tasks(SUBJECT, EvalOptions(task_file=(f"pika={path}",)), ["pydoc_choice"])
    with pytest.raises(ValueError, match="task_file=piqa names no file; write NAME=PATH"):
        EvalOptions(task_file=("piqa",))
    with pytest.raises(ValueError, match="the file for piqa, does not exist"):
        EvalOptions(task_file=(f"piqa={tmp_path / 'nothing'}",))


def test_lambada_counts_a_word_as_right_if_greedy_decoding_gives_it(tmp_path):
    text = "The cat sat on the"
    ids = SUBJECT.tokenizer.encode(text)
    logits = SUBJECT.model.masked_logits(SUBJECT.model.hidden(torch.tensor([ids])))[0, -1]
    order = logits.log_softmax(-1).sort(descending=True)
    words = [SUBJECT.tokenizer.decode([int(i)]) for i in order.indices[:50_000]]
    best, other = (
        next(i for i, w in enumerate(words) if i >= at and w[0] == " " and w[1:].isalpha())
        for at in (0, 5000)
    )
    rows = [{"text": text + words[i]} for i in (best, other)]
    path = write(tmp_path / "l.jsonl", *rows)
    result = lambada(SUBJECT, EvalOptions(task_file=(f"lambada={path}",)))
    losses = -order.values[[best, other]].detach().numpy()
    assert result.tags["lambada/perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-4)
    np.testing.assert_allclose(result.items["lambada"].losses[:, 0], losses, rtol=1e-4)
    assert result.tags["lambada/acc"] == (0.5 if best == 0 else 0)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 12, 13])
def test_windows_are_full_and_predict_every_token_once(length):
    ids = list(range(100, 100 + length))
    windows = list(text_windows(ids, 0, 6))
    assert [t for w in windows for t in w.continuations[0]] == ids
    for number, window in enumerate(windows):
        assert len(window.continuations) == 1
        assert window.length == (6 if number else min(6, length))
        stream = [*window.context, *window.continuations[0]]
        assert stream[1:] == list(range(stream[1], stream[1] + len(stream) - 1))


def test_wikitext_divides_by_the_words_and_bytes_of_the_original(tmp_path):
    page = ' = Ä title = \n 10 @,@ 000 men , said " he " . \n'
    path = write(tmp_path / "w.jsonl", {"page": page})
    result = wikitext(SUBJECT, EvalOptions(task_file=(f"wikitext={path}",)))
    nats = result.items["wikitext"].losses[0, 0]
    assert detokenized(page) == ' = Ä title =\n10,000 men, said "he".\n'
    words = math.log(result.tags["wikitext/word_perplexity"])
    assert words == pytest.approx(nats / 16)  # the empty texts at both ends count, as there
    assert result.tags["wikitext/bits_per_byte"] == pytest.approx(
        nats / math.log(2) / len(page.encode())
    )


def test_a_perplexity_too_large_for_a_float_is_infinite():
    assert perplexity(710.0) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert perplexity(1.0) == math.e


def test_data_from_the_hub_is_pinned_to_a_commit():
    sources = [task.data for task in TASKS.values() if isinstance(task.data, ItemSource)]
    assert len(sources) == len(TASKS) - 3  # two of validation and pydoc_choice read none
    hubs = [hub for source in sources for hub in (source.hub, source.examples) if hub]
    assert all(re.fullmatch(r"[0-9a-f]{40}", hub.revision) for hub in hubs)


FETCH = """
import sys
from dataclasses import replace
from eval.tasks.items import rows_of_hub
from eval.tasks.lambada import LAMBADA
try:
    print(len(list(rows_of_hub(replace(LAMBADA.hub, revision=sys.argv[1]), LAMBADA.option))))
except ValueError as error:
    print(f"{type(error).__name__}: {error}")
"""


def fetch(url: str, home: Path, commit: str) -> str:
    """Fetch in another process, because huggingface_hub reads its address at import."""
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = python("-c", FETCH, commit, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_split_comes_from_the_hub_and_later_from_the_cache(tmp_path):
    Maker(tmp_path / "hub", 0).lambada(12)
    with FakeHub(tmp_path / "hub") as hub:
        url = hub.url
        with urlopen(f"{url}/api/datasets/{LAMBADA.hub.repository}") as answer:
            commit = json.load(answer)["sha"]
        assert fetch(url, tmp_path / "home", commit) == "12"
    assert fetch(url, tmp_path / "home", commit) == "12"
    gone = fetch(url, tmp_path / "other", commit)
    assert gone.startswith(
        "DataUnavailable: EleutherAI/lambada_openai cannot be downloaded from the Hub"
    )
    assert "--task-file lambada=FILE" in gone
