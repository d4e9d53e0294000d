"""Sizes come from a sample of real tokens: within 25 % for any text, of bounded cost."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.planning import file_plan, source_plan
from data_prep.planning.source_plan import plan_source, rounded
from data_prep.planning.units import cut
from data_prep.sources.file_source import FileSource, Unit, file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from tests.data_prep.stories import prepared, story, write_as, write_lines


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def units(source: FileSource, shard_tokens: int, tokenizer: Tokenizer | None = None) -> list[Unit]:
    plan = plan_source(source, shard_tokens, tokenizer or gpt2_tokenizer())
    return cut(plan.files, [file.sha256 for file in source.files], shard_tokens)


def texts(count: int, alphabet: list[str], joint: str = " ") -> list[str]:
    dice = random.Random(5)
    return [joint.join(dice.choices(alphabet, k=dice.randint(5, 90))) for _ in range(count)]


CHINESE = texts(900, [chr(code) for code in range(0x4E00, 0x5200)], "")
ENGLISH = texts(900, story(0, 90).split())


def metadata_heavy(folder: Path) -> Path:
    rows = [{"meta": {f"key{j}": "v" * 40 for j in range(20)}, "text": text} for text in ENGLISH]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


def chinese(folder: Path) -> Path:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in CHINESE)
    (folder / "a.jsonl").write_text("".join(lines))
    return folder / "a.jsonl"


def escaped(folder: Path) -> Path:
    write_lines(folder / "a.jsonl", CHINESE)
    return folder / "a.jsonl"


def dictionary(folder: Path) -> Path:
    table = pa.table({"text": ENGLISH[:100] * 30})
    pq.write_table(table, folder / "a.parquet", row_group_size=100)
    return folder / "a.parquet"


def packed_and_plain(folder: Path) -> Path:
    write_as(".jsonl.gz", folder, ENGLISH)
    write_as(".txt", folder, CHINESE)
    (folder / "source.jsonl.plain").unlink(missing_ok=True)
    (folder / "source.plain").unlink(missing_ok=True)
    return folder


SOURCES = [metadata_heavy, chinese, escaped, dictionary, packed_and_plain]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_validation_shards_and_text_are_as_large_as_foreseen(tmp_path, make):
    place = make(tmp_path)
    data = prepared(tmp_path, place.name if place != tmp_path else "", shard_tokens=8000)
    sizes = [shard.tokens for shard in data.manifest.train.shards]
    assert min(sizes) >= 0.55 * 8000
    assert max(sizes) <= 1.25 * 8000
    found = units(file_source([str(place)]), 8000)
    assert sum(unit.tokens for unit in found) == pytest.approx(sum(sizes), rel=0.1)
    text = data.manifest.train.text_bytes
    assert sum(unit.text_bytes for unit in found) == pytest.approx(text, rel=0.1)


def test_the_tokens_are_those_of_the_tokenizer_in_use(tmp_path):
    write_lines(tmp_path / "a.jsonl", ENGLISH)
    source = file_source([str(tmp_path / "a.jsonl")])
    small = Tokenizer("bytes", gpt2_tokenizer().pattern, b"\n".join(BYTES))
    own, gpt2 = (sum(u.tokens for u in units(source, 10**6, t)) for t in (small, None))
    assert own > 3 * gpt2


BYTES = gpt2_tokenizer().ranks.splitlines()[:256]


def test_a_long_document_is_sampled_in_slices(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a short word " * 200_000)
    encoded = []
    real = Tokenizer.encode_to_numpy
    monkeypatch.setattr(
        Tokenizer, "encode_to_numpy", lambda self, text: encoded.append(text) or real(self, text)
    )
    [unit] = units(file_source([str(tmp_path / "a.txt")]), 10**8)
    assert unit.tokens == pytest.approx(600_000, rel=0.01)
    assert sum(map(len, encoded)) < 20_000


def test_of_many_small_files_only_some_are_sampled(tmp_path, monkeypatch):
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(story(number))
    source = file_source([str(tmp_path)])
    exact = sum(unit.tokens for unit in units(source, 10**6))
    monkeypatch.setattr(source_plan, "_MOST_SMALL_FILES", 10)
    read = []
    real = FileSource.records
    monkeypatch.setattr(FileSource, "records", lambda self, u: read.append(u) or real(self, u))
    assert sum(unit.tokens for unit in units(source, 10**6)) == pytest.approx(exact, rel=0.1)
    assert 1 <= len(read) < 30


def test_the_sample_of_a_large_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(file_plan, "_MOST_SAMPLES", 8)
    monkeypatch.setattr(file_plan, "_FINE_BYTES", 500)
    write_lines(tmp_path / "a.jsonl", ENGLISH)
    source = file_source([str(tmp_path / "a.jsonl")])
    read = []
    real = FileSource.records
    monkeypatch.setattr(FileSource, "records", lambda self, u: read.append(u) or real(self, u))
    plan_source(source, 10**6, gpt2_tokenizer())
    assert 4 <= len(read) <= 8
    starts = [unit.spans[0].start / source.files[0].bytes for unit in read]
    assert starts[0] < 0.25
    assert starts[-1] > 0.75


def test_files_are_planned_in_processes_and_only_once(tmp_path, monkeypatch):
    for number in range(3):
        write_lines(tmp_path / f"{number}.jsonl", [*ENGLISH, str(number)])
    source = file_source([str(tmp_path / "*.jsonl")])
    alone = plan_source(source, 5000, gpt2_tokenizer())
    monkeypatch.setattr(source_plan, "_IN_PROCESSES", 1)
    monkeypatch.setattr(source_plan, "_SAVED_FILE", 1)
    saved = tmp_path / "plans.json"
    assert plan_source(source, 5000, gpt2_tokenizer(), saved, workers=2) == alone
    monkeypatch.setattr(source_plan, "plan_file", None)
    assert plan_source(source, 5000, gpt2_tokenizer(), saved, workers=2) == alone
    with pytest.raises(TypeError):  # other pieces
        plan_source(source, 6000, gpt2_tokenizer(), saved)


def test_a_rounded_rate_is_at_most_a_fiftieth_off_and_bears_small_changes():
    values = [0.001 * 1.01**k for k in range(2000)]
    assert all(abs(rounded(value) / value - 1) < 0.023 for value in values)
    assert sum(rounded(value) != rounded(value * 1.001) for value in values) < 60
    assert rounded(0) == 0


@pytest.mark.parametrize(
    "damage", ["", "[]", '"files": 3', '"files": {"KEY": {"pieces": [["a"]]}}']
)
def test_a_damaged_file_of_plans_only_costs_time(tmp_path, monkeypatch, damage):
    write_lines(tmp_path / "a.jsonl", ENGLISH)
    source, saved = file_source([str(tmp_path / "a.jsonl")]), tmp_path / "plans.json"
    monkeypatch.setattr(source_plan, "_SAVED_FILE", 1)
    right = plan_source(source, 5000, gpt2_tokenizer(), saved)
    kept = json.loads(saved.read_text())
    [key] = kept["files"]
    damaged = f'{{"of": "{kept["of"]}", {damage.replace("KEY", key)}}}'
    saved.write_text(damaged if "files" in damage else damage)
    assert plan_source(source, 5000, gpt2_tokenizer(), saved) == right
