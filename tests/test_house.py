"""The house rules, read from the syntax trees: who may import whom, how long, called what.

Each rule is a function from a tree of files to the offenders in it. One test holds the project to
it, and one shows that it catches a made-up offender, so that no rule can rot.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "storage": 0,
    "data_prep": 1,
    "model": 1,
    "parallel": 1,
    "eval": 2,
    "train": 3,
    "bench": 4,
}
LONGEST_FILE = 300
LONGEST_FUNCTION = 60
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}


@dataclass(frozen=True)
class Source:
    """One Python file: where it lies, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def folder(self) -> str:
        return self.path.split("/")[0]

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def ours(self) -> bool:
        return self.folder in FLOORS

    @property
    def is_script(self) -> bool:
        return '__name__ == "__main__"' in self.text

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)} {what}"


Rule = Callable[[list[Source]], Iterator[str]]


def read_tree(root: Path) -> list[Source]:
    """Every Python file in our folders and in tests/ below `root`."""
    sources = []
    for folder in (*FLOORS, "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            sources.append(Source(path.relative_to(root).as_posix(), text, ast.parse(text)))
    return sources


@cache
def project() -> list[Source]:
    return read_tree(ROOT)


def plain(distribution: str) -> str:
    """A distribution's name in the one spelling that compares equal."""
    return distribution.lower().replace("_", "-")


def pins() -> dict[str, str]:
    """The pinned distributions, name and version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==")[::2] for line in lines if line and not line.startswith("#")]
    return {plain(name): version for name, version in pairs}


@cache
def module_names_taken() -> frozenset[str]:
    """Top-level modules of the standard library and of everything we install."""
    pinned = pins().keys()
    installed = packages_distributions().items()
    ours = {m for m, dists in installed if {plain(d) for d in dists} & pinned}
    return sys.stdlib_module_names | ours


def imports(source: Source) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Every import statement of a file with each dotted module it names."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module or ""


def imports_of_ours(source: Source) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    return ((node, name) for node, name in imports(source) if name.split(".")[0] in FLOORS)


def attributes(source: Source, module: str, *names: str) -> Iterator[ast.AST]:
    """Every `module.name`, and every `from module import name`."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                found = owner == module and name in names
            case ast.ImportFrom(module=origin, names=aliases):
                found = origin == module and any(alias.name in names for alias in aliases)
            case _:
                found = False
        if found:
            yield node


# --- the rules -------------------------------------------------------------------------------


def upward_imports(sources: list[Source]) -> Iterator[str]:
    """A folder imports only folders on lower floors (and itself)."""
    for source in filter(lambda s: s.ours, sources):
        for node, name in imports(source):
            target = name.split(".")[0]
            floor = 99 if target == "tests" else FLOORS.get(target, -1)
            if target != source.folder and floor >= FLOORS[source.folder]:
                yield source.at(node, f"imports {target}")


def circular_imports(sources: list[Source]) -> Iterator[str]:
    """No file imports itself by way of others."""
    modules = {s.module: s for s in sources}
    arrows = {
        name: sorted({target for _, target in imports_of_ours(s) if target in modules})
        for name, s in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> Iterator[str]:
        if name in trail:
            yield " -> ".join([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in arrows[name]:
                yield from visit(target, [*trail, name])
            done.add(name)

    for name in sorted(modules):
        yield from visit(name, [])


def lazy_imports(sources: list[Source]) -> Iterator[str]:
    """Our own files are imported at the top of a file, never inside a function."""
    for source in filter(lambda s: s.ours, sources):
        top = {id(node) for node in source.tree.body}
        for node, name in imports_of_ours(source):
            if id(node) not in top:
                yield source.at(node, f"imports {name} below the top of the file")


def relative_imports(sources: list[Source]) -> Iterator[str]:
    """Imports are absolute."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                yield source.at(node, "is a relative import")


def imports_of_whole_modules(sources: list[Source]) -> Iterator[str]:
    """Ours is always `from folder.file import name`: not `import eval`, not `from eval import`.

    Tests may import a file whole, to replace something in it.
    """
    for source in filter(lambda s: s.ours, sources):
        for node, name in imports_of_ours(source):
            if isinstance(node, ast.Import) or "." not in name:
                yield source.at(node, f"{ast.unparse(node)}: write from folder.file import name")
            elif any(alias.name == "*" for alias in node.names):
                yield source.at(node, "imports *")


def long_files(sources: list[Source]) -> Iterator[str]:
    """A file has at most 300 lines."""
    for source in filter(lambda s: s.ours, sources):
        lines = len(source.text.splitlines())
        if lines > LONGEST_FILE:
            yield f"{source.path} has {lines} lines (at most {LONGEST_FILE})"


def long_functions(sources: list[Source]) -> Iterator[str]:
    """A function has at most 60 lines, from `def` to its last."""
    for source in filter(lambda s: s.ours, sources):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    yield source.at(node, f"{node.name} has {lines} lines")


def nameless_rooms(sources: list[Source]) -> Iterator[str]:
    """No file or folder is called utils, common, helpers or misc."""
    for source in sources:
        parts = source.path.removesuffix(".py").split("/")
        if NAMELESS & set(parts):
            yield f"{source.path}: say what it is about"


def hijacking_names(sources: list[Source]) -> Iterator[str]:
    """No file is named like a module of the standard library or a dependency."""
    for source in sources:
        name = source.module.split(".")[-1]
        if not source.path.endswith("__init__.py") and name in module_names_taken():
            yield f"{source.path} hides the module {name}"


def full_init_files(sources: list[Source]) -> Iterator[str]:
    """An `__init__.py` holds one docstring: what the folder does, what it may import."""
    for source in filter(lambda s: s.ours and s.path.endswith("/__init__.py"), sources):
        if not ast.get_docstring(source.tree) or len(source.tree.body) != 1:
            yield f"{source.path} holds something other than one docstring"


def environment_readers(sources: list[Source]) -> Iterator[str]:
    """Environment variables are read in parallel/ranks.py only."""
    for source in filter(lambda s: s.ours and s.path != "parallel/ranks.py", sources):
        for node in attributes(source, "os", "environ", "environb", "getenv"):
            yield source.at(node, "reads the environment")


def tyro_outside_scripts(sources: list[Source]) -> Iterator[str]:
    """Only scripts read the command line, those of training by way of train/command_line.py."""
    readers = filter(lambda s: s.is_script or s.path == "train/command_line.py", sources)
    allowed = {source.path for source in readers}
    for source in filter(lambda s: s.ours and s.path not in allowed, sources):
        for node, name in imports(source):
            if name.split(".")[0] in ("tyro", "argparse"):
                yield source.at(node, f"imports {name}, but is no script")


def pickles(sources: list[Source]) -> Iterator[str]:
    """Nothing is pickled to disk or loaded from a pickle: it runs code, and notices no damage.

    Tests may, to plant one.
    """
    for source in filter(lambda s: s.ours, sources):
        for node, name in imports(source):
            if name.split(".")[0] in (
                "pickle",
                "cPickle",
                "dill",
                "cloudpickle",
                "shelve",
                "joblib",
            ):
                yield source.at(node, f"imports {name}")
            elif name.startswith("torch.distributed.checkpoint"):
                yield source.at(node, "imports torch.distributed.checkpoint")
        for node in attributes(source, "torch", "load", "save"):
            yield source.at(node, "uses torch.load or torch.save")
        for node in ast.walk(source.tree):
            match node:
                case ast.keyword(arg="allow_pickle", value=ast.Constant(value=False)):
                    pass
                case ast.keyword(arg="allow_pickle"):
                    yield source.at(node, "allows pickle")


def paths_of_the_workshop(sources: list[Source]) -> Iterator[str]:
    """No code names a folder that a fresh clone lacks."""
    for source in filter(lambda s: s.ours, sources):
        for node in ast.walk(source.tree):
            match node:
                case ast.Constant(value=str(text)) if text == "shared" or "shared/" in text:
                    yield source.at(node, f"names {text!r:.60}")


# Each rule with files that break it.
OFFENDERS: list[tuple[Rule, dict[str, str]]] = [
    (upward_imports, {"storage/a.py": "from train.loop import run"}),
    (upward_imports, {"model/a.py": "from data_prep.shards import read"}),
    (upward_imports, {"eval/a.py": "def f():\n    import train.loop"}),
    (upward_imports, {"train/a.py": "from tests.data_sets import make"}),
    (
        circular_imports,
        {
            "train/a.py": "from train.b import x",
            "train/b.py": "from train.c import x",
            "train/c.py": "from train.a import x",
        },
    ),
    (lazy_imports, {"train/a.py": "def f():\n    from eval.tasks import TASKS"}),
    (lazy_imports, {"train/a.py": "if True:\n    from eval.tasks import TASKS"}),
    (relative_imports, {"train/a.py": "from .loop import run"}),
    (relative_imports, {"tests/a.py": "from . import loop"}),
    (imports_of_whole_modules, {"train/a.py": "import eval"}),
    (imports_of_whole_modules, {"train/a.py": "import eval.tasks as tasks"}),
    (imports_of_whole_modules, {"train/a.py": "from eval import tasks"}),
    (imports_of_whole_modules, {"train/a.py": "from eval.tasks import *"}),
    (long_files, {"model/a.py": "x = 1\n" * 301}),
    (long_functions, {"model/a.py": "def f():\n" + "    x = 1\n" * 60}),
    (nameless_rooms, {"train/utils.py": ""}),
    (nameless_rooms, {"train/helpers/schedule.py": ""}),
    (hijacking_names, {"train/logging.py": ""}),
    (hijacking_names, {"data_prep/tokenize.py": ""}),
    (hijacking_names, {"eval/datasets.py": ""}),
    (full_init_files, {"train/__init__.py": '"""A."""\nfrom train.loop import run'}),
    (full_init_files, {"train/__init__.py": ""}),
    (environment_readers, {"train/a.py": "import os\nx = os.environ['RANK']"}),
    (environment_readers, {"train/a.py": "from os import getenv"}),
    (tyro_outside_scripts, {"train/a.py": "import tyro"}),
    (tyro_outside_scripts, {"train/a.py": "from argparse import ArgumentParser"}),
    (pickles, {"train/a.py": "import pickle"}),
    (pickles, {"train/a.py": "import torch\ntorch.load('x', weights_only=True)"}),
    (pickles, {"train/a.py": "from torch import save"}),
    (pickles, {"train/a.py": "import torch.distributed.checkpoint as dcp"}),
    (pickles, {"data_prep/a.py": "import numpy as np\nnp.load('x', allow_pickle=True)"}),
    (paths_of_the_workshop, {"eval/a.py": "FILE = 'shared/data/x.jsonl'"}),
    (paths_of_the_workshop, {"eval/a.py": "FILE = f'../shared/{1}'"}),
]
RULES = list(dict.fromkeys(rule for rule, _ in OFFENDERS))

# What every rule lets pass.
SOUND = {
    "storage/__init__.py": '"""Files. Imports nothing of ours."""\n',
    "storage/atomic.py": "import os\n\ndef write():\n    os.fsync(1)\n",
    "model/gpt.py": "from storage.atomic import write\nfrom model.loss import loss\n",
    "model/loss.py": "def loss():\n" + "    x = 1\n" * 59,
    "parallel/ranks.py": "import os\nRANK = os.environ.get('RANK')\n",
    "train/main.py": "import tyro\nfrom model.gpt import write\n"
    'if __name__ == "__main__":\n    tyro.cli(write)\n',
    "train/loader.py": "from numpy import load\nload('x', allow_pickle=False)\nA = 'shared by'\n",
    "tests/test_all.py": "import os, pickle\nfrom train import loader\nos.environ['A'] = '../'\n",
}


def plant(root: Path, files: dict[str, str]) -> list[Source]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read_tree(root)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_has_no(rule: Rule) -> None:
    offenders = list(rule(project()))
    assert not offenders, f"{rule.__doc__}\n" + "\n".join(offenders)


@pytest.mark.parametrize("case", OFFENDERS, ids=lambda case: case[0].__name__)
def test_a_made_up_offender_is_caught_by(case: tuple[Rule, dict[str, str]], tmp_path: Path) -> None:
    rule, files = case
    assert len(list(rule(plant(tmp_path, files)))) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sound_files_pass(rule: Rule, tmp_path: Path) -> None:
    assert list(rule(plant(tmp_path, SOUND))) == []


def test_every_rule_has_a_made_up_offender() -> None:
    here = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    rules = {
        node.name
        for node in here.body
        if isinstance(node, ast.FunctionDef) and ast.unparse(node.args) == "sources: list[Source]"
    }
    assert rules == {rule.__name__ for rule in RULES}


def test_all_our_folders_are_installed_and_known_to_ruff() -> None:
    present = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()} - {"tests"}
    assert present <= FLOORS.keys()
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8").split()
    ruff = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in present:
        assert folder in setup, f"setup.cfg does not list {folder}"
        assert f'"{folder}"' in ruff, f"pyproject.toml does not list {folder}"


def test_everything_we_install_is_pinned_to_one_version() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    names = {plain(line.split()[0].split("[")[0]) for line in wanted.splitlines() if line.strip()}
    assert names <= pins().keys()
    assert all(version and "+" not in version for version in pins().values())
