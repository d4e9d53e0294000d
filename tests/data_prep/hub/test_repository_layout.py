"""The files of each configuration and split, compared with what `datasets` finds."""

import pytest

from data_prep.hub.repository_layout import (
    chosen_configuration,
    configurations_of_card,
    configurations_of_names,
    folder_of,
    matching,
    of_one_kind,
    text_names,
)

# As repositories of the Hub have them.
LAYOUTS = [
    ["data/train-00000-of-00002-0a1b.parquet", "data/train-00001-of-00002-2c3d.parquet"],
    ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "other.parquet"],
    ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"],
    ["train.jsonl", "test.jsonl", "valid.jsonl"],
    ["my_train_file.json.gz", "dev-0.json.gz", "evaluation.json.gz"],
    ["train/a.txt", "train/b.txt", "validation/a.txt"],
    ["de/train.txt", "en/train.txt", "en/dev.txt"],
    ["sample/10BT/000.parquet", "sample/10BT/001.parquet"],
    ["filtered/OH_200k_train/processed/shard_0/a.parquet", "filtered/OH_200k_train/b.parquet"],
    ["shard_00000.parquet", "shard_00001.parquet"],
    ["training/a.jsonl", "strains.jsonl", "contest.jsonl"],
    ["a.jsonl", ".hidden.jsonl", "__MACOSX/b.jsonl", "dataset_info.json", "sub/c.jsonl"],
]
CARDS = [
    "data_files: '*.jsonl'",
    "data_files: [a.jsonl, sub/b.jsonl]",
    "data_files: {train: a.jsonl, test: [sub/**]}",
    "data_files: [{split: train, path: 'sub/*'}, {split: test, path: [a.jsonl, c.jsonl]}]",
    "data_dir: sub",
    "data_dir: sub\n  data_files: '*.jsonl'",
    "data_files: ./sub/b?.jsonl",
]
OF_CARDS = ["a.jsonl", "c.jsonl", "sub/b.jsonl", "sub/b1.jsonl", "sub/deep/d.jsonl"]


def by_datasets(folder, patterns):
    """The names of the files of each split that `datasets` reads."""
    from datasets.data_files import DataFilesDict

    found = DataFilesDict.from_patterns(patterns, str(folder))
    below = f"{folder}/"
    return {
        split: sorted(name.removeprefix(below).removeprefix("./") for name in names)
        for split, names in found.items()
    }


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_names_of_files_say_the_splits_that_datasets_finds(tmp_path):
    from datasets.data_files import get_data_patterns

    for number, names in enumerate(LAYOUTS):
        folder = tmp_path / str(number)
        touch(folder, names)
        (configuration,) = configurations_of_names(text_names(names))
        found = configuration.splits(text_names(names))
        assert found == by_datasets(folder, get_data_patterns(str(folder))), names


def test_a_readme_says_the_files_that_datasets_finds(tmp_path):
    from datasets.data_files import get_data_patterns, sanitize_patterns
    from huggingface_hub import DatasetCard

    touch(tmp_path, OF_CARDS)
    for entry in CARDS:
        card = f"---\nconfigs:\n- config_name: main\n  {entry}\n---\n# Made up\n"
        (configuration,) = configurations_of_card(card)
        known = DatasetCard(card).data.to_dict()["configs"][0]
        folder = tmp_path / known.get("data_dir", "")
        if "data_files" in known:
            patterns = sanitize_patterns(known["data_files"])
        else:
            patterns = get_data_patterns(str(folder))
        prefix = f"{known['data_dir']}/" if "data_dir" in known else ""
        expected = {
            split: [prefix + name for name in names]
            for split, names in by_datasets(folder, patterns).items()
        }
        assert configuration.splits(OF_CARDS) == expected, entry
        names = {name for found in expected.values() for name in found}
        assert all(name.startswith(configuration.in_folder()) for name in names)


@pytest.mark.parametrize(
    ("names", "configurations"),
    [
        (["default/train/0000.parquet", "default/test/0000.parquet"], ["default"]),
        (["a/train/0000.parquet", "b/partial-train/0000.parquet"], ["a", "b"]),
        (["en/train-00000-of-00001.parquet", "de/train-00000-of-00001.parquet"], ["en", "de"]),
        (["data/train-00000-of-00001.parquet"], ["default"]),
        (["en/train-00000-of-00001.parquet", "more.parquet"], ["default"]),
    ],
)
def test_folders_of_configurations_are_not_mixed(names, configurations):
    assert [one.name for one in configurations_of_names(names)] == configurations


def test_a_split_of_the_conversion_keeps_its_name():
    (one,) = configurations_of_names(["a/partial-train/0000.parquet", "a/test/0000.parquet"])
    assert one.splits(["a/partial-train/0000.parquet", "a/test/0000.parquet"]) == {
        "partial-train": ["a/partial-train/0000.parquet"],
        "test": ["a/test/0000.parquet"],
    }


def test_the_default_configuration_is_the_only_one_or_that_which_is_marked():
    card = "---\nconfigs:\n- config_name: a\n- config_name: b\n  default: true\n---\n"
    configurations = configurations_of_card(card)
    assert chosen_configuration(configurations, None, "o/n").name == "b"
    assert chosen_configuration(configurations[:1], None, "o/n").name == "a"
    assert chosen_configuration(configurations, "a", "o/n").name == "a"


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# No head",
        "---\n: [\n---\n",
        "---\n2024\n---\n",
        "---\nconfigs: 3\n---\n",
        "---\nconfigs:",
    ],
)
def test_a_readme_without_configurations_names_none(card):
    assert configurations_of_card(card) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("{train: {a: b}}", "data_files={.* for the configuration a, which is no list"),
        ("[{path: x}, {split: test}]", "which is no list of splits and paths"),
        ("[&a [x, x], &b [*a, *a], &c [*b, *b], [*c, *c]]", "which is no list"),
        ("https://x.org/a.jsonl", r"are elsewhere \(https://x.org/a.jsonl\)"),
    ],
)
def test_files_that_a_readme_does_not_place_are_one_sentence(files, message):
    with pytest.raises(ValueError, match=message):
        configurations_of_card(f"---\nconfigs:\n- config_name: a\n  data_files: {files}\n---\n")


def test_only_the_folder_of_all_patterns_is_listed():
    assert folder_of(["sample/10BT/*"]) == "sample/10BT"
    assert folder_of(["data/a/*", "data/b/*"]) == "data"
    assert folder_of(["data/*/x", "data/[ab]/y"]) == "data"
    assert folder_of(["*.jsonl"]) == folder_of(["a.txt", "b/c.txt"]) == ""
    assert matching(["a/b.txt", "a/b/c.txt"], ["a/*.txt"]) == ["a/b.txt"]


def test_the_most_frequent_kind_of_file_is_read():
    assert of_one_kind(["a.jsonl", "b.jsonl.gz", "words.txt"]) == ["a.jsonl", "b.jsonl.gz"]
    assert of_one_kind(["a.parquet", "words.txt"]) == ["a.parquet"]
