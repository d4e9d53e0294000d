"""The ceilings of one GPU for a step of GPT-2 124M, without compilation: half a minute.

    python bench/gpu/micro.py
    python bench/gpu/micro.py --device cpu        # a toy size, only to see that it runs

Times a copy, the matrix products of a step, attention by backend, what a new key length costs when
text is sampled, and the kernel of the loss in five shapes. Each fact is a line of JSON in `--out`
as soon as it is known; a measurement that fails says why in its line, and the next one follows.
Shape letters: B windows, T context_length, C n_embd, V vocabulary, N = B x T, H heads, D = C / H.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.provenance import device_name
from model.fused_loss.loss_kernel import softmax_minus_one_hot_on_cuda_
from model.shapes import SHAPES
from parallel.ranks import silence_other_ranks, start, user_errors
from storage.json_lines import append_line
from storage.script_options import parse_options

_LAYERS, _MICRO_STEPS = 12, 8  # of one step of 524,288 tokens with micro-batches of 64 windows
_BACKENDS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
)
_LOSS_SHAPES = ((8192, 16), (4096, 8), (4096, 16), (16384, 16), (16384, 32))  # logits, warps
_NEW_LENGTHS = range(100, 164)

log = logging.getLogger("train")

_Fact = tuple[str, Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Arguments:
    """Time the parts of a step by themselves."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to measure; on the CPU the sizes are toys and the times mean nothing."""
    out: Path | None = None
    """File to which each fact is appended as a line of JSON."""


@dataclass(frozen=True)
class _Sizes:
    """The shapes that are timed."""

    device: torch.device
    B: int
    T: int
    C: int
    V: int

    @property
    def N(self) -> int:
        """Rows of a micro-batch."""
        return self.B * self.T

    def random(self, *shape: int, gradient: bool = False) -> Tensor:
        """Random bfloat16 numbers: zeros would be multiplied faster than real data."""
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16, requires_grad=gradient)


def _sizes(device: torch.device) -> _Sizes:
    if device.type == "cpu":
        return _Sizes(device, B=2, T=64, C=128, V=512)
    gpt2 = SHAPES["gpt2"]
    return _Sizes(device, 64, gpt2.context_length, gpt2.n_embd, gpt2.padded_vocab_size)


def _seconds(device: torch.device, action: Callable[[], object], rounds: int = 10) -> float:
    """Mean seconds of one call, by the clock of the device."""
    if device.type == "cpu":
        action()
        began = time.perf_counter()
        action()
        return time.perf_counter() - began
    for _ in range(3):
        action()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(rounds):
        action()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / rounds


def _machine(sizes: _Sizes) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": device_name(sizes.device),
    }


def _copy(sizes: _Sizes) -> dict[str, Any]:
    """Bytes read and written by a copy."""
    numbers = 2**12 if sizes.device.type == "cpu" else 2**30
    source = torch.rand(numbers, device=sizes.device)
    target = torch.empty_like(source)
    taken = _seconds(sizes.device, lambda: target.copy_(source))
    return {"TB_per_second": 8 * numbers / taken / 1e12}


def _product(sizes: _Sizes, inputs: int, outputs: int, count: int) -> dict[str, Any]:
    """A linear layer's three products; `count` layers of the network have this shape."""
    states, weight = sizes.random(sizes.N, inputs), sizes.random(outputs, inputs)
    gradient, bias = sizes.random(sizes.N, outputs), sizes.random(outputs)
    products = {
        "forward_with_bias": lambda: F.linear(states, weight, bias),
        "of_states": lambda: gradient @ weight,
        "of_weight": lambda: gradient.T @ states,
    }
    taken = {name: _seconds(sizes.device, product) for name, product in products.items()}
    flops = 2 * sizes.N * inputs * outputs
    return {f"TFLOP_per_second_{name}": flops / t / 1e12 for name, t in taken.items()} | {
        "of_a_step_ms": 1000 * _MICRO_STEPS * count * sum(taken.values())
    }


def _attention(sizes: _Sizes, backend: SDPBackend) -> dict[str, Any]:
    """Causal attention of all heads, forward and backward."""
    D = 64
    qkv = sizes.random(sizes.B, sizes.T, 3, sizes.C // D, D, gradient=True)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> 3 x (B, H, T, D)

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with sdpa_kernel(backend):
        forward = _seconds(sizes.device, attend)
        y = attend()
        g = torch.randn_like(y)
        backward = _seconds(
            sizes.device, lambda: torch.autograd.grad(y, (q, k, v), g, retain_graph=True)
        )
    return {
        "forward_ms": 1000 * forward,
        "backward_ms": 1000 * backward,
        "of_a_step_ms": 1000 * _LAYERS * _MICRO_STEPS * (forward + backward),
    }


def _decoding(sizes: _Sizes, cudnn: bool) -> dict[str, Any]:
    """Attention to a cache that grows by one token: what a new key length costs the host."""
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    on_gpu = sizes.device.type == "cuda"
    allowed = [SDPBackend.CUDNN_ATTENTION] if cudnn and on_gpu else others
    q, cache = sizes.random(1, 12, 1, 64), sizes.random(1, 12, 512, 64)  # (B, H, T, D)
    with sdpa_kernel(allowed):
        F.scaled_dot_product_attention(q, cache[:, :, :1], cache[:, :, :1])
        began = time.perf_counter()
        for end in _NEW_LENGTHS:
            F.scaled_dot_product_attention(q, cache[:, :, :end], cache[:, :, :end])
        if on_gpu:
            torch.cuda.synchronize()
    return {"ms_of_a_new_length": 1000 * (time.perf_counter() - began) / len(_NEW_LENGTHS)}


def _loss(sizes: _Sizes, block: int, warps: int) -> dict[str, Any]:
    """The kernel of the fused loss on a micro-batch's logits."""
    logits = sizes.random(sizes.N, sizes.V)
    targets = torch.randint(0, sizes.V, (sizes.N,), device=sizes.device)
    taken = _seconds(
        sizes.device,
        lambda: softmax_minus_one_hot_on_cuda_(logits, targets, block=block, warps=warps),
        rounds=5,
    )
    # Counting one read and one write of bfloat16.
    return {"ms": 1000 * taken, "TB_per_second": 4 * logits.numel() / taken / 1e12}


def _facts(sizes: _Sizes) -> Iterator[_Fact]:
    """Every measurement by name, the most useful ones first."""
    C, V = sizes.C, sizes.V
    yield "machine", lambda: _machine(sizes)
    yield "copy", lambda: _copy(sizes)
    for backend in _BACKENDS:
        name = backend.name.removesuffix("_ATTENTION").lower()
        yield f"attention {name}", lambda backend=backend: _attention(sizes, backend)
    for name, cudnn in (("cuDNN", True), ("others", False)):
        yield f"decoding {name}", lambda cudnn=cudnn: _decoding(sizes, cudnn)
    for name, inputs, outputs, count in (
        ("query, key and value", C, 3 * C, _LAYERS),
        ("attention's output", C, C, _LAYERS),
        ("feed-forward, in", C, 4 * C, _LAYERS),
        ("feed-forward, out", 4 * C, C, _LAYERS),
        ("head", C, V, 1),
    ):
        shape = (inputs, outputs, count)
        yield f"product {name}", lambda shape=shape: _product(sizes, *shape)
    if sizes.device.type == "cuda":
        for block, warps in _LOSS_SHAPES:
            shape = (block, warps)
            yield f"loss {block}x{warps}", lambda shape=shape: _loss(sizes, *shape)


def measured(device: torch.device) -> Iterator[dict[str, Any]]:
    """Each fact, or why it could not be measured."""
    for what, measure in _facts(_sizes(device)):
        try:
            yield {"what": what, **measure()}
        except Exception as error:  # one that fails, such as a backend that is missing
            yield {"what": what, "error": f"{type(error).__name__}: {str(error)[:160]}"}
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    """Measure, and write each fact as it comes."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        for fact in measured(ranks.device):
            log.info("%s", ", ".join(f"{key} {_shown(value)}" for key, value in fact.items()))
            if arguments.out is not None:
                append_line(arguments.out, fact)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
