"""What is measured on a GPU, as data: each part with its command, in order of worth.

A part is one command of the project. `{kit}` is the folder that prepare.py packed, `{runs}` one for
the runs, `{out}` the one for the results. The parts of a call fit in its time together.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

_TRAINED = (
    "--data {kit}/data --sample.every 0 --eval.tasks-every 0 --save.every-minutes 0 "
    "--schedule.warmup-steps 10"
)
_WHOLE = f"{_TRAINED} --micro-batch 64 --eval.val-tokens 262144 --eval.every 45"
# The dry run compiles nothing of the step, but evaluates and saves: once a call is enough.
_SHORT = f"{_TRAINED} --eval.every 0 --steps 15 --no-rehearsal"
_NEWEST = "{runs}/reference/checkpoints/latest"
_GPU_TESTS = (
    "tests/test_gpu.py tests/train/checkpoints/test_host_copy.py "
    "tests/model/fused_loss/test_head_and_loss.py"
)
_TOY_TRAINED = (
    "--device cpu --dtype bfloat16 --compile off --context-length 16 --batch-tokens 64 "
    "--micro-batch 2 --schedule.warmup-steps 1 --model.n-layer 1 --model.n-head 1 "
    "--model.n-embd 8 --eval.val-tokens 64"
)


@dataclass(frozen=True)
class Part:
    """One command, and what it answers."""

    name: str
    seconds: int
    """At most, with compilation."""
    command: str
    """What follows `python`: a script of the project, or -m; as a shell reads it."""
    answers: str
    """What is known afterwards."""
    needs: str = ""
    """The part whose checkpoint it reads."""
    toy: str = ""
    """Added on the CPU, after the words for its script; of two equal flags the last counts."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Added to its environment."""

    def words(self, folders: Mapping[str, str], toy: bool = False) -> list[str]:
        """The command's words, with `folders` in place of their names."""
        words = shlex.split(self.command)
        if toy:
            words += [*_TOYS.get(words[0], "").split(), *self.toy.split()]
        return [word.format(**folders) for word in words]


_TOYS = {
    "train/main.py": f"{_TOY_TRAINED} --steps 2",
    "eval/main.py": "--device cpu --items 2",
    "eval/generate.py": "--device cpu --max-tokens 2",
    "bench/gpu/micro.py": "--device cpu",
}


def _trained(name: str, flags: str, answers: str, seconds: int = 90, toy: str = "") -> Part:
    """A short run of the reference step with something changed."""
    command = f"train/main.py gpt2 --out {{runs}}/{name} {_SHORT} {flags}"
    return Part(name, seconds, command, answers, toy=toy)


def _generated(name: str, answers: str, **variables: str) -> Part:
    """Two hundred tokens from the reference run."""
    command = f"eval/generate.py --checkpoint {_NEWEST} --prompt 'The sea' --max-tokens 200"
    return Part(name, 40, command, answers, "reference", variables=variables)


_FIRST = (
    Part(
        "micro",
        60,
        "bench/gpu/micro.py --out {out}/micro.jsonl",
        "speed of each matrix product, attention by backend, the cost of a new decoding length "
        "with cuDNN, the kernel of the loss in five shapes",
    ),
    Part(
        "reference",
        150,
        f"train/main.py gpt2 --out {{runs}}/reference {_WHOLE} --steps 45 --profile 40:42",
        "tokens per second and peak memory of the compiled step at micro-batch 64, the attention "
        "backend, the time of compilation, a trace of steps 40 and 41",
        toy="--steps 3 --eval.every 3 --profile 1:2",
    ),
    _trained("fused", "--micro-batch 64 --fused-loss on", "whether the fused loss is the default"),
    _trained("micro_batch_32", "--micro-batch 32", "the micro-batch that auto may choose"),
    _trained(
        "bfloat16_residual",
        "--micro-batch 64 --fused-loss on --residual bfloat16",
        "what a residual stream in bfloat16 would gain, if its losses pass",
    ),
    Part(
        "gpu_tests",
        90,
        # Warnings as errors would fail on any new warning of torch, Triton or cuDNN.
        f"-m pytest -p no:cacheprovider -W default -m gpu --maxfail 3 {_GPU_TESTS}",
        "whether the tests that need a GPU pass",
    ),
    Part(
        "hellaswag",
        60,
        f"eval/main.py --checkpoint {_NEWEST} --tasks hellaswag --items 3000 "
        "--hellaswag-file {kit}/hellaswag_val.jsonl.xz --json {out}/hellaswag.json",
        "whether HellaSwag runs in bfloat16 on the device, and its seconds",
        "reference",
    ),
    _generated("generate", "tokens per second when text is sampled"),
    _generated(
        "generate_no_cudnn",
        "the same where torch may not choose cuDNN",
        TORCH_CUDNN_SDPA_DEPRIORITIZED="1",
    ),
    Part(
        "resume",
        60,
        f"train/main.py gpt2 --out {{runs}}/reference {_WHOLE} --steps 50 --allow steps",
        "whether a run continues on the device, and the time until its first step",
        "reference",
        toy="--steps 5 --eval.every 3",
    ),
)

_SECOND = (
    _trained("baseline", "--micro-batch 64", "the step that the parts below are compared with"),
    _trained(
        "compile_max",
        "--micro-batch 64 --compile max",
        "what a longer compilation gains, and the seconds that it takes",
        180,
    ),
    _trained(
        "tree",
        "--micro-batch 64 --reduction tree",
        "what a gradient with the same bits on any number of ranks costs on one",
    ),
    _trained(
        "recompute",
        "--micro-batch 64 --recompute blocks",
        "what recomputing the blocks costs, and the memory that it saves",
    ),
    _trained(
        "documents",
        "--micro-batch 64 --mask-documents",
        "what attention within documents costs, or gains where its blocks are left out",
        120,
    ),
    _trained("micro_batch_128", "--micro-batch 128", "the micro-batch that auto may choose"),
    _trained(
        "deterministic",
        "--micro-batch 64 --deterministic",
        "what --deterministic costs, with the attention that it uses",
    ),
    _trained("automatic", "", "the micro-batch that auto chooses, and its trial", 120),
)

CALLS = {1: _FIRST, 2: _SECOND}
"""The parts of each call, the most useful ones first."""


def part_named(name: str) -> Part:
    """The part of that name. Raises: ValueError if there is none."""
    parts = {part.name: part for call in CALLS.values() for part in call}
    if name not in parts:
        raise ValueError(f"there is no part {name}; choose from {', '.join(parts)}")
    return parts[name]
