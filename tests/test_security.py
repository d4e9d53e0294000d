"""Foreign files run no code and claim no memory; secrets stay out of files."""

import json
import os
import pickle
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from data_prep import fineweb, tinystories
from data_prep.dataset.manifest import read_manifest
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.hub.listing import is_commit
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows
from eval.subject import load_subject
from eval.tasks import hellaswag
from model.checkpoint import load_config, load_model
from storage.atomic import read_json
from storage.checkpoint_folder import verify_checkpoint, write_manifest
from tests.data_sets import rewrite_manifest, small_tokenizer, tiny_data_set
from tests.launching import REPO, python
from tests.runs import alone, built, flags, run_to_end, tiny_config
from train.checkpoints.checkpoint import load_checkpoint
from train.checkpoints.state_digest import read_digest

CANARY = "hf_canaryCanaryCANARY0123456789"
HUGE = 2**40
MARKER = "a_pickle_was_executed"


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=60, tokenizer=small_tokenizer())
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    config = tiny_config(data, tmp_path_factory.mktemp("runs") / "run", steps=3)
    run_to_end(config)
    return config


@pytest.fixture
def checkpoint(finished, tmp_path):
    """A copy of a sound checkpoint."""
    folder = tmp_path / "step_000003"
    shutil.copytree(finished.out / "checkpoints" / "step_000003", folder)
    return folder


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def load_all_of(checkpoint, finished):
    """Everything that is ever read of a checkpoint."""
    load_subject(checkpoint, alone())
    run = built(replace(finished, out=checkpoint.parent / "other"))
    try:
        load_checkpoint(checkpoint, run.model, run.learner.optimizer, run.data.fingerprint)
        read_json(checkpoint / "results.json")
        read_digest(checkpoint)
    finally:
        run.close()
        shutil.rmtree(checkpoint.parent / "other")


def test_a_payload_would_be_noticed(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / MARKER)))
    assert (tmp_path / MARKER).exists()


def test_a_pickle_in_place_of_any_file_of_a_checkpoint_is_refused_unexecuted(
    checkpoint, finished, tmp_path
):
    names = files_below(checkpoint)
    assert len(names) == 9
    for name in names:
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Payload(tmp_path / MARKER)))
        if name != "MANIFEST.json":
            write_manifest(checkpoint)  # a forger's, whose digests fit
        with pytest.raises(ValueError, match="damaged|cannot be read|other sha256|sha256"):
            load_all_of(checkpoint, finished)
        (checkpoint / name).write_bytes(whole)
    write_manifest(checkpoint)
    load_all_of(checkpoint, finished)
    assert not (tmp_path / MARKER).exists()


def test_a_pickle_beside_the_files_of_a_checkpoint_is_left_alone(checkpoint, finished, tmp_path):
    for name in ("model.pt", "optimizer.pt", ".metadata", "rng_state.pth", "pytorch_model.bin"):
        (checkpoint / name).write_bytes(pickle.dumps(Payload(tmp_path / MARKER)))
    write_manifest(checkpoint)
    load_all_of(checkpoint, finished)
    assert not (tmp_path / MARKER).exists()


def read_all_of(folder):
    opened = open_data_set(folder)
    opened.tokenizer()
    check_data_set(opened, "full")
    read_windows(OneSource(TrainingStream(opened.split("train"), 1)), 0, 4, 16)


def test_a_pickle_in_place_of_any_file_of_a_data_set_is_refused_unexecuted(tmp_path):
    folder = tmp_path / "set"
    tiny_data_set(folder, documents=20, shards=1)
    for name in files_below(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / MARKER)))
        with pytest.raises(ValueError, match=re.escape(Path(name).name)):
            read_all_of(folder)
        (folder / name).write_bytes(whole)
    read_all_of(folder)
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", ["train_000000.npy", "train_000000.lengths.npy"])
def test_an_array_of_objects_is_refused_unexecuted(tmp_path, name):
    folder = tmp_path / "set"
    tiny_data_set(folder, documents=20, shards=1)
    np.save(folder / name, np.array([Payload(tmp_path / MARKER)]), allow_pickle=True)
    with pytest.raises(ValueError, match=re.escape(name)):
        open_data_set(folder)
    assert not (tmp_path / MARKER).exists()


def test_a_shard_whose_header_and_manifest_claim_2_to_40_tokens_is_refused(tmp_path):
    folder = tmp_path / "set"
    opened = tiny_data_set(folder, documents=20, shards=1)
    shard = opened.manifest.train.shards[0]
    with (folder / f"{shard.name}.npy").open("r+b") as file:
        header = {"descr": "<u2", "fortran_order": False, "shape": (HUGE,)}
        np.lib.format.write_array_header_1_0(file, header)
    huge = replace(opened.manifest.train, tokens=HUGE, shards=(replace(shard, tokens=HUGE),))
    rewrite_manifest(folder, train=huge)
    with pytest.raises(ValueError, match=r"bytes, but must be 2199023255"):
        open_data_set(folder)


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_tensors_that_claim_more_bytes_than_the_file_has_are_refused(checkpoint, finished, name):
    header = {"wte.weight": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}
    text = json.dumps(header).encode()
    path = checkpoint / f"{name}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=r"cannot be read|has \d+ bytes, the shape"):
        load_all_of(checkpoint, finished)


@pytest.mark.parametrize("field", ["n_layer", "n_embd", "context_length", "mlp_width"])
def test_a_shape_larger_than_its_weights_is_refused_before_it_is_allocated(checkpoint, field):
    content = read_json(checkpoint / "model.json")
    content["config"][field] = HUGE
    (checkpoint / "model.json").write_text(json.dumps(content))
    refused = (
        r"model\.safetensors has \d+ bytes, .* damaged|is more than any network has; .* damaged"
    )
    with pytest.raises(ValueError, match=refused):
        load_model(checkpoint)


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_tensors_of_another_type_are_refused(checkpoint, finished, name):
    path = checkpoint / f"{name}.safetensors"
    save_file({key: tensor.double() for key, tensor in load_file(path).items()}, path)
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="F64|float64"):
        load_all_of(checkpoint, finished)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b"])
def test_a_checkpoint_whose_manifest_leads_outside_is_refused(checkpoint, name):
    manifest = read_json(checkpoint / "MANIFEST.json")
    manifest["files"][name] = next(iter(manifest["files"].values()))
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="outside its folder"):
        verify_checkpoint(checkpoint)


def test_a_checkpoint_with_a_link_to_the_outside_is_refused(checkpoint, tmp_path):
    path = checkpoint / "model.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="outside its folder"):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["../train_000000", "/etc/hostname", "a/b", "", ".hidden", "a\0b"])
def test_a_data_set_whose_manifest_leads_outside_is_refused(tmp_path, name):
    folder = tmp_path / "set"
    opened = tiny_data_set(folder, documents=20, shards=1)
    shard = replace(opened.manifest.train.shards[0], name=name)
    rewrite_manifest(folder, train=replace(opened.manifest.train, shards=(shard,)))
    with pytest.raises(ValueError, match="is no name of a shard"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "\x80\x04", "{} {}"])
def test_json_made_to_break_the_parser_is_refused_by_name(tmp_path, text):
    path = tmp_path / "model.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"model\.json is not readable JSON"):
        load_config(tmp_path)


SCRIPT = """
import sys
import train.loop
from train.main import main
try:
    main()
finally:
    print("imported:", [name for name in ("transformers", "datasets") if name in sys.modules])
def crash(run, *_):
    raise RuntimeError("made to crash")
train.step.Learner.step = crash
at = sys.argv.index("--out") + 1
sys.argv[at] += "_crashed"
main()
"""


@pytest.fixture(scope="module")
def secret_run(data, tmp_path_factory):
    """A run and a crashed one, with a secret in the environment; their folder and their output."""
    folder = tmp_path_factory.mktemp("secret")
    config = tiny_config(data, folder / "run", steps=3)
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "API_KEY")
    secrets = dict.fromkeys(names, CANARY)
    done = python("-c", SCRIPT, *flags(config)[1:], folder=folder, **secrets)
    assert "made to crash" in done.stderr
    assert read_json(folder / "run_crashed" / "status.json")["state"] == "failed"
    return folder, done.stdout + done.stderr


def test_a_secret_of_the_environment_is_in_no_file_and_no_message(secret_run):
    folder, said = secret_run
    assert CANARY not in said
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_training_imports_neither_transformers_nor_datasets(secret_run):
    assert "imported: []" in secret_run[1]


def project_texts():
    """Scripts, pages and sources of the project, by path."""
    kinds = ("*.py", "*.sh", "*.sbatch", "*.md", "Makefile", "*.toml", "*.cfg")
    folders = [
        "",
        "launch/",
        "launch/slurm/",
        "train/",
        "storage/",
        "eval/",
        "bench/",
        "data_prep/",
    ]
    for folder in folders:
        for kind in kinds:
            for path in REPO.glob(folder + kind):
                yield path, path.read_text(encoding="utf-8")


def test_tensorboard_is_never_opened_to_other_machines():
    opened = re.compile(r"tensorboard[^\n]*(--bind_all|--host)")
    assert [str(path) for path, text in project_texts() if opened.search(text)] == []


def test_no_script_pipes_a_download_into_a_shell():
    piped = re.compile(r"(curl|wget)[^\n]*\|\s*(ba)?sh")
    assert [str(path) for path, text in project_texts() if piped.search(text)] == []


@pytest.mark.parametrize(("name", "floor"), [("torch", (2, 10)), ("datasets", (4, 0))])
def test_versions_with_known_holes_are_not_accepted(name, floor):
    wanted = re.search(rf"^    {name} >= (\d+)\.(\d+)", (REPO / "setup.cfg").read_text(), re.M)
    pinned = re.search(rf"^{name}==(\d+)\.(\d+)", (REPO / "constraints.txt").read_text(), re.M)
    for found in (wanted, pinned):
        assert tuple(map(int, found.groups())) >= floor


def test_training_data_and_hellaswag_are_pinned_to_a_commit():
    assert all(is_commit(room.REVISION) for room in (fineweb, tinystories, hellaswag))
    assert not is_commit("main")


def test_the_environment_reaches_no_configuration(finished):
    recorded = (finished.out / "config.json").read_text()
    assert os.environ["PATH"] not in recorded
