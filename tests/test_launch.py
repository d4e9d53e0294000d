"""The launch scripts under bash, with stand-ins for the launcher and SLURM's commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(p for p in (ROOT / "launch").rglob("*") if p.suffix in (".sh", ".sbatch"))

# Each stand-in leaves its arguments, NUL-separated, in $SEEN; the launcher then does $TRAINING.
STAND_INS = {
    "torchrun": "exit 1",
    "python": """
        if [[ $1 != */parallel/launcher.py ]]; then exec "$REAL_PYTHON" "$@"; fi
        printf '%s\\0' "$@" > "$SEEN/launcher"
        printf '%s\\n' "$OMP_NUM_THREADS" "$PYTHONPATH" "$PYTHONSAFEPATH" \
            "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" > "$SEEN/environment"
        echo $$ > "$SEEN/launcher.pid"
        eval "$TRAINING"
    """,
    "srun": """
        printf '%s\\0' "$@" > "$SEEN/srun"
        while [[ $1 == -* ]]; do shift; done
        exec "$@"
    """,
    "scontrol": """
        if [[ $1 == show ]]; then printf 'first\\nsecond\\n'; exit; fi
        printf '%s\\0' "$@" > "$SEEN/scontrol"
    """,
    "scancel": """
        printf '%s\\0' "$@" > "$SEEN/scancel"
        kill -TERM "$(cat "$SEEN/launcher.pid")"
    """,
    "nvidia-smi": """
        for ((i = 0; i < GPUS; i++)); do echo "GPU $i: a card"; echo "  MIG 1g.18gb"; done
    """,
    "nproc": "echo 12",
}


@dataclass
class Machine:
    """A copy of launch/ in a folder with a space, and commands that only note what they got."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def repo(self) -> Path:
        return self.folder / "the project"

    @property
    def status(self) -> Path:
        return self.repo / "runs/gpt2/status.json"

    def set(self, **variables: str) -> "Machine":
        self.environment.update(variables)
        return self

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        command = ["bash", str(self.repo / "launch" / script), *arguments]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.repo,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, script: str, *arguments: str) -> tuple[int, str]:
        process = self.start(script, *arguments)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def seen(self, command: str) -> list[str]:
        path = self.folder / "seen" / command
        return path.read_text().split("\0")[:-1] if path.exists() else []

    def has_started(self) -> None:
        deadline = time.monotonic() + 60
        while not (self.folder / "seen/ready").exists():
            assert time.monotonic() < deadline, "the stand-in for the launcher never started"
            time.sleep(0.01)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    commands = tmp_path / "bin"
    for folder in (commands, tmp_path / "seen", machine.status.parent):
        folder.mkdir(parents=True)
    shutil.copytree(ROOT / "launch", machine.repo / "launch")
    for name in ("train", "eval"):
        (machine.repo / name).mkdir()
        (machine.repo / name / "main.py").touch()
    for name, body in STAND_INS.items():
        (commands / name).write_text("#!/bin/bash\n" + body)
        (commands / name).chmod(0o755)
    return machine.set(
        PATH=f"{commands}:/usr/bin:/bin",
        SEEN=str(tmp_path / "seen"),
        REAL_PYTHON=sys.executable,
        TRAINING="",
        GPUS="0",
    )


@pytest.fixture
def job(machine: Machine) -> Machine:
    """The same machine as the first of two nodes of a SLURM job."""
    return machine.set(
        SLURM_SUBMIT_DIR=str(machine.repo),
        SLURM_JOB_ID="123456",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_NODEID="0",
        SLURM_CPUS_PER_TASK="16",
        SLURM_GPUS_ON_NODE="8",
    )


def leaving(state: str, exit_code: int = 0, out: str = "runs/gpt2") -> str:
    """Shell text of a training that ends with `state` in its status.json."""
    text = json.dumps({"state": state, "step": 7, "reason": ""})
    return f"mkdir -p '{out}'; echo '{text}' > '{out}/status.json'; exit {exit_code}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing_in(script: Path) -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-x", script.relative_to(ROOT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


# --- node.sh ---------------------------------------------------------------------------------


def test_without_gpus_two_processes_share_the_cores(machine: Machine) -> None:
    code, output = machine.run("node.sh", "demo")
    assert code == 0, output
    repo = str(machine.repo)
    assert {"--standalone", "--nproc_per_node=2"} <= set(machine.seen("launcher"))
    assert machine.seen("launcher")[-2:] == [f"{repo}/train/main.py", "demo"]
    environment = (machine.folder / "seen/environment").read_text().split("\n")
    assert environment[:4] == ["6", repo, "1", "1"]


def test_one_process_is_started_for_every_gpu(machine: Machine) -> None:
    machine.set(GPUS="3").run("node.sh")
    assert "--nproc_per_node=3" in machine.seen("launcher")


@pytest.mark.parametrize(
    ("visible", "processes"),
    [
        ("2,5", 2),
        ("GPU-1f,GPU-2f,GPU-3f", 3),
        (" 0, 1,2", 3),
        ("MIG-1/2/3", 1),
        ("0,-1,1", 1),
        *((none, 2) for none in ("", "-1", "NoDevFiles", "void", "none", "-1,0", ",0")),
    ],
)
def test_only_visible_gpus_count(machine: Machine, visible: str, processes: int) -> None:
    machine.set(GPUS="8", CUDA_VISIBLE_DEVICES=visible).run("node.sh")
    assert f"--nproc_per_node={processes}" in machine.seen("launcher")


def test_nproc_overrides_the_count(machine: Machine) -> None:
    machine.set(GPUS="8", NPROC="5").run("node.sh")
    assert "--nproc_per_node=5" in machine.seen("launcher")


def test_arguments_with_spaces_arrive_whole(machine: Machine) -> None:
    words = ["demo", "--out", "runs/a run", "--note", "it's $HOME *", ""]
    machine.run("node.sh", *words)
    assert machine.seen("launcher")[-6:] == words


def test_another_script_can_be_started(machine: Machine) -> None:
    machine.set(SCRIPT="eval/main.py").run("node.sh")
    assert machine.seen("launcher")[-1] == f"{machine.repo}/eval/main.py"


def test_a_script_that_is_none_is_named_once(machine: Machine) -> None:
    code, output = machine.set(SCRIPT="eval.py").run("node.sh")
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith("error: SCRIPT=eval.py is no file of")


def test_training_is_started_again_after_a_dead_rank_and_evaluation_is_not(
    machine: Machine,
) -> None:
    machine.run("node.sh")
    assert "--max-restarts=20" in machine.seen("launcher")
    machine.set(SCRIPT="eval/main.py").run("node.sh")
    assert "--max-restarts=0" in machine.seen("launcher")


@pytest.mark.parametrize("name", ["NPROC", "NODES", "MAX_RESTARTS", "SLURM_GPUS_ON_NODE"])
@pytest.mark.parametrize("value", ["x[$(touch $SEEN/hacked)]", "two", "-1", "08", "1e3", "9" * 20])
def test_a_number_that_is_none_is_refused_and_never_evaluated(
    machine: Machine, name: str, value: str
) -> None:
    code, output = (
        machine.set(RDZV_ENDPOINT="first:1", NODES="1").set(**{name: value}).run("node.sh")
    )
    assert code == 2
    assert output.startswith(f"error: {name}=")
    assert output.count("\n") == 1
    assert not (machine.folder / "seen/hacked").exists()
    assert machine.seen("launcher") == []


def test_several_machines_need_no_slurm(machine: Machine) -> None:
    code, output = machine.set(RDZV_ENDPOINT="first:29400").run("node.sh")
    assert (code, output.startswith("error: RDZV_ENDPOINT is set but NODES is not")) == (2, True)
    machine.set(NODES="2").run("node.sh", "demo")
    words = machine.seen("launcher")
    assert {"--nnodes=2", "--rdzv-endpoint=first:29400", "--nproc_per_node=1"} <= set(words)


@pytest.mark.parametrize("nproc", ["exit 127", "echo many"])
def test_without_nproc_the_cores_are_counted_otherwise(machine: Machine, nproc: str) -> None:
    (machine.folder / "bin/nproc").write_text(f"#!/bin/bash\n{nproc}\n")
    getconf = machine.folder / "bin/getconf"
    getconf.write_text("#!/bin/bash\necho 8\n")
    getconf.chmod(0o755)
    assert machine.run("node.sh")[0] == 0
    threads = (machine.folder / "seen/environment").read_text().split("\n")[0]
    assert threads == ("4" if nproc == "exit 127" else "1")


def test_the_projects_own_environment_comes_first(machine: Machine) -> None:
    own = machine.repo / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    own.write_text("#!/bin/bash\necho from the venv\n")
    own.chmod(0o755)
    assert machine.run("node.sh") == (0, "from the venv\n")


def test_a_missing_torchrun_is_one_clear_sentence(machine: Machine) -> None:
    (machine.folder / "bin/torchrun").unlink()
    code, output = machine.run("node.sh")
    assert code == 2
    assert "run 'make setup'" in output


# --- own_text.sh -----------------------------------------------------------------------------


@pytest.fixture
def writer(machine: Machine) -> Machine:
    """The same machine with a stand-in for data_prep/text.py."""
    (machine.repo / "data_prep").mkdir()
    (machine.repo / "data_prep/text.py").write_text(
        "import os, sys\n"
        "with open(os.environ['SEEN'] + '/text', 'w') as file:\n"
        "    file.write(''.join(word + chr(0) for word in sys.argv[1:]))\n"
        "sys.exit(int(os.environ.get('TEXT_CODE', 0)))\n"
    )
    return machine


TRAINER = ["own-text", "--data"]


@pytest.mark.parametrize(
    ("words", "texts", "name", "flags"),
    [
        (["a/story.txt"], ["a/story.txt"], "story", []),
        (["a.txt", "b.txt", "--steps", "9"], ["a.txt", "b.txt"], "a", ["--steps", "9"]),
        (['my "best" it\'s.jsonl.gz'], ['my "best" it\'s.jsonl.gz'], "my__best__it_s", []),
        (["texts/"], ["texts/"], "texts", []),
        (["../.hidden[1].txt"], ["../.hidden[1].txt"], "hidden_1_", []),
    ],
)
def test_a_text_gives_a_data_set_and_a_run_of_its_name(
    writer: Machine, words: list[str], texts: list[str], name: str, flags: list[str]
) -> None:
    code, output = writer.run("own_text.sh", *words)
    assert code == 0, output
    data = f"data/own/{name}"
    auto = ["--vocab-size", "auto", "--split", "auto", "--out", data]
    assert writer.seen("text") == [*texts, *auto]
    assert writer.seen("launcher")[-len(flags) - 5 :] == [
        *TRAINER, data, "--out", f"runs/{name}", *flags
    ]  # fmt: skip


@pytest.mark.parametrize("flag", [["--out=runs/two"], ["--out", "runs/two"]])
def test_another_run_has_a_data_set_of_its_own(writer: Machine, flag: list[str]) -> None:
    writer.run("own_text.sh", "a.txt", *flag)
    assert writer.seen("text")[-1] == "data/own/two"
    words = writer.seen("launcher")
    assert words[words.index("--out") + 1] == "runs/two"


def test_make_gives_the_text_in_the_environment(writer: Machine) -> None:
    (writer.repo / "my story.txt").touch()
    writer.set(TEXT="my story.txt").run("own_text.sh")
    assert writer.seen("text")[0] == "my story.txt"
    writer.set(TEXT="a.txt  b.txt").run("own_text.sh", "--steps=9")
    assert writer.seen("text")[:2] == ["a.txt", "b.txt"]
    assert writer.seen("launcher")[-1] == "--steps=9"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no text is given; name a file: launch/own_text.sh story.txt"),
        (["", "--steps=9"], "no text is given"),
        (["a.txt", "--data", "x"], "--data is given, but own_text.sh makes the data set"),
    ],
)
def test_what_is_no_text_is_one_sentence(writer: Machine, words: list[str], reason: str) -> None:
    code, output = writer.set(TEXT="").run("own_text.sh", *words)
    assert (code, output.count("\n"), writer.seen("text")) == (2, 1, [])
    assert reason in output


def test_without_a_data_set_nothing_is_trained(writer: Machine) -> None:
    code, _ = writer.set(TEXT_CODE="2").run("own_text.sh", "a.txt")
    assert (code, writer.seen("launcher")) == (2, [])


# --- train.sbatch ----------------------------------------------------------------------------


def test_all_nodes_meet_at_the_first_host(job: Machine) -> None:
    code, output = job.set(TRAINING=leaving("finished")).run("slurm/train.sbatch")
    assert code == 0, output
    assert {
        "--nnodes=2",
        "--nproc_per_node=8",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=first:23456",
        "--rdzv-id=123456_0",
        "--log-dir=runs/gpt2.logs/job_123456/node_0",
        "--tee=3",
    } <= set(job.seen("launcher"))
    assert {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=16"} <= set(job.seen("srun"))


def test_a_job_without_gpus_runs_one_process_a_node(job: Machine) -> None:
    del job.environment["SLURM_GPUS_ON_NODE"]
    job.set(TRAINING=leaving("finished")).run("slurm/train.sbatch")
    assert "--nproc_per_node=1" in job.seen("launcher")


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["gpt2-xl", "--steps", "5"], "runs/gpt2-xl"),
        (["--steps", "5", "--out", "my runs/a/"], "my runs/a"),
        (["gpt2-xl", "--out=elsewhere"], "elsewhere"),
        (["--continue", "a/b/checkpoints/latest", "--steps", "5"], "a/b"),
    ],
)
def test_the_run_folder_follows_the_arguments(job: Machine, arguments: list[str], out: str) -> None:
    job.set(TRAINING=leaving("preempted", 1, out)).run("slurm/train.sbatch", *arguments)
    assert job.seen("launcher")[-len(arguments) :] == arguments
    assert f"--log-dir={out}.logs/job_123456/node_0" in job.seen("launcher")
    assert job.seen("scontrol") == ["requeue", "123456"]


@pytest.mark.parametrize("arguments", [["--config", "a.toml"], ["own-text", "--data", "d"]])
def test_a_job_whose_run_folder_is_not_known_asks_for_it(
    job: Machine, arguments: list[str]
) -> None:
    code, output = job.run("slurm/train.sbatch", *arguments)
    assert (code, job.seen("launcher")) == (2, [])
    assert "error: give --out FOLDER too" in output


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["gpt2"], ["gpt2", "--stop-at", "1790000000"]),
        (["gpt2", "--stop-at", "1780000000"], ["gpt2", "--stop-at", "1780000000"]),
    ],
)
def test_the_run_learns_when_the_job_ends(
    job: Machine, given: list[str], passed: list[str]
) -> None:
    job.set(TRAINING=leaving("finished"), SLURM_JOB_END_TIME="1790000000")
    job.run("slurm/train.sbatch", *given)
    assert job.seen("launcher")[-len(passed) :] == passed


def test_a_preempted_run_is_requeued(job: Machine) -> None:
    code, output = job.set(TRAINING=leaving("preempted", 1)).run("slurm/train.sbatch")
    assert code == 0, output
    assert job.seen("scontrol") == ["requeue", "123456"]


@pytest.mark.parametrize("state", ["failed", "running"])
def test_any_other_end_fails_the_job(job: Machine, state: str) -> None:
    code, _ = job.set(TRAINING=leaving(state)).run("slurm/train.sbatch")
    assert code != 0
    assert job.seen("scontrol") == []


def test_a_job_that_asked_for_no_gpus_ignores_those_of_others(job: Machine) -> None:
    del job.environment["SLURM_GPUS_ON_NODE"]
    job.set(SLURM_GPUS_PER_NODE="0", GPUS="8", TRAINING=leaving("finished"))
    job.run("slurm/train.sbatch")
    assert "--nproc_per_node=1" in job.seen("launcher")


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_run_that_dies_after_a_newer_checkpoint_is_requeued(job: Machine, state: str) -> None:
    checkpoints = job.status.parent / "checkpoints"
    (checkpoints / "step_000010").mkdir(parents=True)
    job.set(TRAINING=f"mkdir -p '{checkpoints}/step_000020'; {leaving(state, 1)}")
    code, output = job.run("slurm/train.sbatch")
    assert code == 0, output
    assert job.seen("scontrol") == ["requeue", "123456"]
    again, output = job.run("slurm/train.sbatch")
    assert again == 1
    assert "no newer checkpoint than this start had (step_000020)" in output


def test_a_finished_run_ends_well_whatever_torchrun_says(job: Machine) -> None:
    code, _ = job.set(TRAINING=leaving("finished", 1)).run("slurm/train.sbatch")
    assert code == 0


def test_a_run_that_never_starts_fails_the_job(job: Machine) -> None:
    code, output = job.set(TRAINING="exit 2").run("slurm/train.sbatch", "--data", "nowhere")
    assert code == 2
    assert "before runs/gpt2/status.json was written" in output


@pytest.mark.parametrize("state", ["preempted", "finished"])
def test_an_old_status_is_not_taken_for_this_jobs(job: Machine, state: str) -> None:
    job.status.write_text(json.dumps({"state": state}))
    code, _ = job.set(TRAINING="exit 2").run("slurm/train.sbatch", "--data", "nowhere")
    assert code == 2
    assert job.seen("scontrol") == []


def test_a_run_that_had_finished_before_ends_well(job: Machine) -> None:
    job.status.write_text(json.dumps({"state": "finished"}))
    code, output = job.run("slurm/train.sbatch")
    assert code == 0, output


@pytest.mark.fault("P5", injected="the warning to the batch script")
def test_the_warning_before_the_time_limit_stops_the_step_and_requeues(job: Machine) -> None:
    at_term = f"trap {json.dumps(leaving('preempted', 1))} TERM"
    job.set(TRAINING=f'{at_term}; touch "$SEEN/ready"; while true; do sleep 0.02; done')
    batch = job.start("slurm/train.sbatch")
    job.has_started()
    batch.send_signal(signal.SIGUSR1)
    output, _ = batch.communicate(timeout=60)
    assert batch.returncode == 0, output
    assert job.seen("scancel") == ["--signal=TERM", "123456"]
    assert job.seen("scontrol") == ["requeue", "123456"]


def test_a_cancelled_job_is_not_requeued(job: Machine) -> None:
    at_term = f"trap {json.dumps(leaving('preempted', 1))} TERM"
    job.set(TRAINING=f'{at_term}; touch "$SEEN/ready"; while true; do sleep 0.02; done')
    batch = job.start("slurm/train.sbatch")
    job.has_started()
    batch.send_signal(signal.SIGTERM)
    os.kill(int((job.folder / "seen/launcher.pid").read_text()), signal.SIGTERM)
    output, _ = batch.communicate(timeout=60)
    assert batch.returncode == 1, output
    assert "submit it again to continue" in output
    assert job.seen("scontrol") == []


# --- the others ------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_code", [0, 3])
def test_evaluation_runs_on_the_jobs_gpus_and_passes_its_end_on(
    job: Machine, exit_code: int
) -> None:
    words = ["--checkpoint", "runs/a run/checkpoints/latest", "--tasks", "hellaswag"]
    code, _ = job.set(TRAINING=f"exit {exit_code}").run("slurm/eval.sbatch", *words)
    assert code == exit_code
    assert job.seen("launcher")[-5:] == [f"{job.repo}/eval/main.py", *words]
    assert "--nproc_per_node=8" in job.seen("launcher")


@pytest.fixture
def data_job(job: Machine) -> Machine:
    python = job.folder / "bin/python"
    python.unlink()
    python.write_text('#!/bin/bash\nprintf \'%s\\0\' "$@" > "$SEEN/python"\n')
    python.chmod(0o755)
    return job


def test_data_preparation_uses_a_worker_for_every_core(data_job: Machine) -> None:
    code, output = data_job.run("slurm/data_prep.sbatch", "--source", "my data/*.parquet")
    assert code == 0, output
    words = ["--workers", "16", "--source", "my data/*.parquet"]
    assert data_job.seen("python") == [f"{data_job.repo}/data_prep/fineweb.py", *words]


def test_every_task_of_an_array_prepares_its_part(data_job: Machine) -> None:
    array = {"COUNT": "14", "MIN": "0", "MAX": "13", "ID": "2"}
    data_job.set(**{f"SLURM_ARRAY_TASK_{key}": value for key, value in array.items()})
    code, output = data_job.run("slurm/data_prep.sbatch", "--config", "sample-100BT")
    assert code == 0, output
    words = ["--workers", "16", "--part", "3/14", "--config", "sample-100BT"]
    assert data_job.seen("python")[1:] == words


def test_an_array_with_gaps_says_how_to_submit_it(data_job: Machine) -> None:
    array = {"COUNT": "2", "MIN": "3", "MAX": "7", "ID": "3"}
    data_job.set(**{f"SLURM_ARRAY_TASK_{key}": value for key, value in array.items()})
    code, output = data_job.run("slurm/data_prep.sbatch")
    assert code == 2
    assert "--array=1-N" in output


@pytest.mark.parametrize("name", ["train", "eval", "data_prep"])
def test_a_job_submitted_from_elsewhere_says_what_to_do(job: Machine, name: str) -> None:
    code, output = job.set(SLURM_SUBMIT_DIR="/").run(f"slurm/{name}.sbatch")
    assert code == 2
    assert "submit from the project's folder" in output
    job.set(RATCHET=str(job.repo), TRAINING=leaving("finished"))
    if name != "data_prep":
        assert job.run(f"slurm/{name}.sbatch")[0] == 0
