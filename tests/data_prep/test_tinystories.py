"""tinystories.py: both versions from the Hub, local files, and the validation files."""

import pytest

from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.hub.download import Downloader
from data_prep.preparation.prepare import prepare
from data_prep.tinystories import TinyStoriesOptions, local_source, prepare_tinystories
from tests.data_prep.hub.test_faults import IMPATIENT
from tests.data_prep.stories import folder_bytes, texts_of, write_lines
from tests.fake_hub import FakeHub, Fault
from tests.hub_fixtures import Maker


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    Maker(root, seed=0).tinystories(150)
    with FakeHub(root) as server:
        yield server


def made(hub, out, **more):
    options = TinyStoriesOptions(out=out, revision="main", workers=1, encoder="tiktoken", **more)
    prepare_tinystories(options, Downloader(hub.url, IMPATIENT))
    data = open_data_set(out)
    check_data_set(data, "full")
    return data


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_validation_files_of_the_data_set_are_the_validation_split(hub, tmp_path, version):
    data = made(hub, tmp_path / "out", version=version)
    # Some made-up stories hold the separator, which cuts them in two in the text files.
    assert 150 <= data.manifest.train.documents <= 155
    assert data.manifest.val.documents == 3
    assert data.manifest.split_rule["val_files"] == [1]
    assert data.manifest.source.id == f"roneneldan/TinyStories/{version}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_downloads_stay_beside_a_finished_data_set(hub, tmp_path):
    for more in ({"part": "1/2"}, {"part": "2/2"}, {"merge": True}, {}):
        options = {"revision": "main", "workers": 1, "encoder": "tiktoken", "shard_tokens": 3000}
        options = TinyStoriesOptions(version="v2", out=tmp_path / "out", **options, **more)
        prepare_tinystories(options, Downloader(hub.url, IMPATIENT))
        if "part" not in more:
            assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_kept_downloads_stay_when_the_data_set_is_complete_already(hub, tmp_path):
    made(hub, tmp_path / "out", version="v2", keep_source=True)
    kept = folder_bytes(tmp_path / "out.source")
    made(hub, tmp_path / "out", version="v2")
    assert folder_bytes(tmp_path / "out.source") == kept
    assert len(kept) == 2


def test_both_versions_hold_the_same_stories(hub, tmp_path):
    one, two = (made(hub, tmp_path / version, version=version) for version in ("v1", "v2"))
    literal = [text for text in texts_of(one) if "<|endoftext|>" not in text]
    assert set(literal) <= set(texts_of(two))


def test_a_damaged_text_file_is_fetched_again(hub, tmp_path):
    quiet = made(hub, tmp_path / "quiet", version="v2")
    hub.faults.replace([Fault.parse("corrupt:path=V2,every=2")])
    disturbed = made(hub, tmp_path / "disturbed", version="v2")
    hub.faults.replace([])
    assert folder_bytes(quiet.folder) == folder_bytes(disturbed.folder)


def test_all_stories_can_be_split_by_their_hash(hub, tmp_path):
    data = made(hub, tmp_path / "out", split="hash", val_tokens=3000)
    assert data.manifest.val.documents > 3


def test_blank_stories_are_skipped_and_counted(tmp_path):
    write_lines(tmp_path / "train.jsonl", ["One.", " \n ", "", "Two. ", "\t"])
    write_lines(tmp_path / "valid.jsonl", ["Three.", "  "])
    source = local_source((str(tmp_path / "train.jsonl"),), (str(tmp_path / "valid.jsonl"),))
    options = TinyStoriesOptions(workers=1)
    data = prepare(source, tmp_path / "out", options)
    assert (texts_of(data), texts_of(data, "val")) == (["One.", "Two. "], ["Three."])
    assert data.manifest.skipped_empty == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_files": ("a.txt",)}, "give both or none"),
        ({"val_tokens": 5}, "val_tokens=5 has no meaning with split=given"),
        ({"max_documents": 5}, "max_documents=5 .* split=given"),
        ({"part": "0/3"}, "part=0/3 must be I/N"),
        ({"part": "1/3", "merge": True}, "part=1/3 with merge"),
    ],
)
def test_options_that_contradict_each_other_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        TinyStoriesOptions(**options)
