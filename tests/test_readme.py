"""README's commands work as they stand there; what the pages name and link to exists.

The first word of a command picks how it is checked: a script's flags are read by its own parser,
and what takes seconds runs, in one folder with a reader's files, in the order of the pages.
`SMALLER` and `NOT_RUN` declare everything that differs from the page.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.eval.test_calibrate import ROW
from tests.golden.make import INPUTS
from tests.golden.make import RUN as RECORDED_RUN
from tests.hub_fixtures import FINEWEB_EDU, Maker
from tests.launching import ENVIRONMENT, REPO, python
from tests.page_commands import commands_of, read_by_its_parser, started
from tests.script_flags import SCRIPTS

PAGES = [
    *("README.md", "data_prep/README.md", "train/README.md", "eval/README.md", "model/README.md"),
]
DOCUMENTS = [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"]
DOCUMENTS += ["bench/GPU_TODO.md"]
MOST_WORDS = 2_200  # of README.md, as `wc -w` counts them: with commands, tables and headings
OTHER_PROGRAMS = {"make", "source", "tensorboard", "sbatch"}

TINY = """--device cpu --steps 4 --batch-tokens 128 --micro-batch 1 --context-length 32
    --schedule.warmup-steps 1 --model.n-layer 1 --model.n-head 1 --model.n-embd 8 --eval.every 4
    --eval.val-tokens 64 --eval.tasks-every 0 --sample.every 0 --save.every 2
    --save.every-minutes 0"""
MORE_STEPS = """--device cpu --steps 6"""
# What is added to a command so that it ends in seconds, without the network. Nothing is taken away,
# but that `launch/node.sh` is one process here (tests/test_launch.py has the others).
SMALLER = {
    "model/cost.py": "",
    "data_prep/fineweb.py": "--source pages.parquet --workers 1 --encoder tiktoken",
    "data_prep/text.py": "--workers 1 --encoder tiktoken",
    "data_prep/browse.py": "",
    "data_prep/verify.py": "",
    "data_prep/lookup.py": "--step 2",
    "launch/node.sh gpt2": TINY,
    "train/main.py --continue": MORE_STEPS,
    "train/main.py finetune": "--device cpu --steps 2 --batch-tokens 64 --eval.tasks-every 0",
    "train/audit.py": "--device cpu",
    "train/compare_runs.py": "",
    "model/average.py": "",
    "model/huggingface.py export": "",
    "eval/main.py": "--device cpu --items 4 --task-file hellaswag=hellaswag.jsonl",
    "eval/main.py --watch": "--device cpu --items 4 --task-file hellaswag=hellaswag.jsonl",
    "eval/generate.py": "--device cpu --max-tokens 3",
    "eval/contamination.py": "--hellaswag-file hellaswag.jsonl",
}
# What is read by the script's parser only, and why.
NOT_RUN = {
    "data_prep/hf_dataset.py": "needs the Hub; tests/data_prep/test_hf_dataset.py has its emulator",
    "data_prep/text.py s3://bucket/code/**/*.jsonl.zst": "needs S3; see tests/data_prep/",
    "train/doctor.py": "needs eight GPUs; tests/train/test_doctor.py runs it",
    "train/main.py": "takes hours; the reference run is trained as `launch/node.sh gpt2`",
    "launch/own_text.sh": "takes minutes; below it is run in `make test-long`",
    "launch/node.sh": "takes days on several machines; tests/test_launch.py starts it",
    "train/sweep.py": "takes minutes; tests/train/test_sweep.py runs it",
    "train/judge.py": "takes minutes; tests/train/test_judge.py runs it",
    "train/prove_resume.py": "takes minutes; tests/train/recovery/resume_proof/ runs it",
    "train/replay.py": "needs a bad step; tests/train/reporting/ has one",
    "eval/calibrate.py": "needs OpenAI's weights",
    "eval/main.py --checkpoint runs/gpt2 --tasks piqa": "needs the Hub; see tests/eval/tasks/",
    "eval/lm_eval_model.py": "needs lm-evaluation-harness, which is not installed here",
}


COMMANDS = [(page, words) for page in PAGES for words in commands_of(page)]
README = [words for page, words in COMMANDS if page == "README.md"]


def shown(value: object) -> str | None:
    return " ".join(value) if isinstance(value, list) else None


def way_of(words: list[str]) -> str | None:
    """The longest key of the two tables that a command begins with."""
    name, rest = started(words)
    command = " ".join([name, *rest, ""])
    found = (key for key in SMALLER | NOT_RUN if command.startswith(f"{key} "))
    return max(found, key=len, default=None)


RUN = [words for words in README if way_of(words) in SMALLER]
READ_ONLY = [words for _, words in COMMANDS if words not in RUN]


def test_readme_is_short():
    assert len((REPO / "README.md").read_text().split()) <= MOST_WORDS


def test_the_pages_show_every_script():
    started_by_readers = {started(words)[0] for _, words in COMMANDS}
    assert {s for s in SCRIPTS if not s.startswith("bench/")} <= started_by_readers


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code((REPO / page).read_text()))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (REPO / page).parent / path if path else REPO / page
        if not link.startswith("http"):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [*PAGES, "ARCHITECTURE.md", "bench/README.md"])
def test_every_file_that_a_document_names_is_there(page):
    folders = "train|eval|model|data_prep|storage|parallel|launch|tests|bench"
    names = re.findall(
        rf"`((?:{folders})/[\w/.]+(?:/|\.(?:py|sh|sbatch|md|json)))`", (REPO / page).read_text()
    )
    for name in names:
        assert (REPO / name).exists() or "NAME" in name, name


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder with runs that commands name, which nobody changes, and the page's settings."""
    made = tmp_path_factory.mktemp("named")
    for name in ("gpt2", "demo"):
        shutil.copytree(RECORDED_RUN, made / "runs" / name)
    (toml,) = re.findall(
        r"^```toml\n(.*?)^```$", (REPO / "train/README.md").read_text(), re.S | re.M
    )
    (made / "my.toml").write_text(toml)
    return made


@pytest.mark.parametrize("words", READ_ONLY, ids=shown)
def test_a_command_of_the_pages_is_understood_by_what_it_starts(words, monkeypatch, named):
    monkeypatch.chdir(named)
    name, rest = started(words)
    if words[0] == "torchrun":
        assert "--standalone" in words, "without it two jobs on a machine meet"
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif name == "eval/lm_eval_model.py" and rest[0] == "run":
        pass  # the rest is the harness's own command line
    elif name in ("source", "tensorboard"):
        assert words in (["source", ".venv/bin/activate"], ["tensorboard", "--logdir", "runs"])
    elif name.startswith("launch/"):
        assert (REPO / name).is_file()
        if name in ("launch/node.sh", "launch/slurm/train.sbatch"):
            read_by_its_parser("train/main.py", rest, monkeypatch)
        elif name == "launch/slurm/eval.sbatch":
            read_by_its_parser("eval/main.py", rest, monkeypatch)
    else:
        assert name in SCRIPTS
        read_by_its_parser(name, rest, monkeypatch)


def test_every_command_of_readme_is_run_or_says_why_not():
    for words in README:
        known = way_of(words) or words[0] in OTHER_PROGRAMS
        assert known, f"nobody runs {shlex.join(words)}"
    assert {*SMALLER, *NOT_RUN} == {way_of(words) for words in README} - {None}
    named = re.findall(r"tests/[\w/.]+", " ".join(NOT_RUN.values()))
    assert [name for name in named if not (REPO / name).exists()] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files of a reader."""
    made = tmp_path_factory.mktemp("reader")
    story = (INPUTS / "stories.txt").read_text().replace("<|endoftext|>", "\n\n") * 3
    for name in ("story.txt", "stories.txt", "book.txt"):
        (made / name).write_text(story)
    maker = Maker(made, seed=0)
    maker.put("", "pages.parquet", [maker.page(False) for _ in range(100)], FINEWEB_EDU, 50)
    items = [{**ROW, "label": n % 4} for n in range(8)]
    (made / "hellaswag.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return made


def expanded(words: list[str], folder: Path) -> list[str]:
    """The words with the patterns that a shell would expand."""
    found = [(word, sorted(folder.glob(word)) if "*" in word else []) for word in words]
    paths = [[str(p.relative_to(folder)) for p in paths] or [word] for word, paths in found]
    return [word for some in paths for word in some]


@pytest.mark.parametrize("words", RUN, ids=shown)
def test_a_command_of_readme_runs_as_it_stands_there(words, folder):
    name, rest = started(words)
    if name == "launch/node.sh":
        name = "train/main.py"
    more = SMALLER[way_of(words) or ""].split()
    if "gpt2" in rest and "--init" in rest:  # the id of a model that is on the Hub
        shutil.copytree(folder / "exports" / "gpt2", folder / "gpt2")
    done = python(name, *expanded(rest, folder), *more, folder=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.long
def test_the_script_for_own_text_runs_as_it_stands_there_with_fewer_steps(folder):
    (words,) = [words for words in README if words[0] == "launch/own_text.sh"]
    command = [REPO / words[0], *words[1:], "--steps", "6", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (folder / "runs" / "longer" / "loss.png").exists()
    assert "what next" in done.stdout
