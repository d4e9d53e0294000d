"""What a person may name for a checkpoint: runs, links, models of Hugging Face, typos."""

import logging
import re
import shutil
import threading
from pathlib import Path

import pytest

from model.checkpoint import load_model, save_model
from model.checkpoint_source import find_checkpoint
from model.hf_format import import_cache
from model.hf_format.convert import export_model
from model.hf_format.published import Published
from storage.byte_pairs import GPT2_PATTERN, BytePairs, ranks_file
from storage.checkpoint_folder import checkpoints_in, write_manifest
from storage.run_folder import RunFolder
from storage.vocabularies.folder import write_byte_pairs
from tests.eval_subjects import tiny_checkpoint, tiny_model
from tests.fake_hub import FakeHub
from tests.launching import python


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, in a folder whose name has a space."""
    folder = RunFolder(tmp_path / "my run")
    folder.checkpoints.mkdir(parents=True)
    for step in (5, 20):
        tiny_checkpoint(folder.checkpoint(step), step=step)
    (folder.checkpoints / "latest").symlink_to("step_000005")
    (folder.checkpoints / ".step_000030.partial").mkdir()  # a save in progress
    return folder


def export(folder, layers):
    """A model folder in Hugging Face's format, whose tokens are bytes; beside it the checkpoint."""
    own = folder.parent / "own"
    own.mkdir(parents=True)
    save_model(own, tiny_model(n_layer=layers, vocab_size=257))
    tokens = [bytes([byte]) for byte in range(256)]
    write_byte_pairs(own / "tokenizer", BytePairs("bytes", GPT2_PATTERN, ranks_file(tokens)))
    write_manifest(own)
    export_model(own, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(tmp_path_factory.mktemp("exported") / "tiny gpt", layers=1)


@pytest.fixture
def imports(monkeypatch):
    """Everything that is imported during a test, by its source."""
    done = []

    def counted(published, place, plain=import_cache.import_published):
        done.append(published.source)
        plain(published, place)

    monkeypatch.setattr(import_cache, "import_published", counted)
    return done


def damage(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def refusal(named, cache=Path("nowhere")):
    with pytest.raises(ValueError, match="^[^\n]+$") as caught:
        find_checkpoint(named, cache)
    return str(caught.value)


def test_a_run_means_its_newest_whole_checkpoint_and_one_line_says_which(run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for named in (run.path, run.checkpoints):
        assert find_checkpoint(named, tmp_path).name == "step_000020"
    assert f"{run.path}: step_000020 is its newest checkpoint" in caplog.text
    damage(run.checkpoint(20))
    assert find_checkpoint(run.path, tmp_path) == run.checkpoint(5)
    assert "step_000020/model.safetensors differs" in caplog.text
    assert run.checkpoint(20).is_dir()  # a reader renames nothing


def test_links_and_text_files_lead_to_the_checkpoint_that_they_name(run, tmp_path):
    (run.checkpoints / "best").symlink_to("step_000020")
    assert find_checkpoint(run.checkpoints / "best", tmp_path) == run.checkpoint(20)
    assert find_checkpoint(run.checkpoints / "latest", tmp_path) == run.checkpoint(5)
    (run.checkpoints / "latest").unlink()
    (run.checkpoints / "latest").write_text("step_000005\n")
    assert find_checkpoint(run.checkpoints / "latest", tmp_path) == run.checkpoint(5)
    shutil.rmtree(run.checkpoint(5))
    assert "latest names step_000005, which is not there" in refusal(run.checkpoints / "latest")
    (tmp_path / "old").symlink_to(tmp_path / "gone")
    assert "is a link to nothing" in refusal(tmp_path / "old")


def test_a_checkpoint_that_is_named_itself_must_be_whole(run, tmp_path):
    damage(run.checkpoint(20))
    assert "this checkpoint is damaged; use another one" in refusal(run.checkpoint(20))


def test_a_run_without_a_whole_checkpoint_says_so(run, tmp_path):
    for checkpoint in checkpoints_in(run.checkpoints):
        damage(checkpoint)
    assert re.search("no checkpoint of .* is whole .the newest: .*20", refusal(run.path))
    shutil.rmtree(run.checkpoints)
    run.status.write_text("{}")
    assert "has no checkpoint yet; wait until it has saved one" in refusal(run.path)


def test_a_checkpoint_deleted_for_a_newer_one_meanwhile_is_no_damage(run, tmp_path, monkeypatch):
    def verify(folder, verified=[]):  # noqa: B006
        if not verified:
            verified.append(folder)
            run.checkpoint(20).rename(run.checkpoint(30))
            raise ValueError("gone")

    monkeypatch.setattr("model.checkpoint_source.verify_checkpoint", verify)
    assert find_checkpoint(run.path, tmp_path) == run.checkpoint(30)


def test_a_model_folder_of_hugging_face_is_imported_once_and_again_when_it_changes(
    exported, tmp_path, imports
):
    theirs = shutil.copytree(exported, tmp_path / "tiny gpt")
    first = find_checkpoint(theirs, tmp_path / "cache")
    assert find_checkpoint(theirs, tmp_path / "cache") == first
    assert imports == ["tiny gpt"]
    assert load_model(first).config.n_layer == 1
    shutil.rmtree(theirs)
    export(theirs, layers=2)
    assert load_model(find_checkpoint(theirs, tmp_path / "cache")).config.n_layer == 2
    damage(first)  # and a damaged import is made anew
    shutil.rmtree(theirs)
    shutil.copytree(exported, theirs)
    assert load_model(find_checkpoint(theirs, tmp_path / "cache")).config.n_layer == 1
    assert imports == 3 * ["tiny gpt"]


def test_two_processes_that_want_the_same_model_import_it_once(exported, tmp_path, imports):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(find_checkpoint(exported, tmp_path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(set(found)), len(imports)) == (3, 1, 1)


def test_without_locks_the_process_that_comes_second_takes_what_is_there(
    exported, tmp_path, monkeypatch
):
    def imported_twice(published, place, plain=import_cache.import_published):
        plain(published, place)
        plain(published, place)

    monkeypatch.setattr(import_cache, "import_published", imported_twice)
    assert load_model(find_checkpoint(exported, tmp_path)).config.n_layer == 1


def test_a_cache_that_cannot_be_written_is_named_with_the_cure(exported, tmp_path):
    (tmp_path / "cache").write_text("a file")
    words = r"cannot be imported into .*cache/models \(.*\); set RATCHET_CACHE to a folder"
    assert re.search(words, refusal(exported, tmp_path / "cache"))


def test_a_model_without_a_tokenizer_says_how_to_give_one(exported, tmp_path):
    theirs = shutil.copytree(exported, tmp_path / "theirs")
    for name in ("tokenizer.json", "vocab.json"):
        (theirs / name).unlink()
    said = refusal(theirs, tmp_path / "cache")
    assert re.search("holds no tokenizer.*with --tokenizer.*import .*theirs --out FOLDER`", said)


def test_a_checkpoint_wins_over_a_run_and_a_run_over_a_model_folder(run, exported, tmp_path):
    shutil.copytree(exported, run.path, dirs_exist_ok=True)
    assert find_checkpoint(run.path, tmp_path) == run.checkpoint(20)
    shutil.copytree(run.checkpoint(5), run.path, dirs_exist_ok=True)
    assert find_checkpoint(run.path, tmp_path) == run.path


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model.gguf", "is a GGUF.*give the model that it was made of"),
        ("ckpt.pt", "is a pickle.*never opened.*save_pretrained"),
        ("notes.txt", "holds no model; give the folder of a run or of a checkpoint, a model"),
    ],
)
def test_other_formats_are_named_with_what_to_do(file, words, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / file).write_bytes(b"GGUF")
    assert re.search(words, refusal(tmp_path / "x"))
    assert re.search(words.replace("holds no model", "is a file"), refusal(tmp_path / "x" / file))


def test_a_folder_of_models_an_empty_one_an_adapter_and_a_single_file(
    exported, tmp_path, monkeypatch
):
    assert f"give a folder in it: {exported.parent / 'own'}, {exported}" in refusal(exported.parent)
    assert "is one file of a model; give its folder" in refusal(exported / "model.safetensors")
    (tmp_path / "openai-community" / "gpt2").mkdir(parents=True)
    (tmp_path / "models--x" / "snapshots").mkdir(parents=True)
    snapshot = shutil.copytree(exported, tmp_path / "models--x" / "snapshots" / "a1")
    assert refusal(tmp_path / "models--x").endswith(f"give a folder in it: {snapshot}")
    monkeypatch.chdir(tmp_path)
    words = "is an empty folder, and is what this name means while it exists"
    assert words in refusal(Path("openai-community/gpt2"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "merge it into its model first" in refusal(tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("runs/demo", r"there is no checkpoint at runs/demo; give the folder of a run"),
        ("my-models/tiny_gtp", r"perhaps you meant my-models/tiny_gpt\)"),
        ("a/b/c", "there is no checkpoint at a/b/c"),
        ("distilgpt2", "an id of its Hub such as openai-community/gpt2"),
        ("/nowhere/x", "there is no checkpoint at /nowhere/x"),
        ("../x", r"there is no checkpoint at \.\./x"),
    ],
)
def test_a_mistyped_path_is_no_question_to_the_hub(typed, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-models" / "tiny_gpt").mkdir(parents=True)
    monkeypatch.setattr("model.checkpoint_source.imported_from_hub", None)
    assert re.search(words, refusal(Path(typed)))


def test_without_an_answer_the_commit_that_was_used_last_serves(
    exported, tmp_path, monkeypatch, imports, caplog
):
    monkeypatch.chdir(tmp_path)
    commits = iter(["a" * 40, "b" * 40, ValueError("no network"), ValueError("no network")])

    def commit_on_hub(repository):
        found = next(commits)
        if isinstance(found, ValueError):
            raise found
        return found

    def find_published(repository, revision):
        if revision == "main":
            raise ValueError(f"{repository} cannot be downloaded")
        return Published(exported, repository, revision)

    monkeypatch.setattr(import_cache, "commit_on_hub", commit_on_hub)
    monkeypatch.setattr(import_cache, "find_published", find_published)
    names = ("gpt2", "openai-community/gpt2", "https://huggingface.co/openai-community/gpt2")
    first, second, third = (find_checkpoint(Path(name), tmp_path) for name in names)
    assert first.name == "openai-community--gpt2-aaaaaaaaaaaa"
    assert second == third
    assert imports == 2 * ["openai-community/gpt2"]
    assert "no network; " in caplog.text
    assert refusal(Path("some/model"), tmp_path) == "some/model cannot be downloaded"


def test_an_id_on_the_hub_is_generated_from_once_it_was_imported_also_offline(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "hub" / "_models" / "openai-community" / "gpt2")
    words = ("eval/generate.py", "--checkpoint", "gpt2", "--max-tokens", "2", "--prompt", "Once")
    cache, home = str(tmp_path / "cache"), str(tmp_path / "home")
    with FakeHub(tmp_path / "hub") as hub:
        online = python(
            *words, RATCHET_CACHE=cache, HF_HOME=home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0"
        )
    assert online.returncode == 0, online.stderr
    offline = python(*words, RATCHET_CACHE=cache, HF_HOME=home)
    assert (offline.returncode, offline.stdout) == (0, online.stdout)
    assert "which was imported earlier, is used" in offline.stderr
