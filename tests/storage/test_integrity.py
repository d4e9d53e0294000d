"""A changed bit or a cut file in a checkpoint or a data set is found and named.

The seed determines the bits and cuts. The short selection takes every file; the long one takes
every byte of the small files and many places of the large ones.
"""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.dataset.shards import check_data_set, open_data_set
from eval.training_config import EvalConfig
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.data_sets import tiny_data_set
from tests.runs import nano_config, run_to_end

HEADER_BYTES = 128  # of an .npy file; a safetensors file opens with the length of its header


@dataclass(frozen=True)
class Damage:
    """Damage to one file: a flipped bit, a cut, or its loss."""

    name: str
    kind: str
    place: int = 0

    def apply(self, content: bytes) -> bytes | None:
        """The content afterwards; None if the file is gone."""
        if self.kind == "lost":
            return None
        if self.kind == "cut":
            return content[: self.place]
        byte, bit = divmod(self.place, 8)
        return content[:byte] + bytes([content[byte] ^ (1 << bit)]) + content[byte + 1 :]


def contents(folder):
    """Every file below a folder, by its name in it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def few_damages(files):
    """Of each file: two flipped bits, one in its head; two cuts, by one byte and to 0; its loss."""
    dice = random.Random(5)
    for name, content in files.items():
        yield Damage(name, "lost")
        yield Damage(name, "cut", 0)
        yield Damage(name, "cut", len(content) - 1)
        yield Damage(name, "flip", dice.randrange(8 * min(len(content), HEADER_BYTES)))
        yield Damage(name, "flip", dice.randrange(8 * len(content)))


def many_damages(files, head_bytes, anywhere):
    """Of each file too: a bit in every byte of manifest and heads; flips and cuts anywhere."""
    dice = random.Random(6)
    yield from few_damages(files)
    for name, content in files.items():
        manifest = Path(name).name.lower() == "manifest.json"
        for byte in range(len(content) if manifest else min(head_bytes, len(content))):
            yield Damage(name, "flip", 8 * byte + dice.randrange(8))
        for _ in range(anywhere):
            yield Damage(name, "flip", dice.randrange(8 * len(content)))
            yield Damage(name, "cut", dice.randrange(len(content)))


def means_the_same(before, after):
    """Whether a JSON file still has the same value, as after a cut of its last newline."""
    try:
        return after is not None and json.loads(before) == json.loads(after)
    except ValueError:
        return False


class Trial:
    """A folder that is damaged repeatedly, and the damage that was not found."""

    def __init__(self, folder, check):
        self.folder, self.check = folder, check
        self.undamaged = contents(folder)
        self.found = 0
        self.harmless: list[Damage] = []
        self.silent: list[Damage] = []

    def go_through(self, damages):
        for damage in damages:
            path, before = self.folder / damage.name, self.undamaged[damage.name]
            after = damage.apply(before)
            if after is None:
                path.unlink()
            else:
                path.write_bytes(after)
            if self.check(damage):
                self.found += 1
            else:
                same = means_the_same(before, after)
                (self.harmless if same else self.silent).append(damage)
            path.write_bytes(before)
        return self


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run with the checkpoints of steps 4 and 8, and one validation in the results."""
    evals = EvalConfig(every=4, val_tokens=64, tasks_every=0, tasks=())
    config = nano_config(tmp_path_factory.mktemp("run"), eval=evals, save=SaveConfig(4, 0, 9))
    run_to_end(config)
    return RunFolder(config.out)


@pytest.fixture
def checkpoint_trial(run_folder, caplog):
    """Damages the newest checkpoint; found if it is named, renamed and the one before is used."""
    newest = run_folder.checkpoint(8)
    renamed = newest.with_name(f"{newest.name}.broken")

    def is_found(damage):
        caplog.clear()
        chosen = run_folder.recover_newest_checkpoint()
        if chosen != run_folder.checkpoint(4):
            return False
        named = damage.name if damage.name != "MANIFEST.json" else newest.name
        assert f"{newest.name}/" in caplog.text or "not a complete checkpoint" in caplog.text
        assert named in caplog.text or "not a complete checkpoint" in caplog.text
        renamed.rename(newest)
        return True

    return Trial(newest, is_found)


@pytest.fixture
def data_trial(tmp_path):
    """Damages a data set; found if opening or checking it is refused by the file's name."""
    folder = tiny_data_set(tmp_path / "set", documents=20, shards=2).folder
    shutil.rmtree(folder / ".index", ignore_errors=True)

    def is_found(damage):
        said = ""
        try:
            data = open_data_set(folder)
            data.tokenizer()
            check_data_set(data, "full")
        except ValueError as error:
            said = str(error)
        assert not said or Path(damage.name).name in said
        return bool(said)

    return Trial(folder, is_found)


CHECKPOINT_FILES = {
    *("MANIFEST.json", "model.json", "model.safetensors", "optimizer.safetensors"),
    *("digest.json", "results.json", "state.json"),
    *("tokenizer/meta.json", "tokenizer/ranks.tiktoken"),
}


def only_the_last_newline(trial):
    """Whether the only damage not found is a missing last newline of a JSON file."""
    return all(
        damage == Damage(damage.name, "cut", len(trial.undamaged[damage.name]) - 1)
        and trial.undamaged[damage.name].endswith(b"}\n")
        for damage in trial.harmless
    )


@pytest.mark.fault(
    "S2", injected="every file of a checkpoint cut or lost (3 a file)", lost="interval"
)
@pytest.mark.fault("S3", injected="2 bits in each file of a checkpoint", lost="interval")
def test_damage_to_any_file_of_a_checkpoint_is_named_and_the_one_before_is_used(checkpoint_trial):
    trial = checkpoint_trial.go_through(few_damages(checkpoint_trial.undamaged))
    assert trial.undamaged.keys() == CHECKPOINT_FILES
    assert trial.silent == []
    assert len(trial.harmless) <= 1
    assert only_the_last_newline(trial)
    assert trial.found >= 39


@pytest.mark.fault("S2", injected="every file of a data set cut or lost (3 a file)", lost="0")
@pytest.mark.fault("S3", injected="2 bits in each file of a data set", lost="0")
def test_damage_to_any_file_of_a_data_set_is_refused_by_its_name(data_trial):
    trial = data_trial.go_through(few_damages(data_trial.undamaged))
    assert len(trial.undamaged) == 12
    assert trial.silent == []
    assert only_the_last_newline(trial)
    assert trial.found >= 58


@pytest.mark.long
@pytest.mark.fault("S2", injected="20 cuts of each file of a checkpoint", lost="interval")
@pytest.mark.fault(
    "S3", injected="a bit in each byte of the manifest, 36 elsewhere in each file", lost="interval"
)
def test_thousands_of_damages_to_a_checkpoint_are_all_found(checkpoint_trial):
    trial = checkpoint_trial.go_through(many_damages(checkpoint_trial.undamaged, 16, 20))
    assert trial.silent == []
    assert only_the_last_newline(trial)
    assert trial.found > 300


@pytest.mark.long
@pytest.mark.fault("S2", injected="20 cuts of each file of a data set", lost="0")
@pytest.mark.fault("S3", injected="a bit in every byte of manifest and heads", lost="0")
def test_thousands_of_damages_to_a_data_set_are_all_found(data_trial):
    trial = data_trial.go_through(many_damages(data_trial.undamaged, HEADER_BYTES, 20))
    assert trial.silent == []
    assert only_the_last_newline(trial)
    assert trial.found > 300


def large_set(tmp_path):
    """A data set of one shard that is read while its files change."""
    return tiny_data_set(tmp_path / "set", documents=400, shards=1, mean_length=200)


@pytest.mark.fault("D3", injected="tokens cut to half while they are read", lost="0")
def test_a_shard_that_is_cut_while_it_is_read_is_an_error_that_names_it(tmp_path):
    data = large_set(tmp_path)
    split = data.split("train")
    split.read(0, 10)
    path = data.folder / "train_000000.npy"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(OSError, match=r"train_000000\.npy ends before its last token; copy it"):
        split.read(split.tokens - 10, 10)


@pytest.mark.fault("D3", injected="lengths cut, tokens replaced while they are read", lost="0")
def test_a_cut_length_file_and_a_replaced_shard_do_not_disturb_who_reads_them(tmp_path):
    data = large_set(tmp_path)
    split = data.split("train")
    before = split.read_document(split.documents - 1).tolist()
    lengths = data.folder / "train_000000.lengths.npy"
    with lengths.open("r+b") as file:
        file.truncate(0)  # a mapped file would end the process with SIGBUS
    other = data.folder / "other"
    other.write_bytes(b"another file")
    other.rename(data.folder / "train_000000.npy")
    assert split.read_document(split.documents - 1).tolist() == before
    with pytest.raises(ValueError, match=r"train_000000\.npy is not a \.npy file"):
        open_data_set(data.folder)
