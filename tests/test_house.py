"""Rules of layout and names, checked on the syntax trees of all files.

Each rule is a function from a list of files to the offenders among them. One test applies it to the
project. Another shows that it finds a made-up offender, so that no rule can stop working unnoticed.
"""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "storage": 0,
    "data_prep": 1,
    "model": 1,
    "parallel": 1,
    "eval": 2,
    "train": 3,
    "bench": 4,
}
PRODUCT = LAYERS.keys() - {"bench"}
LONGEST_FILE = 300
LONGEST_FUNCTION = 60
MOST_FILES = 16  # in one folder of the product, beside its __init__.py
MOST_FILES_OF = {"train": 23, "data_prep": 11}  # data_prep: a script for each kind of source
MOST_FOLDERS = 8
MOST_FOLDERS_OF = {"train": 10}  # of a run before, in and after it
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}
# The one module that writes and reads each file; all others call it.
OWNERS = {
    "state.json": "storage/checkpoint_folder.py",
    "MANIFEST.json": "storage/checkpoint_folder.py",
    "config.json": "storage/run_folder.py",
    "status.json": "storage/run_folder.py",
    "metrics.jsonl": "storage/run_folder.py",
    "starts.jsonl": "storage/run_folder.py",
    "evals.jsonl": "storage/run_folder.py",
    "digests.jsonl": "storage/run_folder.py",
    "digest.json": "train/checkpoints/state_digest.py",
    "manifest.json": "data_prep/dataset/manifest.py",
    "gpt2.tiktoken": "storage/byte_pairs.py",
}
# Where a file of the same name is meant that is not ours.
OTHER_FILES_OF_THAT_NAME = {
    ("model/hf_format/convert.py", "config.json"): "of a Hugging Face model folder",
    ("model/hf_format/published.py", "config.json"): "of a Hugging Face model folder",
}
QUERY = re.compile(r"_*(is|has|should|can)_\w+|\w+_wanted")
ACTIONS = {
    *("write", "write_text", "write_bytes", "touch", "mkdir", "makedirs", "rename", "unlink"),
    *("rmdir", "rmtree", "symlink_to", "hardlink_to"),
}
# Queries that change something, and why that is no action.
CACHING_QUERIES: dict[str, str] = {}
# Public names that several files of the product may define.
COMMON_NAMES = {
    "main": "of each script",
    "Arguments": "the command line of each script",
    "log": "the logger of each file",
    "REVISION": "the commit at which each data set of the Hub is read",
}
# Files of what a GPU executes in a step, and the functions there that may read: a step's values one
# step late, data that are on the host, and a trial before the first step.
STEP_FILES = re.compile(
    r"train/(step|loader|progress)\.py|train/optimizers/\w+\.py|parallel/\w*(reduction|parallel)\.py"
    r"|model/(gpt|blocks|loss|dropout|shortcuts|plain_rms_norm)\.py|model/(fused_loss|documents)/\w+\.py"
)
MAY_READ = {
    "train/loader.py": {"_read"},
    "train/optimizers/registry.py": {"_equal"},
    "train/progress.py": {"read", "_guarded", "_metrics"},
    "train/step.py": {"join_digest"},
}
HOST_READS = {"item", "tolist", "cpu", "numpy", "nonzero", "equal", "synchronize", "is_nonzero"}
# Private metaphors (patterns), each with the word of the field.
BANNED = {
    "at hand": "available",
    "autopsy": "window by window",
    "borne": "tolerated",
    "compute alike": "enable determinism",
    "dead rows": "padding rows",
    "dealt": "split, assigned",
    "die with launcher": "exit with launcher",
    "dismiss launcher": "prevent restart",
    "give way": "halve the micro-batch",
    "goes on": "continues",
    "hangs? on": "depends on",
    "heed(?:s|ed)?": "check",
    "leave word": "request",
    "lies": "is",
    "meeting place": "rendezvous store",
    "none is all": "default: all",
    "patiently": "with retries",
    "rides? out": "tolerate",
    "roll call": "liveness check",
    "sign of life": "activity",
    "so many": "N",
    "stop wish": "stop request",
    "strangers": "unexpected files",
    "told (?:by|in|of|once)": "printed, reported",
    "under fire": "with kills",
    "vitals": "liveness",
    "worth keeping": "should cache",
}
BANNED_WORDS = re.compile(
    r"(?<![A-Za-z])(" + "|".join(BANNED).replace(" ", r"(?:\s|_|#)+") + r")(?![A-Za-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """One Python file: its path, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the syntax tree, which nearly every rule looks at."""
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[tuple[ast.Import | ast.ImportFrom, str]]:
        """Every import statement with each dotted module it names."""
        found: list[tuple[ast.Import | ast.ImportFrom, str]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.append((node, node.module or ""))
        return found

    @property
    def folder(self) -> str:
        return self.path.split("/")[0]

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def of_product(self) -> bool:
        return self.folder in PRODUCT

    @property
    def ours(self) -> bool:
        return self.folder in LAYERS

    @property
    def is_script(self) -> bool:
        return re.search(r'^if __name__ == "__main__":', self.text, re.MULTILINE) is not None

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)} {what}"


Rule = Callable[[list[Source]], Iterator[str]]


def read_tree(root: Path, folders: Iterable[str] = (*LAYERS, "tests")) -> list[Source]:
    """Every Python file in our folders and in tests/ below `root`."""
    sources = []
    for folder in folders:
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


def imports_of_ours(source: Source) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    return ((node, name) for node, name in source.imports if name.split(".")[0] in LAYERS)


def attributes(source: Source, module: str, *names: str) -> Iterator[ast.AST]:
    """Every `module.name`, and every `from module import name`."""
    for node in source.nodes:
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                found = owner == module and name in names
            case ast.ImportFrom(module=origin, names=aliases):
                found = origin == module and any(alias.name in names for alias in aliases)
            case _:
                found = False
        if found:
            yield node


@cache
def names_defined(source: Source) -> dict[str, ast.stmt]:
    """What a file defines at its top: functions, classes, constants.

    Without what it imports, and without substitutes for a failed import.
    """
    names: dict[str, ast.stmt] = {}
    imported: set[str] = set()
    waiting: list[ast.AST] = [*source.tree.body]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.setdefault(node.name, node)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                stored = (leaf for target in targets for leaf in ast.walk(target))
                names |= {leaf.id: node for leaf in stored if isinstance(leaf, ast.Name)}
            case ast.Import() | ast.ImportFrom():
                imported |= {alias.asname or alias.name for alias in node.names}
            case ast.If() | ast.Try() | ast.With() | ast.ExceptHandler():
                waiting += ast.iter_child_nodes(node)
    return {name: node for name, node in names.items() if name not in imported}


def public_names(source: Source) -> dict[str, ast.stmt]:
    return {n: node for n, node in names_defined(source).items() if not n.startswith("_")}


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """The names of what decorates a function or class, without modules and arguments."""
    names = (re.sub(r"\(.*", "", ast.unparse(d), flags=re.DOTALL) for d in node.decorator_list)
    return {name.split(".")[-1] for name in names}


def arrows_between(sources: list[Source]) -> dict[str, list[str]]:
    """Each module of ours with the modules of ours that it imports."""
    modules = {s.module for s in sources}
    return {
        s.module: sorted({target for _, target in imports_of_ours(s) if target in modules})
        for s in sources
    }


def circles(arrows: dict[str, list[str]]) -> Iterator[str]:
    """Each way from a point along the arrows back to it."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> Iterator[str]:
        if name in trail:
            yield " -> ".join([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in arrows[name]:
                yield from visit(target, [*trail, name])
            done.add(name)

    for name in sorted(arrows):
        yield from visit(name, [])


# --- the rules -------------------------------------------------------------------------------


def upward_imports(sources: list[Source]) -> Iterator[str]:
    """A folder imports only folders of lower layers, and itself."""
    for source in filter(lambda s: s.ours, sources):
        for node, name in source.imports:
            target = name.split(".")[0]
            layer = 99 if target == "tests" else LAYERS.get(target, -1)
            if target != source.folder and layer >= LAYERS[source.folder]:
                yield source.at(node, f"imports {target}")


def circular_imports(sources: list[Source]) -> Iterator[str]:
    """No file imports itself by way of others."""
    yield from circles(arrows_between(sources))


def circles_of_folders(sources: list[Source]) -> Iterator[str]:
    """A sub-folder is one module: contracted to a point each, they import in no circle."""
    folders = {s.module for s in sources if s.path.endswith("/__init__.py")}
    folders |= {s.module.rpartition(".")[0] for s in sources}
    # Files that import one another are the business of `circular_imports`.
    for depth in sorted({name.count(".") + 1 for name in folders if "." in name}):

        def point(module: str, depth: int = depth) -> str:
            start = ".".join(module.split(".")[:depth])
            return start if start in folders else module

        contracted: dict[str, set[str]] = defaultdict(set)
        for name, targets in arrows_between(sources).items():
            contracted[point(name)] |= {point(t) for t in targets} - {point(name)}
        yield from circles({name: sorted(targets) for name, targets in contracted.items()})


def imported_scripts(sources: list[Source]) -> Iterator[str]:
    """A script is imported by nobody: what others need of it has a file of its own.

    Tests may, to call it without a process of its own, and so may benchmarks, to time it.
    """
    scripts = {s.module for s in sources if s.is_script}
    for source in filter(lambda s: s.of_product, sources):
        for node, name in imports_of_ours(source):
            if name in scripts:
                yield source.at(node, f"imports the script {name}")


def re_exports(sources: list[Source]) -> Iterator[str]:
    """A name is imported from the file that defines it."""
    modules = {s.module: s for s in sources}
    for source in sources:
        for node, name in source.imports:
            if isinstance(node, ast.ImportFrom) and name in modules:
                known = names_defined(modules[name])
                for alias in node.names:
                    missing = alias.name not in known and alias.name != "*"
                    if missing and f"{name}.{alias.name}" not in modules:
                        yield source.at(node, f"takes {alias.name} from {name}, which imports it")


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
        for node in source.nodes:
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
        for node in source.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    yield source.at(node, f"{node.name} has {lines} lines")


def long_listings(sources: list[Source]) -> Iterator[str]:
    """A folder of the product has few enough entries to be read at a glance."""
    entries: dict[str, set[str]] = defaultdict(set)
    for source in filter(lambda s: s.of_product, sources):
        parts = source.path.removesuffix("/__init__.py").split("/")
        for i in range(1, len(parts)):
            entries["/".join(parts[:i])].add(parts[i])
    for folder, names in sorted(entries.items()):
        files = sum(name.endswith(".py") for name in names)
        most = MOST_FILES_OF.get(folder, MOST_FILES)
        if files > most:
            yield f"{folder}/ has {files} files (at most {most})"
        most = MOST_FOLDERS_OF.get(folder, MOST_FOLDERS)
        if len(names) - files > most:
            yield f"{folder}/ has {len(names) - files} sub-folders (at most {most})"


def folders_without_init(sources: list[Source]) -> Iterator[str]:
    """Every folder of ours has an `__init__.py`."""
    paths = {s.path for s in sources}
    for folder in sorted({s.path.rpartition("/")[0] for s in sources if s.ours}):
        if f"{folder}/__init__.py" not in paths:
            yield f"{folder}/ has no __init__.py"


def wrong_depths(sources: list[Source]) -> Iterator[str]:
    """`__file__` leads to the project's folder also after a file has moved."""
    for source in sources:
        for found in re.finditer(r"__file__\)(?:\.resolve\(\))?\.parents\[(\d+)\]", source.text):
            if int(found[1]) != source.path.count("/"):
                yield f"{source.path}: parents[{found[1]}] is not the project's folder"


def vague_names(sources: list[Source]) -> Iterator[str]:
    """No file or folder is called utils, common, helpers or misc."""
    for source in sources:
        parts = source.path.removesuffix(".py").split("/")
        if VAGUE & set(parts):
            yield f"{source.path}: say what it is about"


def hijacking_names(sources: list[Source]) -> Iterator[str]:
    """No file or sub-folder is named like a module of the standard library or a dependency.

    The folder of a script comes first on Python's path, so its neighbours would hide that module.
    """
    for source in sources:
        name = source.module.split(".")[-1]
        top = source.path.count("/") == 1 and source.path.endswith("__init__.py")
        if not top and name in module_names_taken():
            yield f"{source.path} hides the module {name}"


def full_init_files(sources: list[Source]) -> Iterator[str]:
    """An `__init__.py` holds one docstring: what the folder does, what it may import."""
    for source in filter(lambda s: s.ours and s.path.endswith("/__init__.py"), sources):
        if not ast.get_docstring(source.tree) or len(source.tree.body) != 1:
            yield f"{source.path} holds something other than one docstring"


def environment_readers(sources: list[Source]) -> Iterator[str]:
    """Environment variables are read in four files of parallel/ only."""
    names = ("ranks", "launcher", "fork_server", "warm_process")
    readers = [f"parallel/{name}.py" for name in names]
    for source in filter(lambda s: s.ours and s.path not in readers, sources):
        for node in attributes(source, "os", "environ", "environb", "getenv"):
            yield source.at(node, "reads the environment")


def tyro_outside_scripts(sources: list[Source]) -> Iterator[str]:
    """Only scripts describe a command line; storage/script_options.py reads it for all of them."""
    readers = filter(lambda s: s.is_script or s.path == "storage/script_options.py", sources)
    allowed = {source.path for source in readers}
    for source in filter(lambda s: s.ours and s.path not in allowed, sources):
        for node, name in source.imports:
            if name.split(".")[0] in ("tyro", "argparse"):
                yield source.at(node, f"imports {name}, but is no script")


def files_named_outside_their_owner(sources: list[Source]) -> Iterator[str]:
    """A file format has one owner, and only the owner's code names its file.

    Sentences may name it. Benchmarks and tests may build a path to it.
    """
    for source in filter(lambda s: s.of_product, sources):
        for node in paths_in_code(source):
            for part in str(node.value).split("/"):
                owner = OWNERS.get(part, source.path)
                if owner != source.path and (source.path, part) not in OTHER_FILES_OF_THAT_NAME:
                    yield source.at(node, f"names {part}, which is of {owner}")


def paths_in_code(source: Source) -> Iterator[ast.Constant]:
    """The string constants without white space, and of f-strings only those free of it."""
    sentences: set[int] = set()
    for node in source.nodes:
        if isinstance(node, ast.JoinedStr) and any(
            isinstance(part, ast.Constant) and re.search(r"\s", str(part.value))
            for part in node.values
        ):
            sentences |= {id(part) for part in node.values}
    for node in source.nodes:
        match node:
            case ast.Constant(value=str(text)) if not re.search(r"\s", text):
                if id(node) not in sentences:
                    yield node


def queries_that_act(sources: list[Source]) -> Iterator[str]:
    """A function named after a question, or a property, changes nothing."""
    for source in filter(lambda s: s.of_product, sources):
        for node in source.nodes:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            asks = QUERY.fullmatch(node.name) or "property" in decorators(node)
            if asks and f"{source.path}:{node.name}" not in CACHING_QUERIES:
                yield from (source.at(a, f"{node.name} {what}") for a, what in actions(node))


def actions(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[ast.AST, str]]:
    """What a function does to things that it has not made itself."""
    nodes = [node for part in function.body for node in ast.walk(part)]
    made = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in nodes:
        match node:
            case ast.Global() | ast.Nonlocal():
                yield node, f"binds {', '.join(node.names)}"
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                if not made & {root_of(node)}:
                    yield node, f"sets {ast.unparse(node)}"
            case ast.Subscript(ctx=ast.Store() | ast.Del()):
                if not made & {root_of(node)}:
                    yield node, f"sets {ast.unparse(node)}"
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
                if name in ACTIONS or name.startswith("write_"):
                    yield node, f"calls {name}"


def root_of(node: ast.expr) -> str:
    """`a` of `a.b[c].d`, or "" if it begins with a call or a literal."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def names_with_two_meanings(sources: list[Source]) -> Iterator[str]:
    """No two files of the product define the same public name."""
    places: dict[str, list[str]] = defaultdict(list)
    for source in filter(lambda s: s.of_product, sources):
        for name in public_names(source):
            places[name].append(source.path)
    for name, paths in sorted(places.items()):
        if len(paths) > 1 and name not in COMMON_NAMES:
            yield f"{name} is defined in {', '.join(paths)}"


def public_names_of_one_file(sources: list[Source]) -> Iterator[str]:
    """A name that no other file uses starts with an underscore.

    What a script shows on its command line keeps its name, since `--help` may show it.
    """
    used = set(uses(sources))
    for source in filter(lambda s: s.ours, sources):
        for name, node in public_names(source).items():
            is_class = isinstance(node, ast.ClassDef)
            shown = source.is_script and is_class and "dataclass" in decorators(node)
            if (source.module, name) not in used and name not in ("main", "log") and not shown:
                yield source.at(node, f"{name} is used in this file only")


def private_names_of_others(sources: list[Source]) -> Iterator[str]:
    """A name that starts with an underscore stays in its file. Tests may look at it."""
    for source in filter(lambda s: s.ours, sources):
        for node, name in imports_of_ours(source):
            for alias in node.names if isinstance(node, ast.ImportFrom) else []:
                if alias.name.startswith("_"):
                    yield source.at(node, f"imports {alias.name} of {name}")


def uses(sources: list[Source]) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that another file imports, reads or replaces."""
    modules = {s.module for s in sources}
    for source in sources:
        whole = set()
        for node, name in source.imports:
            if isinstance(node, ast.Import):
                whole.add(name)
            else:
                yield from ((name, alias.name) for alias in node.names)
                whole |= {f"{name}.{alias.name}" for alias in node.names}
        for node in source.nodes:
            match node:
                case ast.Attribute(attr=name):
                    yield from ((module, name) for module in whole & modules)
                case ast.Constant(value=str(text)) if source.folder == "tests":
                    yield from ((module, text) for module in whole & modules)
                    yield from uses_in_text(text)


def uses_in_text(text: str) -> Iterator[tuple[str, str]]:
    """The same of a string in a test: `module.name` to be patched, or a program."""
    for dotted in re.findall(r"\w+(?:\.\w+)+", text):
        parts = dotted.split(".")
        yield from ((".".join(parts[:i]), parts[i]) for i in range(1, len(parts)))
    for module, names in re.findall(r"from ([\w.]+) import ([\w, ]+)", text):
        yield from ((module, name) for name in re.findall(r"\w+", names))


def private_metaphors(sources: list[Source]) -> Iterator[str]:
    """Names and sentences of the product use the words of the field."""
    for source in filter(lambda s: s.of_product, sources):
        for found in BANNED_WORDS.finditer(source.text):
            word = re.sub(r"[\s_#]+", " ", found.group()).lower()
            better = next(b for pattern, b in BANNED.items() if re.fullmatch(pattern, word))
            line = source.text.count("\n", 0, found.start()) + 1
            yield f"{source.path}:{line} {word!r}: write {better}"


def pickles(sources: list[Source]) -> Iterator[str]:
    """Nothing is pickled to disk or loaded from a pickle: it runs code, and notices no damage.

    Tests may, to plant one.
    """
    for source in filter(lambda s: s.ours, sources):
        for node, name in source.imports:
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
        for node in source.nodes:
            match node:
                case ast.keyword(arg="allow_pickle", value=ast.Constant(value=False)):
                    pass
                case ast.keyword(arg="allow_pickle"):
                    yield source.at(node, "allows pickle")


def reads_in_the_step(sources: list[Source]) -> Iterator[str]:
    """In a step nothing waits for the GPU: values are read in MAY_READ only.

    tests/train/test_no_waiting.py watches the operations themselves, as far as a CPU shows them.
    """
    for source in filter(lambda s: STEP_FILES.fullmatch(s.path), sources):
        may = MAY_READ.get(source.path, set())
        functions = [n for n in source.nodes if isinstance(n, ast.FunctionDef)]
        allowed = {id(n) for f in functions if f.name in may for n in ast.walk(f)}
        for node in source.nodes:
            match node:
                case ast.Call(func=ast.Attribute(attr=name)) if name in HOST_READS:
                    found = f".{name}()"
                case ast.Call(func=ast.Name(id="bool" | "int" as name)):
                    found = f"{name}()"
                case _:
                    continue
            if id(node) not in allowed:
                yield source.at(node, f"has {found}")


def paths_outside_the_repository(sources: list[Source]) -> Iterator[str]:
    """No code names a folder that a fresh clone lacks."""
    for source in filter(lambda s: s.ours, sources):
        for node in source.nodes:
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
    (
        circles_of_folders,
        {
            "train/a/x.py": "from train.b.x import x",
            "train/b/x.py": "",
            "train/b/y.py": "from train.a.y import x",
            "train/a/y.py": "",
        },
    ),
    (
        circles_of_folders,
        {
            "train/a/x.py": "from train.b import x",
            "train/b.py": "from train.a.y import x",
            "train/a/y.py": "",
        },
    ),
    (
        circles_of_folders,
        {
            "train/c/a/x.py": "from train.c.b import x",
            "train/c/b.py": "from train.c.a.y import x",
            "train/c/a/y.py": "",
        },
    ),
    (
        imported_scripts,
        {
            "eval/a.py": 'if __name__ == "__main__":\n    x()',
            "train/b.py": "from eval.a import x",
        },
    ),
    (
        re_exports,
        {
            "eval/a.py": "x = 1",
            "eval/b.py": "from eval.a import x",
            "train/c.py": "from eval.b import x",
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
    (long_listings, {f"eval/a{i}.py": "" for i in range(17)}),
    (long_listings, {f"train/a/a{i}.py": "" for i in range(17)}),
    (long_listings, {f"data_prep/a{i}.py": "" for i in range(12)}),
    (long_listings, {f"eval/a{i}/__init__.py": "" for i in range(9)}),
    (folders_without_init, {"train/__init__.py": "", "train/a/x.py": ""}),
    (vague_names, {"train/utils.py": ""}),
    (vague_names, {"train/helpers/schedule.py": ""}),
    (hijacking_names, {"train/logging.py": ""}),
    (hijacking_names, {"data_prep/tokenize.py": ""}),
    (hijacking_names, {"eval/datasets.py": ""}),
    (hijacking_names, {"train/logging/__init__.py": '"""Logs."""'}),
    (full_init_files, {"train/__init__.py": '"""A."""\nfrom train.loop import run'}),
    (full_init_files, {"train/__init__.py": ""}),
    (environment_readers, {"train/a.py": "import os\nx = os.environ['RANK']"}),
    (environment_readers, {"train/a.py": "from os import getenv"}),
    (tyro_outside_scripts, {"train/a.py": "import tyro"}),
    (tyro_outside_scripts, {"train/a.py": "from argparse import ArgumentParser"}),
    (files_named_outside_their_owner, {"train/a.py": "x = y / 'metrics.jsonl'"}),
    (files_named_outside_their_owner, {"eval/a.py": "x = y / 'step_000500/state.json'"}),
    (files_named_outside_their_owner, {"eval/a.py": "x = f'{y}/manifest.json'"}),
    (files_named_outside_their_owner, {"model/hf_format/card.py": "x = y / 'config.json'"}),
    (queries_that_act, {"train/a.py": "def is_due(self):\n    self.seen = 1"}),
    (queries_that_act, {"train/a.py": "def _has_room(x):\n    x.seen[0] += 1"}),
    (queries_that_act, {"train/a.py": "def stop_wanted(path):\n    path.unlink()"}),
    (
        queries_that_act,
        {"train/a.py": "class A:\n    @property\n    def b(self):\n        del self.c"},
    ),
    (queries_that_act, {"train/a.py": "def can_save():\n    write_json(1)"}),
    (queries_that_act, {"train/a.py": "def should_save():\n    global x"}),
    (names_with_two_meanings, {"train/a.py": "def f(): ...", "eval/b.py": "class f: ..."}),
    (names_with_two_meanings, {"train/a.py": "F = 1", "train/b/c.py": "F: int = 1"}),
    (public_names_of_one_file, {"train/a.py": "def f(): ...", "train/b.py": "_ = _f.f"}),
    (public_names_of_one_file, {"bench/a.py": "F = 1\nprint(F)"}),
    (private_names_of_others, {"train/a.py": "from train.b import _f"}),
    (private_metaphors, {"train/a.py": "# A rank that heeds nobody may\n# be lost.\n"}),
    (private_metaphors, {"train/a.py": "def _give_way(): ..."}),
    (wrong_depths, {"train/a/b.py": "from pathlib import Path\nR = Path(__file__).parents[1]"}),
    (private_metaphors, {"train/a.py": "# The file is at\n# hand."}),
    (pickles, {"train/a.py": "import pickle"}),
    (pickles, {"train/a.py": "import torch\ntorch.load('x', weights_only=True)"}),
    (pickles, {"train/a.py": "from torch import save"}),
    (pickles, {"train/a.py": "import torch.distributed.checkpoint as dcp"}),
    (pickles, {"data_prep/a.py": "import numpy as np\nnp.load('x', allow_pickle=True)"}),
    (reads_in_the_step, {"train/step.py": "def step(loss):\n    return loss.item()"}),
    (reads_in_the_step, {"train/loader.py": "x = bool(y)"}),
    (reads_in_the_step, {"model/fused_loss/a.py": "import torch\nx = torch.equal(y, z)"}),
    (reads_in_the_step, {"train/progress.py": "def launched(values):\n    values.tolist()"}),
    (paths_outside_the_repository, {"eval/a.py": "FILE = 'shared/data/x.jsonl'"}),
    (paths_outside_the_repository, {"eval/a.py": "FILE = f'../shared/{1}'"}),
]
RULES = list(dict.fromkeys(rule for rule, _ in OFFENDERS))

# What every rule lets pass.
SOUND = {
    "storage/__init__.py": '"""Files. Imports nothing of ours."""\n',
    "storage/atomic.py": "import os\n\ndef write():\n    os.fsync(1)\n",
    "storage/run_folder.py": "_METRICS = 'metrics.jsonl'\n",
    "model/__init__.py": '"""The network."""\n',
    "model/gpt.py": "from storage.atomic import write\nfrom model.loss import loss\n",
    "model/loss.py": "def loss():\n" + "    x = 1\n" * 59,
    "parallel/__init__.py": '"""Ranks."""\n',
    "parallel/ranks.py": "import os\n_RANK = os.environ.get('RANK')\n",
    "train/__init__.py": '"""A run."""\n',
    "train/main.py": "import tyro\nfrom storage.atomic import write\n"
    'if __name__ == "__main__":\n    tyro.cli(write)\n',
    "train/progress.py": "def _metrics(values):\n    return values.item()\n",
    "train/loader.py": "from numpy import load\nload('x', allow_pickle=False)\n_A = 'shared by'\n"
    "def is_there(path):\n    found = {}\n    found['a'] = f'no {path}/status.json'\n"
    "def patched(): ...\ndef replaced(): ...\ndef run_by_a_program(): ...\n",
    "tests/test_all.py": "import os, pickle\nfrom train import loader\nos.environ['A'] = '../'\n"
    "put(loader, 'replaced')\nput('train.loader.patched')\nloader.is_there('metrics.jsonl')\n"
    "python('-c', 'from train.loader import run_by_a_program')",
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
    head = "(sources: list[Source]) -> Iterator[str]:"
    rules = {
        node.name
        for node in here.body
        if isinstance(node, ast.FunctionDef) and f"def {node.name}{head}" in ast.unparse(node)
    }
    assert rules == {rule.__name__ for rule in RULES}


def test_all_our_folders_are_installed_and_known_to_ruff() -> None:
    present = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()} - {"tests"}
    assert present <= LAYERS.keys()
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = {s.path.rpartition("/")[0].replace("/", ".") for s in project() if s.ours}
    assert sorted(setup["options"]["packages"].split()) == sorted(folders)
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert set(ruff["lint"]["isort"]["known-first-party"]) == LAYERS.keys()


def test_no_exception_is_out_of_date() -> None:
    texts = {s.path: s.text for s in project()}
    assert set(OWNERS.values()) <= texts.keys()
    assert all(f'"{name}"' in texts[path] for path, name in OTHER_FILES_OF_THAT_NAME)
    for query in CACHING_QUERIES:
        path, _, name = query.partition(":")
        assert f"def {name}(" in texts[path], query


def test_everything_we_install_is_pinned_to_one_version() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    names = {plain(line.split()[0].split("[")[0]) for line in wanted.splitlines() if line.strip()}
    assert names <= pins().keys()
    assert all(version and "+" not in version for version in pins().values())
