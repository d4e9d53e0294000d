"""Write the tree of every file, with what each is for, into ARCHITECTURE.md.

    python -m tests.file_tree        or: make tree

The descriptions are the first lines of the files' docstrings, and of a folder's `__init__.py`. So a
file describes itself, and the page cannot disagree with it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    *("storage", "parallel", "model", "data_prep", "eval", "train"),
    *("bench", "launch", "tests"),
)
BEGIN = "<!-- tree: made by python -m tests.file_tree -->"
END = "<!-- end of tree -->"
COLUMN = 35  # where the descriptions begin
SHELL = (".sh", ".sbatch")


def file_tree(root: Path, folders: tuple[str, ...] = FOLDERS) -> list[str]:
    """A line for each folder and file below `root`/`folders`."""
    return [line for folder in folders for line in _lines_of_folder(root / folder, 0)]


def first_line(path: Path) -> str:
    """What a file, or a folder by its `__init__.py`, says of itself in its first line."""
    if path.is_dir():
        init = path / "__init__.py"
        return first_line(init) if init.exists() else _contents_of(path)
    text = path.read_text(encoding="utf-8") if path.suffix in (".py", ".md", *SHELL) else ""
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    if path.suffix in SHELL:
        comments = re.findall(r"^# (?!shellcheck)(.*)", text, re.MULTILINE)
        return comments[0].rstrip(":") if comments else ""
    if path.suffix == ".md":
        return text.partition("\n")[0].removeprefix("# ") if text.startswith("# ") else ""
    return "license" if path.name.endswith("LICENSE") else "data"


def page_with_tree(page: str, tree: list[str]) -> str:
    """`page` with `tree` between its two marker comments.

    Raises: ValueError if the page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END} around its tree")
    block = "\n".join(["", "```", *tree, "```", ""])
    return before + begin + block + end + after


def described(root: Path, folders: tuple[str, ...] = FOLDERS) -> Iterator[Path]:
    """Every folder and file in the tree."""
    for folder in folders:
        yield root / folder
        for entry in _entries(root / folder):
            if entry.is_dir():
                yield from described(root, (entry.relative_to(root).as_posix(),))
            else:
                yield entry


def _lines_of_folder(folder: Path, depth: int) -> Iterator[str]:
    yield _line(f"{'  ' * depth}{folder.name}/", first_line(folder))
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _lines_of_folder(entry, depth + 1)
        else:
            mark = "script: " if _is_script(entry) else ""
            yield _line(f"{'  ' * (depth + 1)}{entry.name}", mark + first_line(entry))


def _entries(folder: Path) -> list[Path]:
    """What is listed of a folder: scripts, other modules, data, sub-folders.

    Of a folder without code only its own line is listed.
    """
    paths = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    if not any(p.suffix in (".py", *SHELL) for p in paths):
        return []
    entries = {folder / p.relative_to(folder).parts[0] for p in paths if p.name != "__init__.py"}
    entries |= {p.parent for p in paths if p.name == "__init__.py"} & set(folder.iterdir())
    return sorted(entries, key=_place)


def _place(path: Path) -> tuple[int, str]:
    if path.is_dir():
        return 3, path.name
    if _is_script(path):
        return 0, path.name
    return (1 if path.suffix in (".py", *SHELL) else 2), path.name


def _is_script(path: Path) -> bool:
    if path.suffix != ".py":
        return path.suffix in SHELL
    text = path.read_text(encoding="utf-8")
    return re.search(r'^if __name__ == "__main__":', text, re.MULTILINE) is not None


def _contents_of(folder: Path) -> str:
    """The kinds of files in a folder without code, or nothing for one with code."""
    if _entries(folder):
        return ""
    kinds = {p.suffix or p.name for p in folder.rglob("*") if p.is_file()}
    return f"data: {', '.join(sorted(kinds))}"


def _line(name: str, description: str) -> str:
    return f"{name:<{COLUMN}}{description}".rstrip()


if __name__ == "__main__":
    document = ROOT / "ARCHITECTURE.md"
    text = document.read_text(encoding="utf-8")
    document.write_text(page_with_tree(text, file_tree(ROOT)), encoding="utf-8")
