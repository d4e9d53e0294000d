"""What only a GPU can show: bf16, compilation, and that its numbers are the CPU's."""

from dataclasses import replace

import pytest
import torch

from model.blocks import attention_backend
from model.shapes import SHAPES
from parallel.ranks import start
from storage.retention import SaveConfig
from tests.data_sets import tiny_data_set
from tests.runs import RECIPES, SHAPE, lines, losses, nano_config, run_to_end, tiny_config
from train.build import build_run
from train.checkpoints.host_copy import state_tensors
from train.loop import train
from train.memory.forecast import step_attention
from train.optimizers.registry import update
from train.preflight.inputs import check_inputs

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100)
    return folder


def run_on_gpu(config):
    config, ranks = replace(config, device="cuda"), start("cuda")
    run = build_run(config, ranks, check_inputs(config, ranks))
    try:
        train(run)
    finally:
        run.close()
    return run


def test_float32_training_on_the_gpu_follows_the_cpu(data, tmp_path):
    cpu = tiny_config(data, tmp_path / "cpu", dtype="float32")
    gpu = replace(cpu, out=tmp_path / "gpu", compile="off")
    run_to_end(cpu)
    run_on_gpu(gpu)
    assert losses(gpu.out) == pytest.approx(losses(cpu.out), rel=2e-3)  # TF32 products
    digests = [[x.get("data/digest") for x in lines(c.out)] for c in (cpu, gpu)]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_the_compiled_bf16_step_follows_the_plain_one(data, tmp_path):
    plain = tiny_config(data, tmp_path / "plain", dtype="bfloat16", compile="off")
    compiled = replace(plain, out=tmp_path / "compiled", compile="on")
    run_on_gpu(plain)
    run_on_gpu(compiled)
    assert losses(compiled.out) == pytest.approx(losses(plain.out), rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("compiled", "kernel"), [("on", "flex"), ("off", "efficient")])
def test_training_within_documents_on_the_gpu_follows_the_cpu(data, tmp_path, compiled, kernel):
    shape = replace(SHAPE, n_head=1)  # 16 numbers a head: the least of flex attention
    cpu = tiny_config(data, tmp_path / "cpu", dtype="float32", mask_documents=True, model=shape)
    gpu = replace(cpu, out=tmp_path / "gpu", compile=compiled)
    run_to_end(cpu)
    assert step_attention(gpu, shape, start("cuda")) == kernel
    run_on_gpu(gpu)
    assert losses(gpu.out) == pytest.approx(losses(cpu.out), rel=2e-3)  # TF32 products


def test_a_run_on_the_gpu_resumes_with_the_same_data(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=SaveConfig(4, 0, 9))
    run_on_gpu(config)
    straight = [x.get("data/digest") for x in lines(config.out)]
    for checkpoint in (config.out / "checkpoints").glob("step_000008"):
        checkpoint.rename(tmp_path / "gone")
    run_on_gpu(config)
    assert [x.get("data/digest") for x in lines(config.out)] == straight


def test_a_skipped_update_of_muon_changes_no_bit_on_the_gpu_and_waits_for_nothing(tmp_path):
    run = run_on_gpu(nano_config(tmp_path, **RECIPES["modern"]))
    optimizer, model = run.learner.optimizer, run.model
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    before = {name: t.clone() for name, t in state_tensors(model, optimizer).items()}
    skip = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(optimizer, 8, 0.02, skip)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = state_tensors(model, optimizer)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_bf16_attention_runs_in_a_fused_kernel():
    backend = attention_backend(SHAPES["gpt2"], torch.device("cuda"), torch.bfloat16)
    assert backend in ("flash", "cudnn", "efficient")
