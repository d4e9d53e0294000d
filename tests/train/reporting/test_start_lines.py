"""What a start says of the machine."""

from dataclasses import replace

import pytest
import torch

from storage.run_folder import RunFolder
from tests.runs import built, nano_config
from train.reporting.start_lines import start_lines

H200 = {"device": "cuda", "attention": "cudnn", "compiled": "max", "gpu": "NVIDIA H200"}


@pytest.fixture
def run(tmp_path):
    found = built(nano_config(tmp_path))
    yield found
    found.close()


def said(run, **settings):
    recorded = RunFolder(run.folder.path).read_config()["run"]
    found = list(start_lines(run, recorded | settings, settings.get("gpu", "AVX2")))
    assert all(len(line) <= 80 for line in found[-2:])
    return found


def test_attention_within_documents_is_said_with_what_a_token_attends_to(run):
    assert not any(line.startswith("  documents") for line in said(run))
    run.config = replace(run.config, mask_documents=True)
    (line,) = (line for line in said(run) if line.startswith("  documents"))
    assert line == "  documents  attention within each: to 7.6 tokens on average, not 8.5"


def test_a_gpus_attention_and_compiler_are_said(run):
    assert not any(line.startswith("  attention") for line in said(run))
    run.learner.ranks = replace(run.ranks, device=torch.device("cuda", 0))
    assert said(run, **H200)[-2:] == [
        "  machine    cuda NVIDIA H200, compiled and tuned, float32, torch " + torch.__version__,
        "  attention  cudnn",
    ]
    run.config = replace(run.config, deterministic=True)
    *_, last = said(run, **H200 | {"attention": "flash"})
    assert last == "  attention  flash, as cuDNN's has no deterministic backward pass"
    run.config = replace(run.config, mask_documents=True)
    assert said(run, **H200 | {"attention": "flex"})[-1] == "  attention  flex"
