"""hf_dataset.py: repositories of every usual layout, from a local stand-in for the Hub."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.fineweb import FineWebOptions, prepare_fineweb
from data_prep.hf_dataset import HfDatasetOptions, prepare_hf_dataset
from data_prep.hub.download import Downloader
from data_prep.hub.presets import HUB_PRESETS
from data_prep.preparation.unit import UnitWork
from tests.data_prep.hub.test_faults import IMPATIENT
from tests.data_prep.stories import folder_bytes, story, texts_of
from tests.fake_hub import FakeHub, Fault
from tests.hub_fixtures import Maker

STORIES = [story(number) for number in range(40)]
QUESTIONS = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "level": n} for n in range(30)]
CARD = "---\nlicense: mit\n{}\n---\n# Made up\n"


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list) and ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(content), path, row_group_size=7)
        return
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    plain = content.encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(packed.get(path.suffix, bytes)(plain))


def rows(texts, key="text"):
    return [{key: text, "id": f"id{number}"} for number, text in enumerate(texts)]


def lay_out(root):
    """Repositories of `OWNER`, each in one of the layouts that the Hub has."""
    sharded = root / "owner/sharded"  # as push_to_hub writes it, without a card
    put(sharded, "data/train-00000-of-00002-0a1b2c3d.parquet", rows(STORIES[:20]))
    put(sharded, "data/train-00001-of-00002-4e5f6071.parquet", rows(STORIES[20:36]))
    put(sharded, "data/validation-00000-of-00001.parquet", rows(STORIES[36:]))
    card = root / "owner/card"  # a README that says where the files of each configuration are
    places = [("en", "train", "text/en_*.jsonl.gz"), ("de", "train", "text/de_*.jsonl.gz")]
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n"
        for name, split, path in places
    )
    put(card, "README.md", CARD.format(f"configs:\n{configs}"))
    put(card, "text/en_0.jsonl.gz", rows(STORIES[:20]))
    put(card, "text/en_1.jsonl.gz", rows(STORIES[20:]))
    put(card, "text/de_0.jsonl.gz", rows(["Eine Geschichte."]))
    put(card, "requirements.txt", "datasets\n")
    questions = root / "owner/questions"  # folders CONFIG/train-…, several columns of text
    put(questions, "main/train-00000-of-00001.parquet", QUESTIONS)
    put(questions, "main/test-00000-of-00001.parquet", QUESTIONS[:3])
    put(questions, "socratic/train-00000-of-00001.parquet", QUESTIONS[:5])
    nested = root / "owner/nested"  # JSON lines with the text inside, at names with a split
    put(nested, "README.md", CARD.format("tags: []"))
    put(nested, "wiki_train.jsonl.zst", [{"doc": {"body": text}} for text in STORIES])
    put(nested, "wiki_dev.jsonl.zst", [{"doc": {"body": "Held out."}}])
    plain = root / "owner/plain"  # text files in folders of splits
    put(plain, "train/a.txt", "\n<|endoftext|>\n".join(STORIES[:20]))
    put(plain, "train/b.txt", "\n<|endoftext|>\n".join(STORIES[20:]))
    put(plain, "test/a.txt", "Not trained on.")
    script = root / "owner/script"  # a loading script, and the Hub's own conversion
    put(script, "script.py", "raise SystemExit\n")
    put(script, "data.csv", "text\nSecret\n")
    put(root / "_converted/owner/script", "default/train/0000.parquet", rows(STORIES[:30]))
    put(root / "_converted/owner/script", "default/train/0001.parquet", rows(STORIES[30:]))
    put(root / "_converted/owner/script", "other/train/0000.parquet", rows(["Other."]))
    dclm = root / "mlfoundations/dclm-baseline-1.0-parquet"
    hundredth = f"{HUB_PRESETS['dclm'].folders['hundredth']}/shard_0000000{{}}_processed.parquet"
    put(dclm, hundredth.format(1), rows(STORIES[:20]))
    put(dclm, hundredth.format(2), rows(STORIES[20:]))
    put(dclm, hundredth.replace("shard_0_of", "shard_1_of").format(1), rows(["Another part."]))
    put(root / "karpathy/climbmix-400b-shuffle", "shard_00000.parquet", rows(STORIES))
    put(root / "owner/pictures", "train/0.png", "no text")
    put(root / "owner/numbers", "train.parquet", [{"n": 1, "a": "one", "b": "two"}])
    put(
        root / "owner/elsewhere",
        "README.md",
        CARD.format("configs:\n- config_name: no\n  data_files: a/*"),
    )
    put(root / "owner/chat", "train.jsonl", [{"messages": [{"content": "text"}]}])
    put(root / "owner/torn", "train.jsonl", '{"text": "one')
    put(root / "owner/list", "train.json", "[\n" + json.dumps({"text": "one"}) + "\n]\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    lay_out(root)
    Maker(root, seed=0).fineweb_edu(docs=60, files=2, row_group=20)
    with FakeHub(root) as server:
        yield server


def made(hub, out, repository, **more):
    usual = {"workers": 1, "encoder": "tiktoken", "val_tokens": 0, "shard_tokens": 900}
    if more.get("val_split"):
        usual.pop("val_tokens")
    options = HfDatasetOptions(repository=repository, out=out, **(usual | more))
    prepare_hf_dataset(options, Downloader(hub.url, IMPATIENT))
    data = open_data_set(out)
    check_data_set(data, "full")
    return data


# What is asked for, the name in the manifest, and the texts.
LAYOUTS = {
    "data/train-00000-of-00002-HASH.parquet": ("owner/sharded", {}, "owner/sharded", STORIES[:36]),
    "README with data_files, .jsonl.gz": (
        "https://huggingface.co/datasets/owner/card/",
        {"config": "en"},
        "owner/card/en",
        STORIES,
    ),
    "CONFIG/train-00000-of-00001.parquet": (
        "owner/questions",
        {"config": "main", "template": r"{question}\nA: {answer}"},
        "owner/questions/main",
        [f"{row['question']}\nA: {row['answer']}" for row in QUESTIONS],
    ),
    "NAME_train.jsonl.zst, nested keys": ("owner/nested", {}, "owner/nested", STORIES),
    "train/NAME.txt": ("owner/plain", {}, "owner/plain", STORIES),
    "CONFIG/train/0000.parquet of refs/convert/parquet": (
        "owner/script",
        {"config": "default", "revision": "refs/convert/parquet"},
        "owner/script/default",
        STORIES,
    ),
    "deep folders, by a short name": (
        "dclm",
        {},
        "mlfoundations/dclm-baseline-1.0-parquet/hundredth",
        STORIES,
    ),
    "shards at the top, by a short name": (
        "climbmix",
        {},
        "karpathy/climbmix-400b-shuffle",
        STORIES,
    ),
    "patterns of names": (
        "owner/questions",
        {"files": ("*/train-*.parquet",), "text_key": "answer"},
        "owner/questions/*/train-*.parquet",
        [row["answer"] for row in [*QUESTIONS, *QUESTIONS[:5]]],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_repository_of_every_usual_layout_becomes_a_data_set(hub, tmp_path, layout):
    repository, more, name, texts = LAYOUTS[layout]
    data = made(hub, tmp_path / "out", repository, **more)
    assert [text.strip() for text in texts_of(data)] == texts
    source = data.manifest.source
    assert (source.id, len(source.revision)) == (name, 40)
    assert all(len(file.sha256) == 64 for file in source.files)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_split_of_the_repository_can_be_the_validation(hub, tmp_path):
    data = made(hub, tmp_path / "out", "owner/sharded", val_split="validation")
    assert (texts_of(data), texts_of(data, "val")) == (STORIES[:36], STORIES[36:])
    assert data.manifest.source.id == "owner/sharded+validation"
    before = hub.stats()["requests"]
    pinned = data.manifest.source.revision
    made(hub, tmp_path / "out", "owner/sharded", val_split="validation", revision=pinned)
    assert hub.stats()["requests"] == before


def test_a_complete_data_set_of_a_branch_is_left_as_it_is_and_nothing_is_fetched(hub, tmp_path):
    made(hub, tmp_path / "out", "owner/nested")
    hub.reset()
    made(hub, tmp_path / "out", "owner/nested")
    assert not [r for r in hub.requests if "jsonl" in r["path"]]
    with pytest.raises(
        ValueError, match=r"out holds another data set \(there: text_key=doc.body\)"
    ):
        made(hub, tmp_path / "out", "owner/nested", text_key="doc")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_fineweb_edu_by_its_short_name_is_the_data_set_of_fineweb_py(hub, tmp_path):
    made(hub, tmp_path / "short", "fineweb-edu", revision="main")
    made(hub, tmp_path / "card", "HuggingFaceFW/fineweb-edu", config="sample-10BT")
    usual = {"workers": 1, "encoder": "tiktoken", "val_tokens": 0, "shard_tokens": 900}
    options = FineWebOptions(out=tmp_path / "old", revision="main", **usual)
    prepare_fineweb(options, Downloader(hub.url, IMPATIENT))
    old = folder_bytes(tmp_path / "old")
    assert len(old) > 10
    assert old == folder_bytes(tmp_path / "short") == folder_bytes(tmp_path / "card")


def test_the_sha256_of_every_file_is_checked(hub, tmp_path):
    quiet = made(hub, tmp_path / "quiet", "owner/card", config="en")
    hub.faults.replace([Fault.parse("corrupt:path=cdn.*en_1,count=1")])
    disturbed = made(hub, tmp_path / "disturbed", "owner/card", config="en")
    hub.faults.replace([])
    assert folder_bytes(quiet.folder) == folder_bytes(disturbed.folder)


def test_a_stopped_preparation_continues_at_the_commit_where_it_began(hub, tmp_path, monkeypatch):
    root = hub.repos.root / "owner/moving"
    put(root, "data/train-00000-of-00002.parquet", rows(STORIES[:20]))
    put(root, "data/train-00001-of-00002.parquet", rows(STORIES[20:]))
    whole = made(hub, tmp_path / "whole", "owner/moving")
    run, done = UnitWork.run, []

    def stop_after_two(self, unit, *others):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        return run(self, unit, *others)

    monkeypatch.setattr(UnitWork, "run", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        made(hub, tmp_path / "out", "owner/moving")
    monkeypatch.setattr(UnitWork, "run", run)
    put(root, "data/train-00002-of-00002.parquet", rows(["New at main."]))
    made(hub, tmp_path / "out", "owner/moving")
    assert folder_bytes(tmp_path / "out") == folder_bytes(whole.folder)
    new = made(hub, tmp_path / "new", "owner/moving")
    assert new.manifest.source.revision != whole.manifest.source.revision
    assert "New at main." in texts_of(new)


def test_a_streamed_template_gives_the_same_shards_and_bad_records(hub, tmp_path, monkeypatch):
    nested = [{"meta": {"title": f"T{n}", "n": n}, "body": STORIES[n]} for n in range(14)]
    nested[3]["meta"]["title"] = None
    root = hub.repos.root / "owner/streamed"
    put(root, "train-00000.parquet", nested)
    load = datasets.load_dataset

    def from_disk(kind, data_files, **more):  # test_prepare_scripts.py streams over the network
        return load(kind, data_files=str(root / data_files.rpartition("/")[2]), **more)

    monkeypatch.setattr(datasets, "load_dataset", from_disk)
    more = {"template": r"{meta.title}\n{body}", "skip_bad": 1}
    found = [made(hub, tmp_path / n, "owner/streamed", stream=n == "b", **more) for n in "ab"]
    assert texts_of(found[0])[3:5] == [f"T{n}\n{STORIES[n]}" for n in (4, 5)]
    files, streamed = (folder_bytes(data.folder) for data in found)
    files.pop("manifest.json"), streamed.pop("manifest.json")
    assert files == streamed
    first = [data.manifest.first_bad_records for data in found]
    assert len(first[0]) == 1
    assert first[0] == first[1]
    assert found[1].manifest.settings["stream"] is True


def test_without_a_key_the_only_column_of_text_is_taken(hub, tmp_path):
    put(hub.repos.root / "owner/only", "train.parquet", [{"n": 1, "body": "one"}])
    data = made(hub, tmp_path / "out", "owner/only")
    assert data.manifest.settings["text_key"] == "body"


def test_only_the_files_that_hold_the_wanted_documents_of_json_lines_are_fetched(hub, tmp_path):
    data = made(hub, tmp_path / "out", "owner/card", config="en", max_documents=15, split="first")
    assert [file.name for file in data.manifest.source.files] == ["text/en_0.jsonl.gz"]
    assert texts_of(data) == STORIES[:15]


MISTAKES = [
    (
        {"repository": "owner/card"},
        r"owner/card has the configurations en, de; name one with --config",
    ),
    ({"repository": "owner/card", "config": "fr"}, "config=fr is not one of .* which has en, de"),
    (
        {"repository": "owner/questions", "config": "main", "repository_split": "dev"},
        "split=dev is not one of owner/questions, configuration main, which has test, train",
    ),
    (
        {"repository": "owner/sharded", "val_split": "test"},
        "val_split=test is not one of owner/sharded, .* which has train, validation",
    ),
    (
        {"repository": "owner/sharded", "val_split": "train"},
        "val_split=train of .* are the same files",
    ),
    (
        {"repository": "owner/script"},
        r"owner/script has no parquet, JSON-lines or text files \(it has 2 files: \.csv, \.py\); "
        "the Hub's conversion .* --revision refs/convert/parquet",
    ),
    ({"repository": "owner/pictures"}, r"has no parquet.* files \(it has 1 file: \.png"),
    ({"repository": "owner/nothing"}, "owner/nothing is not on the Hub or needs a login"),
    ({"repository": "owner/plain", "revision": "v9"}, "revision=v9 of owner/plain is not on"),
    (
        {"repository": "owner/plain", "files": ("x/*.txt",)},
        r"owner/plain has no .* at x/\*\.txt \(it has 3 files: \.txt\); give other --files",
    ),
    (
        {"repository": "owner/plain", "files": ("*",), "config": "en"},
        r"files=\* and config=en, split=train; give --files alone",
    ),
    (
        {"repository": "owner/numbers"},
        r"numbers/train.parquet has no field 'text' \(fields with text: \['a', 'b'\]\); name",
    ),
    (
        {"repository": "owner/numbers", "text_key": "n"},
        r"owner/numbers/train.parquet has int64 in column 'n'",
    ),
    (
        {"repository": "owner/numbers", "template": "{a} {c}"},
        r"train.parquet has no column 'c' \(it has \['n', 'a', 'b'\]\); name it with --template",
    ),
    (
        {"repository": "owner/nested", "text_key": "doc.text"},
        r"line 1 .* no key 'doc.text' \(it has \['doc', 'doc.body'\]\); name it with --text-key",
    ),
    ({"repository": "owner/numbers", "template": "{a", "text_key": None}, "has a single {"),
    ({"repository": "owner/numbers", "template": "{a}", "text_key": "a"}, "give one of them"),
    (
        {"repository": "owner/elsewhere"},
        r"split train of .*elsewhere, configuration no is at a/\*, where there is no .* --files",
    ),
    ({"repository": "owner/chat"}, r"line 1 .* no key 'text' \(it has \['messages'\]\)"),
    ({"repository": "owner/torn"}, r"train\.jsonl, line 1 .*it is not JSON .*; repair or drop"),
    (
        {"repository": "owner/list"},
        r"owner/list/train\.json: it is one JSON document .* --revision refs/convert/parquet",
    ),
    ({"repository": "../x"}, r"repository=\.\./x is neither OWNER/NAME nor"),
    (
        {"repository": "owner/nested", "stream": True},
        "stream reads parquet files only, and owner/nested has wiki_train.jsonl.zst; leave out",
    ),
    ({"repository": "fineweb-edu", "config": "sample-9BT"}, "which has sample-10BT, .* CC-MAIN"),
    ({"repository": "fineweb-edu", "val_split": "test"}, "has the split train only"),
    ({"repository": "gsm8k"}, "repository=gsm8k is neither OWNER/NAME nor one of fineweb-edu"),
]


@pytest.mark.parametrize(("asked", "message"), MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(hub, tmp_path, asked, message):
    revision = {"revision": "main"} if asked["repository"].startswith("fineweb") else {}
    with pytest.raises(ValueError, match=message) as raised:
        made(hub, tmp_path / "out", **(revision | asked))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_a_gated_repository_is_one_sentence_with_the_cure(hub, tmp_path):
    hub.faults.replace([Fault.parse("status:code=403,path=README")])
    with pytest.raises(ValueError, match=r"card/README.md needs a login .*403.* `hf auth login`"):
        made(hub, tmp_path / "out", "owner/card", config="en")
    hub.faults.replace([])
    assert list(tmp_path.iterdir()) == []
