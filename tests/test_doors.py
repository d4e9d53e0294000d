"""What CONTRIBUTING.md shows how to add can be added so, and works on the command line.

The code and the commands are taken from the page. All of it is added to one copy of the product,
whose scripts then run in processes of their own.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from data_prep.dataset.shards import open_data_set
from tests.fake_hub import FakeHub
from tests.hub_fixtures import Maker
from tests.launching import REPO, Done, python
from tests.runs import GOLDEN, final_bytes, forget_after, lines, losses, starts

PAGE = (REPO / "CONTRIBUTING.md").read_text().partition("\n## Adding something\n")[2]
SECTIONS = {
    section.partition("\n")[0]: section for section in PAGE.split("\n## ")[0].split("\n### ")[1:]
}
PRODUCT = ("storage", "data_prep", "model", "parallel", "eval", "train")
# Every run is this small, whatever the page trains.
SMALL = """--device cpu --batch-tokens 128 --micro-batch 1 --context-length 64 --steps 4
    --schedule.warmup-steps 1 --model.n-layer 1 --model.n-head 1 --model.n-embd 8 --eval.every 0
    --eval.tasks-every 4 --eval.items 2 --sample.every 0 --save.every 2 --save.every-minutes 0"""


def code_of(section: str) -> list[tuple[str, str]]:
    """The files that a section of the page writes or changes, each with its code."""
    return re.findall(
        r"`([\w/]+\.py)`[^`]*\n\n```(?:python|diff)\n(.*?)^```", SECTIONS[section], re.DOTALL | re.M
    )


def commands_of(section: str) -> list[list[str]]:
    """The command lines of a section, without `python`."""
    blocks = re.findall(r"^```\n(python .*?)^```", SECTIONS[section], re.DOTALL | re.M)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def write(path: Path, code: str) -> None:
    """Write a new file, or add to an old one the lines that a diff adds."""
    if not code.startswith((" ", "+")):
        assert not path.exists(), path
        path.write_text(code)
        return
    text = path.read_text()
    for hunk in code.split("@@\n"):
        hunk_lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in hunk_lines if line.startswith(" "))
        assert text.count(before) == 1, f"{path} does not have once:\n{before}"
        text = text.replace(before, "".join(line[1:] for line in hunk_lines))
    path.write_text(text)


def deaf(code: str) -> str:
    """The page's optimizer under another name, and without reading the flag."""
    code = code.replace("skip = self.found_inf.bool()", "skip = torch.tensor(False)")
    return code.replace("Lion", "Deaf").replace("lion", "deaf")


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A copy of the product in which everything on the page was added, and a deaf optimizer."""
    copy = tmp_path_factory.mktemp("repo")
    for name in PRODUCT:
        shutil.copytree(REPO / name, copy / name)
    for section in SECTIONS:
        for name, code in code_of(section):
            write(copy / name, code)
    for name, code in code_of("An optimizer"):
        write(copy / name.replace("lion", "deaf"), deaf(code))
    return copy


@pytest.fixture
def run(repo, tmp_path):
    """Runs a script of the copy in a folder that has the data of the preset `demo`."""
    shutil.copytree(GOLDEN / "data_set", tmp_path / "data" / "demo")

    def start(words: list[str], *more: str, code: int = 0, **variables: str) -> Done:
        small = SMALL.split() if words[0] == "train/main.py" else []
        done = python(*words, *small, *more, folder=tmp_path, repo=repo, **variables)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return start


def test_the_page_shows_how_to_add_each_thing():
    assert [*SECTIONS] == [
        *("An optimizer", "An evaluation task", "A source of text", "A preset", "A setting"),
    ]
    assert [len(code_of(section)) for section in SECTIONS] == [2, 2, 1, 1, 0]
    assert [len(commands_of(section)) for section in SECTIONS] == [1, 2, 2, 1, 0]


def test_an_optimizer_trains_and_its_run_is_resumed_to_the_same_bits(run, tmp_path):
    (words,) = commands_of("An optimizer")
    out = tmp_path / "runs" / "demo"
    run(words)
    recorded = json.loads((out / "config.json").read_text())["config"]["optimizer"]
    assert recorded == {"name": "lion", "lr": 3e-4, "beta1": 0.9, "beta2": 0.99, "clip": 1.0}
    straight, losses_before = final_bytes(out), losses(out)
    forget_after(out, 2)
    run(words)
    assert starts(out) == [0, 2]
    assert (final_bytes(out), losses(out)) == (straight, losses_before)
    done = run([*words, "--optimizer", "adamw"], code=2)
    assert "(optimizer.name: lion -> adamw); optimizer.name can never change" in done.stderr


def test_help_shows_the_options_of_the_chosen_optimizer(run):
    (words,) = commands_of("An optimizer")
    text = run([*words, "--help-all"]).stdout
    assert "--optimizer.beta2 FLOAT" in text
    assert "--optimizer.weight-decay" not in text
    assert "one of adamw, deaf, lion, muon, sgd." in " ".join(text.split())


def test_an_optimizer_that_ignores_the_skip_flag_is_refused_by_name(run, tmp_path):
    done = run(["train/main.py", "demo", "--optimizer", "deaf"], code=2)
    assert done.stderr.startswith("error: optimizer deaf changes weights")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs" / "demo" / "metrics.jsonl").exists()


def test_an_evaluation_task_is_named_in_training_and_alone(run, tmp_path):
    training, alone = commands_of("An evaluation task")
    run(training)
    last = lines(tmp_path / "runs" / "demo")[-1]
    assert {"weekdays/acc", "weekdays/acc_norm", "pydoc_choice/acc"} <= last.keys()
    run(alone, "--device", "cpu", "--items", "2", "--json", "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["weekdays/acc"] == last["weekdays/acc"]


def test_a_source_of_text_becomes_a_data_set_that_a_preset_trains_on(run, tmp_path):
    maker = Maker(tmp_path / "hub", seed=0)
    articles = [{"id": str(n), "title": "", "text": maker.document(100)} for n in range(200)]
    schema = pa.schema([(name, pa.string()) for name in ("id", "title", "text")])
    name = "20231101.simple/train-00000-of-00001.parquet"
    maker.put("wikimedia/wikipedia", name, articles, schema, 10)
    make, verify = commands_of("A source of text")
    with FakeHub(tmp_path / "hub") as hub:
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        run(make, "--workers", "1", **online)
    manifest = open_data_set(tmp_path / "data" / "wikipedia").manifest
    assert manifest.source.id == "wikimedia/wikipedia/20231101.simple"
    assert manifest.train.documents + manifest.val.documents == 200
    run(verify)
    (preset,) = commands_of("A preset")
    run(preset)
    assert len(losses(tmp_path / "runs" / "wikipedia")) == 4
    text = run([*preset, "--help-all"]).stdout
    assert "wikipedia, gpt2-tinystories, demo" in " ".join(text.split())
