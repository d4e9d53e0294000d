"""What measurements on a GPU are expected to say, and what in the code a surprise changes.

The expectations are arithmetic from the ceilings of a card (products in bfloat16 at 790 TFLOP/s,
copies at 4.3 TB/s on an H200 and 3.0 on an H100), not measurements. `bench/GPU_TODO.md` has the
sums.
"""

from dataclasses import dataclass

Range = tuple[float, float]
KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Expectation:
    """One number of a part, the range in which it is expected, and what follows if it is not."""

    what: str
    """What the number is, with its unit."""
    value: KeyPath
    """Where it is: the part, then the keys inside of what was measured."""
    h200: Range | None
    """Expected on an H200; None: only shown."""
    then: str
    """What to do, or to change in the code, if it is outside of the range."""
    h100: Range | None = None
    """Expected on an H100; None: the same as on an H200."""
    over: KeyPath = ()
    """The number that it is divided by."""

    def expected(self, gpu: str) -> Range | None:
        """The range on the card of this name."""
        if "H100" in gpu:
            return self.h100 or self.h200
        return self.h200 if "H200" in gpu else None


_SPEED = ("tokens_per_second",)
_REFERENCE, _BASELINE = ("reference", *_SPEED), ("baseline", *_SPEED)
_AUTO = "FAST_TOKENS of --micro-batch auto, in model/estimates/largest_micro_batch.py"
_BY_KIND = ("reference", "trace", "by_kind_ms")

EXPECTATIONS = (
    Expectation(
        "tokens/s of the reference step",
        _REFERENCE,
        (460_000, 540_000),
        "compare the lines of the trace below; 600,000 is the goal",
        h100=(400_000, 480_000),
    ),
    Expectation(
        "peak memory of it, GiB",
        ("reference", "peak_memory_gib"),
        (27.4, 30.4),
        "model/estimates/memory.py; run bench/memory.py for more points",
    ),
    Expectation(
        "seconds of its first step (compilation)",
        ("reference", "first_step_seconds"),
        (20, 90),
        "the seconds of each part in bench/gpu/parts.py",
    ),
    Expectation(
        "matrix products, ms of a step (trace)",
        (*_BY_KIND, "matrix products"),
        (580, 660),
        "the five products of micro say which shape is slow",
    ),
    Expectation(
        "attention, ms of a step (trace)",
        (*_BY_KIND, "attention"),
        (115, 140),
        "the attention by backend below",
    ),
    Expectation(
        "fused element-wise kernels, ms of a step (trace)",
        (*_BY_KIND, "fused element-wise"),
        (130, 200),
        "the residual stream in bfloat16; epilogues of the products",
        h100=(190, 290),
    ),
    Expectation(
        "plain loss, ms of a step (trace)",
        (*_BY_KIND, "loss"),
        (35, 55),
        "the kernels by name; Inductor may have called them otherwise",
        h100=(50, 70),
    ),
    Expectation(
        "gaps, ms of a step (trace)",
        ("reference", "trace", "gaps_ms"),
        (0, 10),
        "what the host waits for: open the trace",
    ),
    Expectation("copy, TB/s", ("micro", "copy", "TB_per_second"), (4.1, 4.5), "-", (2.8, 3.2)),
    Expectation(
        "all matrix products of a step, ms (micro)",
        ("micro", "products_of_a_step_ms"),
        (590, 660),
        "nothing in exact bfloat16: it is the ceiling",
    ),
    Expectation(
        "attention by cuDNN, ms of a step",
        ("micro", "attention cudnn", "of_a_step_ms"),
        (115, 140),
        "choose the fastest backend in model/blocks.py",
    ),
    Expectation(
        "attention by FlashAttention 2, ms of a step",
        ("micro", "attention flash", "of_a_step_ms"),
        (165, 190),
        "choose the fastest backend in model/blocks.py; it is what --deterministic uses",
    ),
    Expectation(
        "a new key length with cuDNN, ms",
        ("micro", "decoding cuDNN", "ms_of_a_new_length"),
        (15, 40),
        "below 1: eval/sampling/attention_kernels.py need not leave cuDNN out",
    ),
    Expectation(
        "a new key length without cuDNN, ms",
        ("micro", "decoding others", "ms_of_a_new_length"),
        (0, 0.5),
        "pad the keys to multiples of 64 in eval/sampling/decoding.py",
    ),
    *(
        Expectation(
            f"kernel of the loss, {shape} (logits x warps), ms of 64 windows",
            ("micro", f"loss {shape}", "ms"),
            expected,
            "the fastest shape is BLOCK and WARPS of model/fused_loss/loss_kernel.py",
            h100=on_h100,
        )
        for shape, expected, on_h100 in (
            ("8192x16", (4.0, 5.6), (5.9, 8.0)),
            ("4096x8", None, None),
            ("4096x16", None, None),
            ("16384x16", None, None),
            ("16384x32", None, None),
        )
    ),
    Expectation(
        "fused loss, times the reference's speed",
        ("fused", *_SPEED),
        (1.012, 1.025),
        'above 1.005: add "cuda" to _FASTER_ON in model/fused_loss/head_and_loss.py',
        over=_REFERENCE,
    ),
    Expectation(
        "peak memory with the fused loss, GiB",
        ("fused", "peak_memory_gib"),
        None,
        "model/estimates/memory.py",
    ),
    Expectation(
        "micro-batch 32, times the speed of 64",
        ("micro_batch_32", *_SPEED),
        (0.99, 1.01),
        _AUTO,
        over=_REFERENCE,
    ),
    Expectation(
        "micro-batch 128, times the speed of 64",
        ("micro_batch_128", *_SPEED),
        (0.995, 1.007),
        _AUTO,
        over=_BASELINE,
    ),
    Expectation(
        "residual stream in bfloat16, times the fused step's speed",
        ("bfloat16_residual", *_SPEED),
        (1.05, 1.065),
        "a default only if bench/loss_curves.py accepts it",
        over=("fused", *_SPEED),
    ),
    Expectation(
        "GPU tests that fail",
        ("gpu_tests", "failed"),
        (0, 0),
        "mend them before anything else",
    ),
    Expectation(
        "GPU tests that pass",
        ("gpu_tests", "passed"),
        (8, 99),
        "0: torch finds no GPU",
    ),
    Expectation(
        "HellaSwag acc_norm of 3,000 items, a model of 24M tokens",
        ("hellaswag", "hellaswag/acc_norm"),
        (0.22, 0.29),
        "compare with --dtype float32: a difference above 0.003 is a fault",
    ),
    Expectation(
        "seconds of these in both styles, with the start of Python",
        ("hellaswag", "seconds"),
        (8, 30),
        "eval/scoring/; 2 to 3 s a style are expected of the device",
    ),
    Expectation(
        "tokens/s when text is sampled",
        ("generate", *_SPEED),
        (100, 400),
        "the cost of a new key length above",
    ),
    Expectation(
        "the same where torch may not choose cuDNN, times that",
        ("generate_no_cudnn", *_SPEED),
        (0.9, 1.1),
        "faster: sampling still meets cuDNN; see eval/sampling/attention_kernels.py",
        over=("generate", *_SPEED),
    ),
    Expectation(
        "last step of the resumed run", ("resume", "last_step"), (49, 49), "see its output"
    ),
    Expectation(
        "seconds of the resumed run's first step",
        ("resume", "first_step_seconds"),
        (5, 60),
        "whether Inductor's cache was found again",
    ),
    Expectation(
        "--compile max, times the speed without",
        ("compile_max", *_SPEED),
        (1.005, 1.025),
        "below 1.005: its help and model/compilation.py say so",
        over=_BASELINE,
    ),
    Expectation(
        "seconds of its first step (compilation)",
        ("compile_max", "first_step_seconds"),
        (30, 150),
        "its limit in bench/gpu/parts.py",
    ),
    Expectation(
        "--reduction tree, times the speed of ddp on one GPU",
        ("tree", *_SPEED),
        (0.98, 1.01),
        "the sums by level that one rank adds, in parallel/tree_reduction.py",
        over=_BASELINE,
    ),
    Expectation(
        "--recompute blocks, times the speed without",
        ("recompute", *_SPEED),
        (0.74, 0.82),
        "what its help and model/cost.py say of its time",
        over=_BASELINE,
    ),
    Expectation(
        "peak memory with it, GiB",
        ("recompute", "peak_memory_gib"),
        None,
        "model/estimates/memory.py",
    ),
    Expectation(
        "--mask-documents, times the speed without",
        ("documents", *_SPEED),
        (0.9, 1.02),
        "its help; another kernel in model/documents/flex_blocks.py below 0.9",
        over=_BASELINE,
    ),
    Expectation(
        "--deterministic, times the speed without",
        ("deterministic", *_SPEED),
        (0.92, 0.97),
        "its help and ARCHITECTURE name the reason: FlashAttention 2 instead of cuDNN",
        over=_BASELINE,
    ),
    Expectation(
        "micro-batch that auto chooses",
        ("automatic", "micro_batch"),
        (64, 64),
        _AUTO,
    ),
)
