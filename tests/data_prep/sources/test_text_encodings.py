"""Text in other encodings is named with a cure that helps."""

import gzip
import re
import subprocess

import pytest

from tests.data_prep.stories import STORIES, prepared, texts_of

ENGLISH = "First text of a file.\nSecond line.\n"
GZIPPED = gzip.compress(b"one", mtime=0)
POINTER = b"version https://git-lfs.github.com/spec/v1\n"
LINES = '{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.fault("D4", injected="text in UTF-16 and UTF-32, with a mark and without")
@pytest.mark.parametrize(
    "text", [ENGLISH, "Добрый день, как дела?\n" * 9, LINES], ids=["en", "ru", "json"]
)
@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_wide_encodings_are_named(tmp_path, text, encoding, packed):
    name = ("a.jsonl" if text is LINES else "a.txt") + packed
    content = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    named = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(
        ValueError, match=rf"is in {named}, not UTF-8; .*iconv -f {named}"
    ) as raised:
        prepared(tmp_path, name)
    cure = re.findall("`(.*)`", str(raised.value))[0]
    subprocess.run(cure, shell=True, cwd=tmp_path, check=True)
    found = texts_of(prepared(tmp_path, "utf8_" + name.removesuffix(packed)))
    assert found == (["one", "two"] if text is LINES else [text])


def test_a_mark_at_the_start_of_utf8_is_no_text(tmp_path):
    for name, text in (("a.txt", "one"), ("b.jsonl", '{"text": "two"}\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert texts_of(prepared(tmp_path, "a.txt", "b.jsonl")) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        ("Un café déjà vu.".encode("latin1"), "perhaps latin1; .*iconv -f latin1"),
        (
            "It\u2019s \u201cfine\u201d, all day long.".encode("cp1252"),
            "perhaps WINDOWS-1252; .*iconv -f WINDOWS-1252",
        ),
        ("春眠不觉晓处处闻啼鸟".encode("gb18030"), "iconv -f ENCODING"),
        ("torn: 春".encode()[:-1], "repair it, or .*iconv -f ENCODING"),
        ("Добрый день".encode("cp1251"), "iconv -f ENCODING"),
    ],
)
def test_latin1_is_named_only_where_it_helps(tmp_path, content, cure):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"a\.txt, document 1 \(byte \d+\): it is not UTF-8.*{cure}"
    ):
        prepared(tmp_path, "a.txt")


def test_nul_bytes_are_said_and_kept(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"a\0b" + STORIES[0].encode() * 9)
    assert texts_of(prepared(tmp_path, "a.txt"))[0].startswith("a\0b")
    assert "a.txt holds 1 NUL bytes" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", GZIPPED, r"holds no text but is compressed with gzip; add \.gz"),
        ("a.jsonl", b"PK\x03\x04", r"a\.jsonl holds no text but is a zip archive; unpack it"),
        ("a.jsonl", b"PAR1", r"is a parquet file; let its name end in \.parquet"),
        ("a.jsonl.gz", b'{"text": "one"}\n', r"cannot be unpacked .* take \.gz off its name if"),
        ("a.jsonl.zst", b'{"text": "one"}\n', r"cannot be unpacked .* take \.zst off its name if"),
        ("a.jsonl.xz", b'{"text": "one"}\n', r"cannot be unpacked .* take \.xz off its name if"),
        ("a.txt.bz2", b"one", r"cannot be unpacked .* take \.bz2 off its name if"),
        ("a.txt", POINTER, "pointer of Git LFS; .*git lfs pull"),
        ("a.parquet", POINTER, "Git LFS; .*git lfs pull"),
    ],
)  # fmt: skip
def test_content_of_another_kind_than_the_name_says_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, name)
