"""Templates: several fields as the text of a record, in JSON lines and parquet alike."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.text_fields import text_fields, typed_template
from data_prep.text import TextOptions
from tests.data_prep.stories import folder_bytes, prepared, texts_of

ROWS = [
    {"question": "Wie viel?", "answer": {"text": "Drei, größtenteils."}, "n": 1},
    {"question": "", "answer": {"text": "{}"}, "n": 2},
    {"question": "Why?\n", "answer": {"text": ""}, "n": None},
]
TEMPLATE = "Q: {question}\nA: {answer.text} {{{question}}}"
TEXTS = [f"Q: {row['question']}\nA: {row['answer']['text']} {{{row['question']}}}" for row in ROWS]


def write_rows(folder, rows, row_group_size=2):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=row_group_size)


def test_a_template_joins_the_same_text_from_json_lines_and_parquet(tmp_path):
    write_rows(tmp_path, ROWS)
    for name in ("a.jsonl", "a.parquet"):
        folder = tmp_path / name[2:]
        folder.mkdir()
        (tmp_path / name).rename(folder / name)
        data = prepared(folder, name, template=TEMPLATE)
        assert texts_of(data) == TEXTS
        assert data.manifest.settings["template"] == TEMPLATE
        assert "text_key" not in data.manifest.settings
    found = [folder_bytes(tmp_path / kind / "out") for kind in ("jsonl", "parquet")]
    assert found[0]["train_000000.npy"] == found[1]["train_000000.npy"]


def test_a_template_is_typed_with_escapes_and_doubled_braces():
    fields = text_fields("", typed_template(r"{{\t{a}{b.c}\n{a}}}", None))
    assert fields.names == ("a", "b.c")
    assert fields.joined([b"1", b"2"]) == b"{\t12\n1}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("no field", "template=no field names no field; write {question}"),
        ("{{a}}", "names no field"),
        ("{a} {", "has a single {; write"),
        ("a} {b}", "has a single }; write"),
        ("{}", "has a single {"),
        ("{a{b}}", "has a single {"),
        (r"{a}\d", r"template=.* has \\d, which has no meaning"),
    ],
)
def test_a_template_that_means_nothing_is_one_sentence(words, message):
    with pytest.raises(ValueError, match=message):
        typed_template(words, None)


def test_a_template_beside_a_text_key_is_an_error():
    options = TextOptions(paths=("a.jsonl",), text_key="body", template="{a}", check=True)
    error = pytest.raises(ValueError, match="text_key=body and template={a}; give one")
    with error, options.opened():
        pass


@pytest.mark.parametrize(
    ("name", "template", "message"),
    [
        ("a.jsonl", "{title}", r"a\.jsonl, line 1 .*no key 'title' .*'answer\.text'.* --template"),
        ("a.jsonl", "{n}", r"holds a number under 'n', which must be text; .* with --template"),
        ("a.jsonl", "{answer}", "holds an object under 'answer'"),
        ("a.parquet", "{title}", r"no column 'title' \(it has \['question', 'answer\.text', 'n'"),
        ("a.parquet", "{n}", r"has int64 in column 'n', .* --template \(it has .*question"),
        ("a.parquet", "{answer}", "has struct.* in column 'answer'"),
    ],
)
def test_a_field_that_is_not_there_or_no_text_is_named_with_those_that_are(
    tmp_path, name, template, message
):
    write_rows(tmp_path, ROWS)
    with pytest.raises(ValueError, match=message) as raised:
        prepared(tmp_path, name, template=template)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_null_in_a_template_is_a_bad_record_and_can_be_left_out(tmp_path, name):
    rows = [{"a": "one", "b": "1"}, {"a": "two", "b": None}, {"a": "three", "b": "3"}]
    write_rows(tmp_path, rows)
    with pytest.raises(ValueError, match="null .*'b', which the template needs"):
        prepared(tmp_path, name, template="{a} {b}")
    data = prepared(tmp_path, name, template="{a} {b}", skip_bad=1)
    assert texts_of(data) == ["one 1", "three 3"]
    assert data.manifest.bad_records == 1


def test_a_row_that_is_not_utf8_is_a_bad_record_in_a_template_too(tmp_path):
    table = pa.table({"a": pa.array([b"one", b"\xff"]), "b": ["1", "2"]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = prepared(tmp_path, "a.parquet", template="{b}: {a}", skip_bad=1)
    assert texts_of(data) == ["1: one"]
    assert "not UTF-8 at byte 3" in data.manifest.first_bad_records[0].reason


def test_a_text_file_has_no_fields_for_a_template(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(ValueError, match="template={a} joins the fields .* text files have none"):
        prepared(tmp_path, "a.txt", template="{a}")
