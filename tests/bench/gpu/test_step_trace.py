"""Tests of bench/gpu/step_trace.py: time by kind of kernel, from a made-up trace."""

import gzip
import json

import pytest

from bench.gpu.step_trace import milliseconds_of_a_step


def trace_of(tmp_path, *spans):
    """A trace with these spans: name, begin and length in microseconds."""
    events = [
        {"ph": "X", "cat": "kernel", "name": name, "ts": begin, "dur": length}
        for name, begin, length in spans
    ]
    events += [{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 1e6}]
    file = tmp_path / "profile_40_42.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    return file


def test_each_kernel_counts_for_its_kind_and_gaps_are_where_none_runs(tmp_path):
    file = trace_of(
        tmp_path,
        ("nvjet_hsh_128x256", 0, 1000),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", 1000, 500),
        ("triton_poi_fused_add_gelu", 2000, 300),  # after a gap of 500
        ("triton_red_fused__log_softmax_nll_loss_forward", 2100, 400),  # beside the one before
        ("void at::native::multi_tensor_apply_kernel<FusedAdam>", 2500, 100),
        ("sm90_xmma_gemm_bf16", 2600, 200),
    )
    found = milliseconds_of_a_step(file, steps=2)
    assert found["by_kind_ms"] == {
        "matrix products": 0.6,
        "attention": 0.25,
        "loss": 0.2,
        "fused element-wise": 0.15,
        "update": 0.05,
    }
    assert found["gaps_ms"] == 0.25
    assert next(iter(found["kernels_ms"])) == "nvjet_hsh_128x256"


def test_a_trace_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no kernel"):
        milliseconds_of_a_step(trace_of(tmp_path), 2)
