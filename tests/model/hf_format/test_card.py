"""The model card has the run's figures, and no paths of its author."""

import json
from pathlib import Path

import pytest

from model.hf_format.card import weights_name
from model.hf_format.convert import export_model
from storage.atomic import read_json, write_json
from storage.checkpoint_folder import write_manifest
from tests.model.hf_format.models import LLAMA, our_checkpoint


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("/secret/place/stories", "stories"),
        (["/secret/place/stories:0.7", "/secret/code:0.3"], "stories:0.7, code:0.3"),
    ],
)
def test_the_card_has_the_figures_of_the_run(tmp_path, data, named):
    folder = tmp_path / "run" / "checkpoints" / "step_000500"
    our_checkpoint(folder)
    state = {"step": 500, "next_window": 4000, "context_length": 48, "seed": 1337}
    state |= {"data": data, "data_fingerprint": "abcdef" * 8}
    write_json(folder / "state.json", state)
    metrics = {"val/loss": 3.21, "hellaswag/acc_norm": 0.2955, "hellaswag/acc_norm_stderr": 0.0046}
    write_json(folder / "results.json", {"step": 500, "metrics": metrics})
    write_json(tmp_path / "run" / "config.json", {"run": {"steps": 900, "batch_tokens": 384}})
    write_manifest(folder)
    export_model(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for row in ("| tokens | 192,000 |", f"| data | {named} |", "| batch tokens | 384 |",
                "| val/loss | 3.2100 |", "| hellaswag/acc_norm | 0.2955 ± 0.0046 |"):  # fmt: skip
        assert row in card
    assert "secret" not in card
    assert 'model = "."  # in this folder' in card
    assert f"trained on {named}, with Ratchet; exported at step 500" in card
    assert "tags: [ratchet, gpt2]" in card


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ("alice/runs/first/checkpoints/step_000500", "first, step_000500"),
        ("alice/runs/first/checkpoints/latest", "first"),
        ("alice/ckpts/own", "own"),
        ("/own", "own"),
    ],
)
def test_a_card_names_the_initial_weights_without_their_path(tmp_path, checkpoint, named):
    (tmp_path / "alice/ckpts/own").mkdir(parents=True)
    assert weights_name(tmp_path / checkpoint) == named


def test_a_card_names_the_run_also_by_a_path_from_inside_it(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    assert weights_name(Path("checkpoints/latest")) == "first"


@pytest.mark.parametrize("known", [True, False])
def test_the_card_names_the_source_of_the_initial_weights(tmp_path, known):
    folder, begin = tmp_path / "run" / "checkpoints" / "step_000008", tmp_path / "imported"
    our_checkpoint(folder, **LLAMA)
    write_json(folder / "state.json", {"step": 8, "data": "/secret/stories"})
    write_json(tmp_path / "run" / "config.json", {"config": {"init": str(begin)}})
    if known:
        write_json(begin / "origin.json", {"source": "openai-community/gpt2", "commit": "607a"})
    write_manifest(folder)
    export_model(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    source = "openai-community/gpt2 at commit 607a" if known else "imported"
    assert f"trained on stories, from the weights of {source}, with Ratchet" in card
    assert "tags: [ratchet, llama]" in card


def test_the_card_has_the_results_in_evals_jsonl_of_this_step_and_these_weights(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step_000500"
    our_checkpoint(folder)
    write_json(folder / "state.json", {"step": 500})
    write_json(folder / "results.json", {"step": 500, "metrics": {"val/loss": 3.25}})
    write_manifest(folder)
    weights = read_json(folder / "MANIFEST.json")["files"]["model.safetensors"]["sha256"]
    here = {"step": 500, "tasks": "piqa", "options": "", "weights": weights}
    asked = {**here, "piqa/acc": 0.51, "options": "task_file=piqa=/secret/p.jsonl items=7"}
    rounded = {**here, "piqa/acc": 0.52, "options": "dtype=bfloat16"}
    evals = [
        {**here, "piqa/acc": 0.11, "step": 400},
        {**here, "piqa/acc": 0.22, "weights": "0" * 64},  # before the step was done again
        {**here, "piqa/acc": 0.62, "piqa/acc_stderr": 0.01},
        asked,
        rounded,
    ]
    text = "".join(json.dumps(line) + "\n" for line in evals) + '{"step": 500, "piq'
    (tmp_path / "run" / "evals.jsonl").write_text(text)
    export_model(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    table = (
        "| Results at step 500 | |\n| --- | ---: |\n| val/loss | 3.2500 |\n| piqa/acc | 0.6200 ± "
    )
    assert table in card
    assert "| Results at step 500 with task_file, items=7 | |" in card
    assert (
        "| Results at step 500 with dtype=bfloat16 | |\n| --- | ---: |\n| piqa/acc | 0.5200" in card
    )
    assert not any(text in card for text in ("secret", "0.1100", "0.2200"))
