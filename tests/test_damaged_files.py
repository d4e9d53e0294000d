"""Each file format, damaged in each way: one sentence and code 2, or the script continues.

A script that ends with code 2 leaves nothing behind that it had begun to write.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import data_prep.lookup
import data_prep.verify
import eval.compare
import eval.generate
import eval.main
import model.huggingface
import train.compare_runs
import train.main
from eval.watching import watch
from parallel.ranks import silence_other_ranks, start, user_errors
from storage.checkpoint_folder import write_manifest
from storage.digest import fingerprint
from tests.damage import (
    ANY_FILE,
    JSON_FILE,
    Damage,
    call,
    copy_of,
    files_below,
    lines_damaged,
    wrong_fields,
)
from tests.runs import GOLDEN, forget_after
from train.build import build_run
from train.command_line.parse import parse
from train.preflight.inputs import check_inputs

# What a start may leave: it is sound, and the next start takes or removes it.
MAY_STAY = re.compile(r".*lock|.*\.digests-.*|.*\.index/.*|.*status\.json.*|.*\.broken.*|.*/latest")
SETTINGS = """--data data --device cpu --steps 8 --batch-tokens 128 --micro-batch 2
    --optimizer.lr 0.01 --schedule.warmup-steps 2 --model.n-layer 1 --model.n-head 1
    --model.n-embd 8 --context-length 16 --eval.every 4 --eval.val-tokens 64
    --eval.tasks-every 0 --sample.every 0 --save.every 2 --save.every-minutes 0 --save.keep 9
    --no-rehearsal"""
SOME = 3  # fields or lines that are damaged in `make test`
MANY = 24  # the same in `make test-long`
STEP = "run/checkpoints/step_000004"
VALIDATION = "--data data --val-tokens 64 --device cpu"


def started() -> None:
    """`train/main.py` up to its first step, which is all that reads files."""
    silence_other_ranks()
    with user_errors():
        config = parse(sys.argv[1:])
        ranks = start(config.device)
        inputs = check_inputs(config, ranks)
        if not inputs.finished:
            build_run(config, ranks, inputs).close()


@dataclass(frozen=True)
class Reader:
    """A script that reads a file, its command line, and the exit codes that it may have."""

    main: Callable[[], None]
    words: str
    codes: tuple[int, ...] = (0, 2)


READERS = {
    "resume": Reader(started, f"demo --out run {SETTINGS}"),
    "new run": Reader(started, f"demo --out new {SETTINGS}"),
    "init": Reader(started, f"demo --out new --init {STEP} {SETTINGS}"),
    "verify": Reader(data_prep.verify.main, "data", (0, 1, 2)),
    "verify run": Reader(data_prep.verify.main, "data --run run", (0, 1, 2)),
    "lookup": Reader(data_prep.lookup.main, "data --run run --step 1"),
    "evaluate": Reader(
        eval.main.main,
        f"--checkpoint {STEP} --tasks val_loss {VALIDATION}",
    ),
    "task": Reader(
        eval.main.main,
        f"--checkpoint {STEP} --tasks lambada --task-file lambada=items.jsonl --device cpu",
    ),
    "watch": Reader(
        eval.main.main,
        f"--watch run --tasks val_loss --idle-minutes 0.0005 {VALIDATION}",
    ),
    "generate": Reader(
        eval.generate.main,
        f"--checkpoint {STEP} --prompt-file prompts.jsonl --max-tokens 2 --device cpu",
    ),
    "compare": Reader(eval.compare.main, "scores_a scores_b"),
    "compare runs": Reader(train.compare_runs.main, "run --csv runs.csv --group"),
    "export": Reader(model.huggingface.main, f"export {STEP} --out exported"),
    "import": Reader(model.huggingface.main, "import exchange --out imported"),
}


@dataclass(frozen=True)
class Format:
    """A file with the scripts that read it; the first one sees each damage in `make test`."""

    path: str
    readers: str
    seals: str = ""
    """What is sealed again after the damage: the checkpoint's digests, or the data set's."""
    line: dict[str, object] | None = None
    """Fields of a line, of a file of JSON lines."""

    def damages(self, world: Path, every: bool) -> list[Damage]:
        """The ways in which it is damaged."""
        if self.line is not None:
            found = JSON_FILE + lines_damaged(self.line)
        elif self.path.endswith(".json"):
            found = JSON_FILE + wrong_fields(world / self.path)
        else:
            found = ANY_FILE
        kinds, places = found[: len(JSON_FILE)], found[len(JSON_FILE) :]
        return kinds + places[:: 1 + len(places) // (MANY if every else SOME)]


EVALUATION = {"step": 4, "val/loss": 3.0, "tasks": "val_loss", "options": "", "weights": "a"}
METRICS = {"step": 1, "train/loss": 3.0, "train/skipped": 0, "data/windows": 8, "data/digest": "a"}
START = {"started_at_step": 0, "attempts": 1, "changed": []}
FORMATS = [
    Format("run/config.json", "resume,watch,verify run,lookup,compare runs"),
    Format("run/status.json", "resume,watch,verify run,compare runs"),
    Format("run/metrics.jsonl", "verify run,resume,lookup,compare runs", line=METRICS),
    Format("run/starts.jsonl", "verify run,resume,compare runs", line=START),
    Format("run/evals.jsonl", "watch,export,compare runs", line=EVALUATION),
    Format(f"{STEP}/MANIFEST.json", "resume,evaluate,generate,export,watch,init"),
    Format(f"{STEP}/state.json", "resume,evaluate,export", seals="checkpoint"),
    Format(f"{STEP}/state.json", "resume,evaluate,export,init"),
    Format(f"{STEP}/model.json", "evaluate,resume,export,init", seals="checkpoint"),
    Format(f"{STEP}/results.json", "resume,export", seals="checkpoint"),
    Format(f"{STEP}/model.safetensors", "evaluate,resume,export,init", seals="checkpoint"),
    Format(f"{STEP}/model.safetensors", "resume,evaluate,watch"),
    Format(f"{STEP}/optimizer.safetensors", "resume", seals="checkpoint"),
    Format(f"{STEP}/tokenizer/meta.json", "generate,resume,export", seals="checkpoint"),
    Format(f"{STEP}/tokenizer/ranks.tiktoken", "generate,resume,export", seals="checkpoint"),
    Format("data/manifest.json", "new run,verify,evaluate,verify run,lookup"),
    Format("data/manifest.json", "new run,verify,evaluate", seals="data"),
    Format("data/train_000000.npy", "new run,verify,lookup"),
    Format("data/train_000000.lengths.npy", "new run,verify,lookup"),
    Format("data/train_000000.source.npy", "lookup,new run,verify"),
    Format("data/val_000000.npy", "evaluate,new run"),
    Format("data/tokenizer/meta.json", "new run,verify"),
    Format("data/tokenizer/ranks.tiktoken", "new run,verify"),
    Format("exchange/config.json", "import"),
    Format("exchange/model.safetensors", "import"),
    Format("exchange/tokenizer.json", "import"),
    Format("exchange/tokenizer_config.json", "import"),
    Format("items.jsonl", "task", line={"text": "a b c"}),
    Format("prompts.jsonl", "generate", line={"prompt": "a"}),
    Format("scores_a/lambada.npz", "compare"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound file of every format, and a run that was killed after step 4."""
    folder = tmp_path_factory.mktemp("world")
    copy_of(GOLDEN / "data_set", folder / "data")
    texts = [f"the cat {number} sat" for number in range(4)]
    for name, key in (("items", "text"), ("prompts", "prompt")):
        lines = "".join(json.dumps({key: text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)
    done = [call(train.main.main, f"demo --out run {SETTINGS}".split(), folder)]
    forget_after(folder / "run", 4)
    scores = f"{READERS['task'].words} --items-out scores_a".split()
    done.append(call(eval.main.main, scores, folder))
    copy_of(folder / "scores_a", folder / "scores_b")
    for name in ("watch", "resume"):
        done.append(call(READERS[name].main, READERS[name].words.split(), folder))
    done.append(call(model.huggingface.main, f"export {STEP} --out exchange".split(), folder))
    assert [(end.code, end.uncaught) for end in done] == [(0, "")] * len(done), done
    return folder


def seal(folder: Path, what: str) -> None:
    """Write the digests of a damaged file anew, as a careful forger would."""
    if what == "checkpoint":
        write_manifest(folder / STEP)
    elif what == "data":
        path = folder / "data" / "manifest.json"
        content = json.loads(path.read_text())
        content.pop("fingerprint", None)
        path.write_text(json.dumps(content | {"fingerprint": fingerprint(content)}))


def wrong_end(reader: Reader, damage: Damage, file: Format, folder: Path) -> str:
    """How a reader ends wrongly on a damaged file; empty if it ends as it should."""
    try:
        damage.do(folder / file.path)
        seal(folder, file.seals)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return ""  # the damage is none here, or cannot be sealed
    before = files_below(folder)
    end = call(reader.main, reader.words.split(), folder)
    # Without a progress bar, and with the list of files that follows a sentence of verify.py.
    said = [line for line in end.err.split("\n") if line.strip() and "\r" not in line]
    said = said[:1] if READERS["verify"] == reader else said
    if end.uncaught or "Traceback" in end.out + end.err:
        return f"uncaught {end.uncaught or end.err[-300:]}"
    if end.code not in reader.codes:
        return f"code {end.code}: {end.err[-300:]}"
    if end.code == 2:
        if len(said) != 1 or not said[0].startswith("error: "):
            return f"no single sentence: {end.err[-300:]}"
        left = [n for n in files_below(folder) if n not in before and not MAY_STAY.fullmatch(n)]
        if left:
            return f"left {left[:5]}"
    return ""


def check(file: Format, name: str, world: Path, folder: Path, every: bool) -> None:
    """Try all damages of a file on one reader."""
    wrong = {}
    for damage in file.damages(world, every):
        found = wrong_end(READERS[name], damage, file, copy_of(world, folder))
        if found:
            wrong[damage.name] = found
    assert not wrong, "\n".join(f"{damage}: {what}" for damage, what in wrong.items())


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.01)


def named(file: Format) -> str:
    return f"{file.path}{f' sealed {file.seals}' if file.seals else ''}"


@pytest.mark.slow
@pytest.mark.fault("D9", injected="each file format damaged in each way")
@pytest.mark.parametrize("file", FORMATS, ids=named)
def test_a_damaged_file_is_one_sentence_or_no_obstacle(file, world, tmp_path):
    check(file, file.readers.split(",")[0], world, tmp_path / "copy", every=False)


@pytest.mark.long
@pytest.mark.fault("D9", injected="each file format damaged in each way and place")
@pytest.mark.parametrize(
    ("file", "name"),
    [(file, name) for file in FORMATS for name in file.readers.split(",")],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_a_damaged_file_is_one_sentence_or_no_obstacle_to_any_reader(file, name, world, tmp_path):
    check(file, name, world, tmp_path / "copy", every=True)
