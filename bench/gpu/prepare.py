"""Pack what a GPU machine without a network needs for bench/gpu/measure.py into one folder.

    python bench/gpu/prepare.py prose.jsonl.zst --hellaswag-file hellaswag_val.jsonl.xz
    python bench/gpu/prepare.py prose.jsonl.zst --max-documents 20000 --python 3.12

The folder gets a data set of the text, the items of HellaSwag, and the wheels that the machine
lacks, for its Python. 18 million tokens are a little less than an epoch of the longest run. Run it
on the commit that is to be measured, and copy the folder beside the repository's files.
"""

import gzip
import logging
import lzma
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

from bench.provenance import ROOT, commit_of_sources
from data_prep.dataset.manifest import read_manifest
from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import new_folder, put_json
from storage.script_options import parse_options

# Wheels for any glibc since 2.17.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
_LEAST_VALIDATION = 262_144  # tokens that the parts validate on
_MIB = 2**20

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Pack a kit for a GPU machine."""

    text: tyro.conf.Positional[tuple[Path, ...]]
    """Text for the data set, as data_prep/text.py reads it."""
    hellaswag_file: Path | None = None
    """Items of HellaSwag as .jsonl, .jsonl.xz or .jsonl.gz. Default: without that part."""
    max_documents: int | None = None
    """Use only the first N documents of the text. Default: all."""
    val_tokens: int = 300_000
    """Validation tokens, approximately."""
    python: str = "3.12"
    """Version of the machine's Python."""
    packages: tuple[str, ...] = ("tyro", "docstring-parser", "typeguard")
    """Packages that the machine lacks, each without what it requires. None: it lacks none."""
    machine: str = "x86_64"
    """Processor of the machine: x86_64 or aarch64."""
    most_mib: float = 64
    """Largest size of the kit and the repository's files together."""
    out: Path = Path("gpu_kit")
    """The folder to make; must not exist yet."""

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("no text is given; name files for the data set")
        if self.val_tokens < _LEAST_VALIDATION * 1.1:
            raise ValueError(
                f"val_tokens={self.val_tokens} may give fewer than the {_LEAST_VALIDATION} "
                f"that are read; give at least {round(_LEAST_VALIDATION * 1.1)}"
            )
        if self.hellaswag_file is not None and not self.hellaswag_file.is_file():
            raise ValueError(f"there is no file {self.hellaswag_file}; name HellaSwag's items")


def _run(what: str, words: list[str]) -> None:
    """Raises: ValueError if the command fails; what it printed has been shown."""
    if (code := subprocess.run(words, cwd=Path.cwd()).returncode) != 0:
        raise ValueError(f"{what} could not be made (exit code {code}); see above")


def _pack_data(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Make the data set; returns its tokens."""
    words = [sys.executable, str(ROOT / "data_prep" / "text.py"), *map(str, arguments.text)]
    words += ["--val-tokens", str(arguments.val_tokens), "--out", str(folder)]
    if arguments.max_documents is not None:
        words += ["--max-documents", str(arguments.max_documents)]
    _run("the data set", words)
    manifest = read_manifest(folder)
    tokens = {"train": manifest.train.tokens, "val": manifest.val.tokens}
    if tokens["val"] < _LEAST_VALIDATION:
        raise ValueError(
            f"the text gave {tokens['val']} validation tokens, but {_LEAST_VALIDATION} are read; "
            "give more text, or a larger --val-tokens"
        )
    return tokens


def _pack_items(source: Path, target: Path) -> int:
    """Write HellaSwag's items, compressed; returns their number.

    Raises: ValueError if the file is damaged.
    """
    decompress = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(source.suffix, bytes)
    try:
        content = decompress(source.read_bytes())
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise ValueError(f"{source} cannot be read ({error}); give another file of items") from None
    target.write_bytes(lzma.compress(content, preset=9))
    return content.count(b"\n")


def _pack_wheels(arguments: Arguments, folder: Path) -> list[str]:
    """Download the wheels for the machine's Python; returns their names."""
    folder.mkdir()
    if not arguments.packages:
        return []
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    words += ["--implementation", "cp", "--python-version", arguments.python]
    for platform in _PLATFORMS:
        words += ["--platform", f"{platform}_{arguments.machine}"]
    words += ["-c", str(ROOT / "constraints.txt"), "-d", str(folder), *arguments.packages]
    _run("the folder of wheels", words)
    return sorted(path.name for path in folder.iterdir())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _tree_size() -> int:
    """Bytes of the repository's own files, or 0 outside of git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


def pack(arguments: Arguments) -> dict[str, Any]:
    """Make the kit; returns what is in it. Raises: ValueError if it cannot be made."""
    if arguments.out.exists():
        raise ValueError(f"--out {arguments.out} exists; give another name, or remove it")
    with new_folder(arguments.out) as folder:
        items = 0
        if arguments.hellaswag_file is not None:
            items = _pack_items(arguments.hellaswag_file, folder / "hellaswag_val.jsonl.xz")
        tokens = _pack_data(arguments, folder / "data")
        kit = {
            "commit": commit_of_sources(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": arguments.python,
            "tokens": tokens,
            "hellaswag_items": items,
            "wheels": _pack_wheels(arguments, folder / "wheels"),
        }
        put_json(folder / "kit.json", kit)
        size = (_size(folder) + _tree_size()) / _MIB
        if size > arguments.most_mib:
            raise ValueError(
                f"the kit and the repository are {size:.1f} MiB together, more than "
                f"{arguments.most_mib:g}; give a smaller --max-documents, or a larger --most-mib"
            )
    log.info("%s and the repository's files: %.1f MiB", arguments.out, size)
    return kit


def main() -> None:
    """Read the options and pack."""
    silence_other_ranks()
    with user_errors():
        pack(parse_options(Arguments, description=__doc__))


if __name__ == "__main__":
    main()
