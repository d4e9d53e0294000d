"""HellaSwag items from files and from a Hub on this machine."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from eval.subject import EvalOptions
from eval.tasks.hellaswag import VALIDATION_FILE, hellaswag, items_from_file
from storage.digest import file_sha256
from tests.eval_subjects import tiny_subject
from tests.fake_hub import FakeHub
from tests.hub_fixtures import Maker
from tests.launching import REPO, python

REAL = REPO.parent / "shared/data/hellaswag_val_exact_subset.jsonl.xz"
ROW = {
    "ind": 7,
    "activity_label": "Baking",
    "ctx_a": "The baker opens the oven.",
    "ctx_b": "she",
    "ctx": "The baker opens the oven. she",
    "endings": ["takes the bread out.", "sings to it.", "paints it.", "sells the oven."],
    "source_id": "made~up",
    "split": "val",
    "split_type": "indomain",
    "label": "0",
}


def write(path: Path, *rows: dict) -> Path:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_items_are_read_compressed_or_not_with_labels_as_text_or_number(tmp_path, suffix):
    path = write(tmp_path / f"items.jsonl{suffix}", ROW, {**ROW, "label": 3})
    first, second = items_from_file(path)
    assert first.context == ROW["ctx"]
    assert first.endings == tuple(ROW["endings"])
    assert (first.label, second.label) == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ""}, "line 2 has an empty label, as a test split does"),
        ({"label": "4"}, "line 2 has label '4', which must be 0 to 3"),
        ({"label": None}, "line 2 has label 'None'"),
        ({"endings": "one text"}, "line 2 must have a text as ctx and a list"),
        ({"endings": ["one"]}, "line 2 must have a text as ctx and a list"),
        ({"ctx": 5}, "line 2 must have a text as ctx and a list"),
    ],
)
def test_a_bad_line_is_named_with_the_rule(tmp_path, change, message):
    path = write(tmp_path / "items.jsonl", ROW, {**ROW, **change})
    with pytest.raises(ValueError, match=message):
        items_from_file(path)


def test_another_schema_or_a_damaged_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 1 is not in HellaSwag's schema"):
        items_from_file(write(tmp_path / "other.jsonl", {"text": "x"}))
    (tmp_path / "torn.jsonl").write_text(json.dumps(ROW)[:40])
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        items_from_file(tmp_path / "torn.jsonl")
    packed = write(tmp_path / "items.jsonl.xz", ROW).read_bytes()
    (tmp_path / "short.jsonl.xz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"short\.jsonl\.xz cannot be read"):
        items_from_file(tmp_path / "short.jsonl.xz")


def test_a_missing_file_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist; give a \.jsonl"):
        EvalOptions(hellaswag_file=tmp_path / "nothing.jsonl")


def test_an_empty_file_is_an_error(tmp_path):
    options = EvalOptions(hellaswag_file=write(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match="no items to score"):
        hellaswag(tiny_subject(), options)


@pytest.mark.skipif(not REAL.is_file(), reason="the real items are not on this machine")
def test_real_items_give_a_score_near_chance_for_random_weights():
    options = EvalOptions(hellaswag_file=REAL, items=100)
    tags = hellaswag(tiny_subject(context_length=160), options).tags
    assert 0.1 < tags["hellaswag/acc"] < 0.4
    assert 0.03 < tags["hellaswag/acc_norm_stderr"] < 0.05
    assert "hellaswag/truncated_rows" not in tags


FETCH = """
import sys
from eval.tasks.hellaswag import items_from_hub
try:
    print(len(items_from_hub("main", sys.argv[1])))
except ValueError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    Maker(folder, 0).hellaswag(20)
    return folder


def fetch(url: str, home: Path, sha256: str) -> str:
    """Fetch in another process, because huggingface_hub reads its address at import."""
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = python("-c", FETCH, sha256, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.fault("D9", injected="a damaged download of HellaSwag")
def test_damaged_items_are_downloaded_again_and_later_come_from_the_cache(hub_folder, tmp_path):
    sha256 = file_sha256(hub_folder / "Rowan/hellaswag" / VALIDATION_FILE)
    with FakeHub(hub_folder, faults=["corrupt:count=1,path=cdn"]) as hub:
        assert fetch(hub.url, tmp_path, sha256) == "20"
        assert hub.stats()["faults"] == {"corrupt": 1}
        assert hub.stats()["by_status"]["GET 200"] == 2
        url = hub.url
    assert fetch(url, tmp_path, sha256) == "20"


def test_an_unreachable_hub_or_wrong_data_is_one_sentence(hub_folder, tmp_path):
    with FakeHub(hub_folder) as hub:
        wrong = fetch(hub.url, tmp_path / "a", "0" * 64)
        url = hub.url
    assert wrong.startswith("DataUnavailable: Rowan/hellaswag was damaged in two downloads")
    gone = fetch(url, tmp_path / "b", "0" * 64)
    assert gone.startswith("DataUnavailable: Rowan/hellaswag cannot be downloaded from the Hub")
    assert gone.endswith("or run once on a machine with network access to fill the cache")
