"""The tree of every file in ARCHITECTURE.md is as generated, and each file describes itself."""

import ast
from pathlib import Path

import pytest

from tests.file_tree import BEGIN, END, ROOT, described, file_tree, first_line, page_with_tree

LONGEST_FIRST_LINE = 90


def test_the_page_is_as_generated():
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert page == page_with_tree(page, file_tree(ROOT)), "run `make tree`"


def faults_of_first_line(path: Path) -> list[str]:
    """What is wrong with the line that describes a file in the tree."""
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else first_line(path)
    first, _, rest = (docstring or "").partition("\n")
    faults = {
        "has no description": not first,
        f"has {len(first)} characters (at most {LONGEST_FIRST_LINE})": len(first)
        > LONGEST_FIRST_LINE,
        "continues in the second line": bool(rest.partition("\n")[0].strip()),
        "ends in the middle": first.endswith((",", ";", ":", "…", "...")),
    }
    return [fault for fault, there in faults.items() if there]


def test_every_file_says_in_one_short_line_what_it_is_for():
    code = [p / "__init__.py" if p.is_dir() else p for p in described(ROOT)]
    code = [p for p in code if p.suffix in (".py", ".sh", ".sbatch") and p.exists()]
    assert len(code) > 200
    faults = [(p.relative_to(ROOT), fault) for p in code for fault in faults_of_first_line(p)]
    assert not faults, "\n".join(f"{path} {fault}" for path, fault in faults)


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        ("", "has no description"),
        ("A" * 91, "has 91 characters (at most 90)"),
        ("What begins here\nends there.", "continues in the second line"),
        ("Shapes by name, and", None),
        ("Shapes by name,", "ends in the middle"),
        ("Shapes by name", None),
        ("Shapes by name.\n\nMore of them.", None),
    ],
)
def test_a_bad_first_line_is_found(tmp_path, docstring, fault):
    (tmp_path / "a.py").write_text(f'"""{docstring}"""\n' if docstring else "x = 1\n")
    assert faults_of_first_line(tmp_path / "a.py") == ([fault] if fault else [])


def test_a_folder_is_listed_with_scripts_first_and_sub_folders_last(tmp_path):
    for name, text in {
        "model/__init__.py": '"""The network.\n\nMore."""\n',
        "model/gpt.py": '"""GPT-2."""\nx = """if __name__ == "__main__":"""\n',
        "model/main.py": '"""Print it."""\n\nif __name__ == "__main__":\n    print()\n',
        "model/ranks.tiktoken": "",
        "model/ranks.tiktoken.LICENSE": "",
        "model/README.md": "# Read this\n",
        "model/hf/__init__.py": '"""Another format."""\n',
        "model/hf/card.py": '"""The card."""\n',
        "model/results/a.json": "{}",
        "model/results/b.png": "",
        "model/__pycache__/gpt.pyc": "",
        "launch/node.sh": "#!/usr/bin/env bash\n# Train here:\n#\n#   launch/node.sh\n",
        "launch/slurm/train.sbatch": "# shellcheck shell=bash\n# Train there.\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert file_tree(tmp_path, ("model", "launch")) == [
        "model/                             The network.",
        "  main.py                          script: Print it.",
        "  gpt.py                           GPT-2.",
        "  README.md                        Read this",
        "  ranks.tiktoken                   data",
        "  ranks.tiktoken.LICENSE           license",
        "  hf/                              Another format.",
        "    card.py                        The card.",
        "  results/                         data: .json, .png",
        "launch/",
        "  node.sh                          script: Train here",
        "  slurm/",
        "    train.sbatch                   script: Train there.",
    ]


def test_only_what_is_between_the_markers_is_replaced():
    page = f"# A\n{BEGIN}\nold\n{END}\n## B\n"
    assert page_with_tree(page, ["a/"]) == f"# A\n{BEGIN}\n```\na/\n```\n{END}\n## B\n"
    with pytest.raises(ValueError, match="needs the lines"):
        page_with_tree("# A\n", ["a/"])
