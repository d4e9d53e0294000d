"""Writes the golden files: what the scripts say, write and compute today.

    .venv/bin/python -m tests.golden.make [help errors bits data_sets order keys micro_batches]

What later versions must still read (format_5/run, checkpoint, inputs) is written where it is
missing and never again. tests/test_golden.py and tests/test_scripts.py compare; a change that is
meant shows as a difference in these files.
"""

import hashlib
import json
import os
import platform
import random
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file

from data_prep.dataset.shards import open_data_set
from data_prep.order.permutation import FeistelPermutation
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows, windows_digest
from storage.checkpoint_folder import write_manifest
from storage.options.short_help import HELP_ALL
from tests.data_sets import tiny_data_set
from tests.launching import REPO, Done, python, together
from tests.train.memory.micro_batch_table import RECORDED, table

HERE = Path(__file__).parent
DATA = HERE / "format_1" / "data_set"
RUN = HERE / "format_5" / "run"
CHECKPOINT = HERE / "checkpoint"
INPUTS = HERE / "inputs"
ERRORS = HERE / "errors.txt"
RULE = re.compile("[╭╰]|│ ─+ │$")  # of the box around a sentence, which is as wide as this path
TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}

# Eight steps of a model of 4,088 weights, as tests/runs.py has it.
NANO = """train/main.py gpt2 --data data --out run --device cpu --steps 8 --batch-tokens 128
    --micro-batch 2 --optimizer.lr 0.01 --schedule.warmup-steps 2 --model.n-layer 1
    --model.n-head 1 --model.n-embd 8 --context-length 16 --eval.every 4 --eval.val-tokens 64
    --eval.tasks-every 0 --sample.every 0 --save.every 2 --save.every-minutes 0 --save.keep 9"""
# The small GPT-2 shape, still smaller, with everything that is periodic.
DEMO = """train/main.py gpt2-demo --data data --out run --device cpu --steps 20 --batch-tokens 512
    --micro-batch 2 --model.n-layer 2 --model.n-head 2 --model.n-embd 32 --context-length 64
    --schedule.warmup-steps 4 --eval.every 10 --eval.val-tokens 256 --eval.tasks-every 10
    --eval.items 4 --sample.every 10 --sample.max-tokens 8 --save.every 10
    --save.every-minutes 0"""
# The same of the preset with Muon.
MODERN = """train/main.py modern --data data --out run --device cpu --steps 20 --batch-tokens 512
    --micro-batch 2 --model.n-layer 2 --model.n-head 2 --model.n-embd 32 --context-length 64
    --eval.every 10 --eval.val-tokens 256 --eval.tasks pydoc_choice --eval.tasks-every 10
    --eval.items 4 --sample.every 10 --sample.max-tokens 8 --save.every 10
    --save.every-minutes 0"""
RUNS = {
    "ranks_1": (DEMO, 1),
    "ranks_2": (DEMO, 2),
    "modern_ranks_1": (MODERN, 1),
    "modern_ranks_2": (MODERN, 2),
}
"""What is trained, and on how many ranks."""
WATCH = "eval/main.py --watch run --tasks val_loss --device cpu"
EVALUATE = """eval/main.py --checkpoint checkpoint --tasks val_loss pydoc_choice --items 8
    --json numbers.json --device cpu"""
GENERATE = """eval/generate.py --checkpoint checkpoint --prompt Return --samples 2 --seed 7
    --max-tokens 24 --json --device cpu"""
PREPARE = "data_prep/text.py inputs --out prepared --shard-tokens 3000 --val-tokens 600"


def call(command: str, folder: Path) -> Done:
    """Run a script in `folder`; what it says is not broken into lines."""
    return python(*command.split(), folder=folder, **TERMINAL | {"COLUMNS": "500"})


def checked(done: Done) -> Done:
    """The same, if it went well."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def furnished(folder: Path) -> Path:
    """The folder with all that commands name: data, a run, a checkpoint, inputs, and no run."""
    for source, name in ((DATA, "data"), (RUN, "run"), (CHECKPOINT, "checkpoint")):
        shutil.copytree(source, folder / name)
    shutil.copytree(INPUTS, folder / "inputs")
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("rest")
    (folder / "essays" / "samples").mkdir(parents=True)
    (folder / "essays" / "samples" / "one.txt").write_text("It was")
    return folder


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what scripts say --------------------------------------------------------------------------


def scripts() -> list[str]:
    """The scripts of this project that people start, the benchmarks apart."""
    rooms = ("data_prep", "eval", "model", "train")
    paths = [path for room in rooms for path in sorted((REPO / room).rglob("*.py"))]
    return [
        path.relative_to(REPO).as_posix()
        for path in paths
        if '\nif __name__ == "__main__":' in path.read_text()
    ]


@cache
def asked_for_help(script: str, flag: str = "--help") -> Done:
    """What the script does with --help; it is started once."""
    return python(script, flag, **TERMINAL)


def help_of(script: str) -> str:
    """What it says on one page or two, without where it lies and how many cores there are."""
    usage, blank, rest = asked_for_help(script).stdout.replace(f"{REPO}/", "").partition("\n\n")
    text = " ".join(usage.split()) + blank + rest  # its lines are as long as that path allows
    if text.endswith(f"{HELP_ALL} explains all options.\n"):
        text += f"\n{asked_for_help(script, HELP_ALL).stdout}"
    return re.sub(r"(--threads INT .*default: )\d", r"\1N", text)


def help_file(script: str) -> Path:
    return HERE / "help" / f"{script.removesuffix('.py').replace('/', '_')}.txt"


def wrong_commands() -> dict[str, str]:
    """The command lines of errors.txt, each with all that is recorded of it."""
    blocks = ERRORS.read_text().removeprefix("$ ").split("\n$ ")
    return {block.splitlines()[0]: block.rstrip("\n") for block in blocks}


def answer(command: str, folder: Path) -> str:
    """A command line that is refused, its exit code, and what it says on standard error."""
    done = call(command, folder)
    said = done.stderr.replace(f"{REPO}/", "").replace(str(folder), "FOLDER")
    lines = [line.strip("│").rstrip() for line in said.splitlines() if not RULE.match(line)]
    return "\n".join([command, f"exit code {done.returncode}", *lines])


# --- what runs compute -------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What the last bits of a float may hang on."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cpu": found[1] if found else platform.processor(),
    }


def trained(folder: Path, run: str) -> Path:
    """The folder of twenty steps of one of RUNS, and of an evaluation of each checkpoint."""
    command, ranks = RUNS[run]
    shutil.copytree(DATA, folder / "data")
    words = command.replace("--data data --out run", f"--data {folder}/data --out {folder}/run")
    checked(together(ranks, *words.split()))
    checked(call(WATCH, folder))
    return folder / "run"


def bits_of_run(run: Path) -> dict:
    """Weights, moments, evaluations, samples, and the metric lines without times."""
    checkpoint = run / "checkpoints" / "step_000020"
    return {
        "weights": tensors_digest(checkpoint / "model.safetensors"),
        "optimizer": tensors_digest(checkpoint / "optimizer.safetensors"),
        "metrics": [without_times(line) for line in json_lines(run / "metrics.jsonl")],
        "evals": json_lines(run / "evals.jsonl"),
        "samples": {path.name: file_digest(path) for path in sorted(run.glob("samples/*"))},
    }


def tensors_digest(path: Path) -> str:
    """One sha256 over the names, types, shapes and bits of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def without_times(line: dict) -> dict:
    return {tag: value for tag, value in line.items() if not tag.startswith("speed/")}


def bits_of_evaluation(folder: Path) -> dict:
    """What a fixed checkpoint scores and says."""
    checked(call(EVALUATE, folder))
    said = checked(call(GENERATE, folder)).stdout
    return {
        "numbers": json.loads((folder / "numbers.json").read_text()),
        "texts": [json.loads(line) for line in said.splitlines()],
    }


def recorded_bits() -> list[dict]:
    """What was recorded, machine by machine."""
    path = HERE / "bits.json"
    return json.loads(path.read_text()) if path.exists() else []


# --- data sets and their order -----------------------------------------------------------------


def prepared(folder: Path, workers: int) -> Path:
    """The data set of the inputs."""
    shutil.copytree(INPUTS, folder / "inputs")
    checked(call(f"{PREPARE} --workers {workers}", folder))
    return folder / "prepared"


def file_digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below, by its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def order(folder: Path) -> dict:
    """Images of permutations, and the windows of several seeds and epochs of two data sets."""
    random_lengths = np.random.default_rng(3).integers(1, 6, 2500).tolist()
    large = tiny_data_set(folder / "large", lengths=random_lengths, val_fraction=0)
    sets = {"small": open_data_set(DATA), "of 2500 documents": large}
    keys = [(1, 0, 0), (10, 0, 0), (1000, 1337, 0), (1000, 1337, 1), (10**7, 2**63, 5)]
    return {
        "permutations": [
            {"count": count, "seed": seed, "epoch": epoch, "images": images(count, seed, epoch)}
            for count, seed, epoch in keys
        ],
        "windows": [
            window(name, data.split("train"), seed, epoch)
            for name, data in sets.items()
            for seed in (0, 1337)
            for epoch in (0, 1, 7)
        ],
    }


def images(count: int, seed: int, epoch: int) -> list[int]:
    first = np.arange(min(count, 12), dtype=np.uint64)
    return FeistelPermutation(count, seed, epoch)(first).tolist()


def window(name: str, shards, seed: int, epoch: int) -> dict:
    """Sixty-four windows of 16 tokens from the start of an epoch."""
    first = epoch * shards.tokens // 16
    read = read_windows(OneSource(TrainingStream(shards, seed)), first, 64, 16)
    return {
        "data_set": name,
        "seed": seed,
        "first_window": first,
        "first_tokens": read[0].tolist(),
        "sha256": hashlib.sha256(read.astype("<u2").tobytes()).hexdigest(),
        "digest": windows_digest(first, read),
    }


# --- names -------------------------------------------------------------------------------------


def keys(run: Path, data: Path, numbers: Path) -> dict:
    """The names of files and of what stands in them: of a run, a data set and an evaluation."""
    inside = [*sorted(run.glob("*.json*")), *sorted(run.glob("checkpoints/step_000020/**/*.json"))]
    return {
        "files of a run": sorted({file_name(path, run) for path in run.rglob("*")}),
        "files of a data set": sorted(file_digests(data)),
        **{f"run/{file_name(path, run)}": names_in(path) for path in inside},
        "data set/manifest.json": names_in(data / "manifest.json"),
        "eval/main.py --json": names_in(numbers),
    }


def file_name(path: Path, folder: Path) -> str:
    return re.sub(r"tfevents\..*", "tfevents", path.relative_to(folder).as_posix())


def names_in(path: Path) -> list[str]:
    """Every key of a JSON file, or of the lines of one, with the keys that lead to it."""
    found = json_lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text())
    return sorted(set(paths_to_keys(found)))


def paths_to_keys(value) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from paths_to_keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from (f"{key} > {below}" for below in paths_to_keys(item))


# --- writing -----------------------------------------------------------------------------------


def write_json(name: str, value) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # A list of numbers takes one line.
    text = re.sub(r"\[[\d,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    (HERE / name).write_text(text + "\n")


def write_inputs() -> None:
    """A text, lines and a table: accents, empty documents, copies, a document of one word."""
    words = [
        "river",
        "of",
        "light",
        "under",
        "stone",
        "while",
        "birds",
        "wait",
        "café",
        "東京",
        "🙂",
    ]
    draw = random.Random(1)
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 90))) for _ in range(150)]
    texts[20:24] = ["", "  \n", texts[3], "Tab\tand\r\nline"]
    INPUTS.mkdir()
    separator = "<|endoftext|>"
    (INPUTS / "stories.txt").write_text(separator.join(texts[:50]), newline="")
    lines = [json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts[40:100])]
    (INPUTS / "pages.jsonl").write_text("".join(lines))
    table = pa.table({"text": texts[100:], "score": list(range(50))})
    pq.write_table(table, INPUTS / "rows.parquet", row_group_size=10)


def write_run(folder: Path) -> None:
    """A run that was killed after step 4, but has the losses of all 8 steps."""
    shutil.copytree(DATA, folder / "data")
    checked(call(NANO, folder))
    for step in (6, 8):
        shutil.rmtree(folder / f"run/checkpoints/step_{step:06d}")
    for checkpoint in (folder / "run" / "checkpoints").glob("step_*"):
        forget_place(checkpoint, folder)
    checked(call(WATCH, folder))
    names = ("config.json", "status.json", "starts.jsonl", "metrics.jsonl", "evals.jsonl")
    shutil.copytree(folder / "run/checkpoints", RUN / "checkpoints", ignore=only_steps)
    for name in names:
        shutil.copy(folder / "run" / name, RUN / name)


def only_steps(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith((".", "latest"))]


def forget_place(checkpoint: Path, folder: Path) -> None:
    """Name the data set from where commands are started, not where this machine has it."""
    state = checkpoint / "state.json"
    state.write_text(state.read_text().replace(f"{folder}/", ""))
    write_manifest(checkpoint)


def write_checkpoint(folder: Path) -> None:
    """The checkpoint that is evaluated; no optimizer, nobody goes on from it."""
    shutil.copytree(trained(folder, "ranks_1") / "checkpoints" / "step_000020", CHECKPOINT)
    (CHECKPOINT / "optimizer.safetensors").unlink()
    forget_place(CHECKPOINT, folder)


def write_help(_: Path) -> None:
    (HERE / "help").mkdir(exist_ok=True)
    for script in scripts():
        help_file(script).write_text(help_of(script))


def write_errors(folder: Path) -> None:
    """The same command lines anew; one more is added to the file by hand, after a `$ `."""
    furnished(folder)
    commands = wrong_commands()
    ERRORS.write_text("\n\n".join(f"$ {answer(command, folder)}" for command in commands) + "\n")


def write_bits(folder: Path) -> None:
    """Of this machine; what other machines recorded stays."""
    bits = {}
    for run in RUNS:
        (folder / run).mkdir()
        bits[run] = bits_of_run(trained(folder / run, run))
    (folder / "all").mkdir()
    bits["evaluation"] = bits_of_evaluation(furnished(folder / "all"))
    recorded = {json.dumps(entry["machine"]): entry for entry in recorded_bits()}
    recorded[json.dumps(machine())] = {"machine": machine(), **bits}
    write_json("bits.json", list(recorded.values()))


def write_data_sets(folder: Path) -> None:
    write_json("data_sets.json", file_digests(prepared(folder, workers=1)))


def write_order(folder: Path) -> None:
    write_json("order.json", order(folder))


def write_keys(folder: Path) -> None:
    (folder / "new").mkdir()
    run, data = trained(folder / "new", "ranks_1"), prepared(folder / "new", workers=1)
    (folder / "all").mkdir()
    checked(call(EVALUATE, furnished(folder / "all")))
    write_json("keys.json", keys(run, data, folder / "all" / "numbers.json"))


KEPT = {INPUTS: lambda _: write_inputs(), RUN: write_run, CHECKPOINT: write_checkpoint}
RENEWED = {
    "help": write_help,
    "errors": write_errors,
    "bits": write_bits,
    "data_sets": write_data_sets,
    "order": write_order,
    "keys": write_keys,
    "micro_batches": lambda _: RECORDED.write_text(table()),
}


def main(names: list[str]) -> None:
    """Write what is missing, then what is named (all, if nothing is)."""
    os.environ["OMP_NUM_THREADS"] = "1"
    writers = [write for path, write in KEPT.items() if not path.exists()]
    for write in (*writers, *(RENEWED[name] for name in names or RENEWED)):
        with TemporaryDirectory() as folder:
            write(Path(folder).resolve())


if __name__ == "__main__":
    main(sys.argv[1:])
