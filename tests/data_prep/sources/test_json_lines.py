"""JSON lines: nested keys, documents that are no lines, values that Python's reader refuses."""

import json
import subprocess
from shutil import which

import pytest

from tests.data_prep.stories import prepared, texts_of

RECORDS = [{"text": "one", "n": 1}, {"text": "two"}]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"meta": {"text": "one"}}, "meta.text"),
        ({"meta": {"text": "other"}, "meta.text": "one"}, "meta.text"),
        ({"a.b": {"c": "one"}}, "a.b.c"),
        ({"a": {"b.c": "one"}}, "a.b.c"),
        ({"a": {"b": 1}, "a.b": {"c": "one"}}, "a.b.c"),
    ],
)
def test_a_key_inside_an_object_is_named_with_dots(tmp_path, row, key):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert texts_of(prepared(tmp_path, "a.jsonl", text_key=key)) == ["one"]


@pytest.mark.parametrize("key", ["meta", "meta.body", "meta.text.x", "meta..text", ".", "text."])
def test_a_key_that_is_not_there_is_named_with_those_that_are(tmp_path, key):
    (tmp_path / "a.jsonl").write_text('{"meta": {"text": "one"}}')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1 .*(meta\.text|an object under)"):
        prepared(tmp_path, "a.jsonl", text_key=key)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("document", [RECORDS, {"rows": RECORDS}], ids=["list", "object"])
def test_one_json_document_is_named_with_the_cure(tmp_path, indent, document):
    if indent is None and isinstance(document, dict):
        pytest.skip("an object on one line is a record")
    (tmp_path / "a.json").write_text(json.dumps(document, indent=indent))
    with pytest.raises(
        ValueError, match=r"a\.json is one JSON document .*`jq -c .* a\.json >"
    ) as raised:
        prepared(tmp_path, "a.json")
    if isinstance(document, list) and which("jq"):
        cure = str(raised.value).split("`")[1]
        subprocess.run(cure, shell=True, cwd=tmp_path, check=True)
        assert texts_of(prepared(tmp_path, "records.jsonl")) == ["one", "two"]


@pytest.mark.parametrize(
    "first", ['{"text": "torn,', '{"text": [', '["x"]', "{", '{"text": "a"} extra']
)
def test_a_torn_first_line_is_one_bad_record(tmp_path, first):
    (tmp_path / "a.jsonl").write_text(f'{first}\n{{"text": "b"}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1 \(byte 0\): it "):
        prepared(tmp_path, "a.jsonl")


def test_values_of_other_keys_do_not_matter(tmp_path):
    others = ["1" * 5000, "-0", "1e999", "NaN", '"\\ud800"', "[" * 900 + "]" * 900]
    lines = [f'{{"text": "{number}", "x": {value}}}' for number, value in enumerate(others)]
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines))
    assert texts_of(prepared(tmp_path, "a.jsonl")) == [str(number) for number in range(6)]
