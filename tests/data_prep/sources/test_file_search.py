"""Which files of a folder, a glob or a list are read, and that all others are named."""

import bz2
import gzip
import lzma
import os

import pytest
import zstandard

from data_prep.sources.file_search import find_files
from data_prep.sources.formats import format_of
from tests.data_prep.stories import prepared, texts_of

LINE = b'{"text": "one"}\n'
PACKED = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def make(folder, *names, content=b"one"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names_read(*places):
    return [path.name for path in find_files(map(str, places)).paths]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(
    "suffix", [".jsonl", ".ndjson", ".jsonlines", ".json", ".JSONL", ".txt", ".TXT"]
)
def test_names_that_others_give_to_such_files_are_read(tmp_path, suffix, packed):
    content = LINE if suffix.lower() != ".txt" else b"one"
    name = f"a{suffix}{packed.upper() if suffix.isupper() else packed}"
    make(tmp_path, name, content=PACKED[packed](content))
    assert texts_of(prepared(tmp_path, name)) == ["one"]


def test_names_of_no_known_kind():
    others = ["a.md", "a.parquet.gz", "a", ".gz", "a.gz", "a.csv.gz", "a.txt.zip", "a.jsonl.tmp"]
    assert [format_of(name) for name in others] == [""] * len(others)
    assert format_of("A.Parquet") == ".parquet"


def test_every_file_that_is_passed_over_is_named_with_the_reason(tmp_path, caplog):
    caplog.set_level("INFO", "data_prep")
    make(tmp_path, "a.txt", "notes.md", "sub/table.csv", ".git/b.txt", "sub/.c.txt", "sub/d.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    os.symlink("a.txt", tmp_path / "again.txt")
    os.symlink("nowhere", tmp_path / "broken.md")
    found = find_files([str(tmp_path)])
    assert [path.name for path in found.paths] == ["a.txt", "d.txt"]
    found.log_names()
    said = sorted(record.getMessage() for record in caplog.records)
    assert said == [
        "1 passed over (found already): again.txt",
        "1 passed over (no regular file): pipe.txt",
        "2 passed over (hidden): .git, .c.txt",
        "3 passed over (of no known kind): broken.md, notes.md, table.csv",
        "files to read: 2 (0.0 MB): a.txt, d.txt",
    ]
    assert found.count_passed_over == 7


def test_a_json_file_of_settings_is_passed_over_but_not_one_of_records(tmp_path):
    make(tmp_path, "a.jsonl", content=LINE)
    make(tmp_path, "info.json", content=b'{\n  "license": "MIT"\n}\n')
    assert names_read(tmp_path) == ["a.jsonl"]
    make(tmp_path, "rows.json", content=b'[\n {"text": "one"}\n]\n')
    with pytest.raises(ValueError, match=r"rows\.json is one JSON document .* `jq -c '\.\[\]'"):
        prepared(tmp_path, "*.json*")
    with pytest.raises(ValueError, match=r"info\.json is one JSON document"):
        prepared(tmp_path, "info.json")


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    make(tmp_path, "in/a.txt", "in/z/b.txt", "elsewhere/c.txt")
    for link, target in {
        "up": "..",
        "loop": ".",
        "0": "z",
        "e1": "../elsewhere",
        "e2": "../elsewhere",
    }.items():
        os.symlink(target, tmp_path / "in" / link)
    found = find_files([str(tmp_path / "in")])
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == [
        "in/a.txt",
        "in/e1/c.txt",
        "in/z/b.txt",
    ]
    deep = names_read(tmp_path / "in" / "**" / "*.txt")
    assert deep == ["a.txt", "c.txt", "b.txt"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.txt"]),
        ("**", ["a.txt", "b.txt", "c.jsonl", "d.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "d.txt"]),
        ("*/*.txt", ["b.txt"]),
        ("s*/**/[cd].*", ["c.jsonl", "d.txt"]),
        ("sub/*", ["b.txt"]),
        ("*/deep/d.txt", ["d.txt"]),
        (".*.txt", [".h.txt"]),
    ],
)
def test_a_glob_finds_what_a_shell_would(tmp_path, pattern, names):
    make(tmp_path, "a.txt", "x.md", ".h.txt", "sub/b.txt", "sub/deep/c.jsonl", "sub/deep/d.txt")
    assert sorted(names_read(tmp_path / pattern)) == names


def test_an_unknown_user_and_a_url_are_errors():
    with pytest.raises(ValueError, match=r"there is no .*/~no_user/a\.txt"):
        find_files(["~no_user/a.txt"])
    with pytest.raises(ValueError, match=r"s3:// begins a URL, which is not read here"):
        find_files(["s3://bucket/a.txt"])


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    make(tmp_path, "a[1].txt", "a1.txt")
    assert names_read(tmp_path / "a[1].txt") == ["a[1].txt"]


@pytest.mark.fault("D1", injected="a file or folder that may not be read, a link to nothing")
def test_what_cannot_be_read_is_an_error_with_its_name(tmp_path, monkeypatch):
    make(tmp_path, "a.txt", "locked/b.txt")
    real = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything
    for place in (tmp_path, tmp_path / "**" / "*.txt", tmp_path / "*" / "*.txt"):
        with pytest.raises(ValueError, match=r"locked cannot be read \(Permission denied\); give"):
            find_files([str(place)])
    monkeypatch.setattr(os, "scandir", real)
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "b.txt")
    with pytest.raises(ValueError, match=r"b\.txt cannot be read \(Permission denied\); give"):
        find_files([str(tmp_path)])
    os.symlink("nowhere", tmp_path / "c.txt")
    with pytest.raises(ValueError, match=r"c\.txt is a link to nothing; remove it"):
        find_files([str(tmp_path)])


def test_a_pipe_and_a_name_that_is_not_utf8_are_errors(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(ValueError, match=r"p\.txt is no regular file; .*save it to a file"):
        find_files([str(tmp_path / "p.txt")])
    (tmp_path / "p.txt").unlink()
    make(tmp_path, os.fsdecode(b"n\xff.txt"))
    with pytest.raises(ValueError, match=r"n\\udcff\.txt' is not UTF-8, .*rename"):
        find_files([str(tmp_path)])
