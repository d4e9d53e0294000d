"""The loss kernel without a GPU: interpreted against float64, and compiled for three GPUs."""

import json
import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from model.fused_loss import loss_kernel
from model.fused_loss.loss_kernel import BLOCK, HAS_TRITON, WARPS
from tests.launching import fresh_python

GPUS = {80: "A100", 90: "H100 and H200", 100: "B200"}
GPT2 = 50304  # logits of a row


@pytest.fixture(scope="module")
def triton():
    """Triton's folder. Where it exists and is missing, that is a failure: nothing is checked."""
    if not HAS_TRITON:
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            pytest.skip("there is no Triton for this kind of machine")
        pytest.fail("Triton is missing, so the loss kernel is not checked; make setup-dev")
    return Path(find_spec("triton").origin).parent


@pytest.fixture(scope="module")
def interpreted(triton):
    done = fresh_python("tests/programs/interpreted_kernel.py")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("group", "cases"), [("ordinary", 42), ("not_finite", 4), ("outside", 8)])
def test_the_interpreted_kernel_agrees_with_float64(interpreted, group, cases):
    assert {case: wrong for case, wrong in interpreted[group].items() if wrong} == {}
    assert len(interpreted[group]) == cases


def compiled_for(capability, dtype, capped):
    """The kernel as Triton compiles it for a GPU on its first call there: a cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = loss_kernel._softmax_minus_one_hot_kernel
    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    types = {"logits": f"*{dtype}", "targets": "*i64", "losses": "*fp32", "stride": "i32"}
    constants = {"V": GPT2, "CAPPED": capped, "BLOCK": BLOCK}
    source = ASTSource(
        fn=kernel,
        signature=types | {"softcap": "fp32"} | dict.fromkeys(constants, "constexpr"),
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in types},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": WARPS}).asm["cubin"]


@pytest.mark.parametrize("capability", GPUS, ids=GPUS.get)
def test_the_compiled_kernel_keeps_a_block_in_registers_and_spills_none(
    triton, tmp_path, monkeypatch, capability
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    for dtype in ("bf16", "fp32"):
        for capped in (False, True):
            file = tmp_path / f"{dtype}_{capped}.cubin"
            file.write_bytes(compiled_for(capability, dtype, capped))
            tool = triton / "backends" / "nvidia" / "bin" / "cuobjdump"
            words = [tool, "-res-usage", "-sass", file]
            shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            used = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", shown)}
            assert (used["STACK"], used["LOCAL"]) == (0, 0), shown[:1000]
            assert not re.search(r"\b(LDL|STL)\b", shown)  # loads and stores of spilled registers
            assert used["REG"] * 32 * WARPS <= 2**16 / 2  # so two programs share a multiprocessor
            assert len(re.findall(r"\bLDG\S*\.128\b", shown)) >= 4
