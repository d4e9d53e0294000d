"""Names and manifests of checkpoint folders."""

import pytest

from storage.atomic import read_json, write_json
from storage.checkpoint_folder import (
    checkpoints_in,
    delete_checkpoint,
    free_path,
    manifest_mtime,
    set_aside,
    step_name,
    step_of,
    verify_checkpoint,
    weights_sha256,
)
from storage.digest import file_sha256
from storage.run_folder import RunFolder
from tests.storage.checkpoints import checkpoint


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}])
def test_a_manifest_of_another_format_is_refused(tmp_path, change):
    folder = checkpoint(RunFolder(tmp_path), 3)
    write_json(folder / "MANIFEST.json", read_json(folder / "MANIFEST.json") | change)
    with pytest.raises(ValueError, match=r"MANIFEST\.json is of format .* update Ratchet"):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    "content",
    ['{"format": 1, "files": {"../secret": {"bytes": 1, "sha256": ""}}}', '{"fi1es": {}}', "[]"],
)
def test_a_file_that_is_no_manifest_or_names_other_folders_is_refused(tmp_path, content):
    (tmp_path / "MANIFEST.json").write_text(content)
    with pytest.raises(ValueError, match=r"outside its folder|is not a manifest"):
        verify_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], "holds a model of Hugging Face, not a checkpoint; import it with"),
        (["model.safetensors.index.json"], "python model/huggingface.py import"),
        (["pytorch_model.bin"], "holds a model of Hugging Face"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter .*merge_and_unload"),
        (["model.safetensors", "model.json"], "is not a complete checkpoint"),
        ([], "is not a complete checkpoint"),
    ],
)
def test_a_model_of_another_kind_is_named_with_the_way_to_import_it(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        verify_checkpoint(tmp_path)


def test_a_free_path_counts_on_where_names_are_taken(tmp_path):
    path = tmp_path / "step_000009"
    assert free_path(path) == path
    path.mkdir()
    (tmp_path / "step_000009.2").mkdir()
    assert free_path(path).name == "step_000009.3"


def test_broken_checkpoints_of_one_step_get_names_of_their_own(tmp_path):
    run = RunFolder(tmp_path)
    names = [set_aside(checkpoint(run, 7)).name for _ in range(2)]
    assert names == ["step_000007.broken", "step_000007.broken.2"]
    assert checkpoints_in(run.checkpoints) == []


@pytest.mark.parametrize("step", [0, 500, 1_234_567])
def test_a_step_is_read_back_from_the_name(tmp_path, step):
    assert step_of(tmp_path / step_name(step)) == step


def test_a_manifest_identifies_the_weights_until_it_is_deleted(tmp_path):
    folder = checkpoint(RunFolder(tmp_path), 3)
    assert weights_sha256(folder) == file_sha256(folder / "model.safetensors")
    assert manifest_mtime(folder) > 0
    delete_checkpoint(folder)
    assert (folder.exists(), manifest_mtime(folder)) == (False, 0)
