"""Make a data set from tokens that other programs have made, with their ids unchanged.

    python data_prep/ready_tokens.py edu_fineweb10B --out data/edu_fineweb10B     # build-nanogpt
    python data_prep/ready_tokens.py fineweb10B --out data/fineweb10B             # modded-nanogpt
    python data_prep/ready_tokens.py train.bin val.bin --out data/owt             # nanoGPT

Input: .npy or .bin files, folders or globs. Files with `val` in their name are validation, or those
of --val-files. Documents are found by their separator, end-of-text. Output: a data set folder for
`train/main.py --data`, as every script here makes it; nothing is left of an interrupted one.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from data_prep.dataset.manifest import (
    Manifest,
    SourceEntry,
    TokenizerEntry,
    token_format,
)
from data_prep.dataset.shards import open_data_set
from data_prep.preparation.cloud.source_copies import CopyOptions, local_places
from data_prep.preparation.console import ProgressBar, log_summary, run_script
from data_prep.preparation.duplicates import count_duplicates
from data_prep.preparation.ready.taken_tokens import TakenSplit, TokenTaker
from data_prep.preparation.ready.token_arrays import (
    TOKEN_KINDS,
    TokenArray,
    is_token_file,
    open_token_file,
)
from data_prep.preparation.split import SplitRule
from data_prep.preparation.work_folder import finished_data_set
from data_prep.sources.file_search import find_files
from data_prep.sources.file_source import hashed_files
from data_prep.tokenizer import Tokenizer, named_tokenizer
from storage.atomic import new_folder
from storage.option_values import check_at_least
from storage.script_options import parse_options
from storage.terminal.quantities import counted

log = logging.getLogger("data_prep")  # not __name__, which is "__main__" in a script
_MORE_BYTES = 0.2  # on disk for each token: 24 bytes for a document of some hundred
_TEXT_PER_TOKEN = 4  # bytes, for the progress bar


@dataclass(frozen=True)
class ReadyTokensOptions:
    """Take over tokens that other programs have made."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or globs of .npy and .bin files, also as URLs of fsspec."""
    out: Path
    """Folder of the data set; must not exist yet."""
    val_files: tuple[str, ...] = ()
    """Validation files: files, folders or globs. Default: those with `val` in their name."""
    tokenizer: Path | None = None
    """Tokenizer that made the tokens: a folder of data_prep/train_tokenizer.py, a checkpoint, a run
    or a data set; a tokenizer.json or its folder; a file of tiktoken. Default: GPT-2's."""
    end_of_text: str | None = None
    """The token of the tokenizer.json that is between documents. Default: <|endoftext|> or what
    else ends a text there."""
    shard_tokens: int = 100_000_000
    """Tokens of a train shard, approximately: a shard holds whole documents."""

    def __post_init__(self) -> None:
        check_at_least("shard_tokens", self.shard_tokens, 1)

    def settings(self) -> dict[str, Any]:
        """The options that affect the bytes, for the manifest."""
        return {"shard_tokens": self.shard_tokens, "ready_tokens": True}


def _opened(
    paths: Sequence[str], val_files: Sequence[str], tokenizer: Tokenizer
) -> tuple[list[TokenArray], set[int], int]:
    """All files, the numbers of those that are validation, and how many are passed over.

    Raises: ValueError if one cannot be used, or none is left for one of the splits.
    """
    found = find_files([*paths, *val_files], is_token_file, TOKEN_KINDS)
    found.log_names()
    named = set(find_files(val_files, is_token_file, TOKEN_KINDS).paths) if val_files else None
    is_val = [path in named if named is not None else "val" in path.name for path in found.paths]
    val = {number for number, chosen in enumerate(is_val) if chosen}
    if not val or len(val) == len(found.paths):
        kind = "validation" if not val else "training"
        raise ValueError(
            f"none of the {len(found.paths)} files is for {kind} (validation files have `val` in "
            "their names); name those of validation with --val-files"
        )
    files = [open_token_file(path, tokenizer.token_dtype) for path in found.paths]
    return files, val, found.count_passed_over


def _source(files: Sequence[TokenArray]) -> SourceEntry:
    _, entries = hashed_files([file.path for file in files])
    kinds = " and ".join(sorted({file.kind for file in files}))
    return SourceEntry(f"ready tokens ({kinds})", "", entries)


def take_tokens(options: ReadyTokensOptions) -> None:
    """Make the data set, unless it is there already.

    Raises: ValueError for files or an `out` that cannot be used; nothing is left behind then.
    """
    tokenizer = named_tokenizer(options.tokenizer, options.end_of_text)
    settings = options.settings()
    given = (settings, tokenizer.ranks_sha256)
    copying = CopyOptions(
        options.out, is_ours=lambda found: (found.settings, found.tokenizer.ranks_sha256) == given
    )
    groups = (options.paths, options.val_files)
    with local_places(groups, copying, is_token_file, TOKEN_KINDS) as places:
        if places is not None:
            _take_local(options, tokenizer, *places)


def _take_local(
    options: ReadyTokensOptions,
    tokenizer: Tokenizer,
    paths: Sequence[str],
    val_files: Sequence[str],
) -> None:
    files, val, passed_over = _opened(paths, val_files, tokenizer)
    source, settings = _source(files), options.settings()
    if finished_data_set(options.out, settings, tokenizer, lambda found: found == source):
        log.info("%s is finished already", options.out)
        return
    _check_disk_space(options.out, files, tokenizer)
    bar = ProgressBar(_TEXT_PER_TOKEN * sum(file.tokens for file in files), 0)
    try:
        with new_folder(options.out) as folder:
            taken, taker = _write(folder, files, val, (tokenizer, options.shard_tokens, bar))
            manifest = _manifest(taken, taker, folder, (source, settings, tokenizer, val))
            manifest.write(folder)
    finally:
        bar.close()
    for name, split in taken.items():
        if split.without_beginning:
            log.info("%s: the first token is no end-of-text, so one was put before it", name)
    agreement = taker.agreement
    log.info(
        "%s",
        f"{agreement.agreed:,} of {counted(agreement.sampled, 'sampled document')} have the ids "
        f"that {tokenizer.name} makes of their text",
    )
    log_summary(open_data_set(options.out), bar, passed_over)


def _write(
    folder: Path,
    files: Sequence[TokenArray],
    val: set[int],
    how: tuple[Tokenizer, int, ProgressBar],
) -> tuple[dict[str, TakenSplit], TokenTaker]:
    tokenizer, shard_tokens, bar = how
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    taker = TokenTaker(folder, tokenizer, shard_tokens, bar)
    numbered = list(enumerate(files))
    taken = {
        "train": taker.take("train", [pair for pair in numbered if pair[0] not in val]),
        "val": taker.take("val", [pair for pair in numbered if pair[0] in val]),
    }
    taker.agreement.check(tokenizer)
    for name, split in taken.items():
        if not split.entry.tokens:
            raise ValueError(f"the files of {name} hold no document, only separators; give others")
    return taken, taker


def _manifest(
    taken: dict[str, TakenSplit],
    taker: TokenTaker,
    folder: Path,
    what: tuple[SourceEntry, dict[str, Any], Tokenizer, set[int]],
) -> Manifest:
    source, settings, tokenizer, val = what
    hashes = folder / "hashes"
    hashes.mkdir()
    taker.hashes.save(hashes)
    duplicates = count_duplicates([hashes])
    shutil.rmtree(hashes)
    entry = TokenizerEntry(
        tokenizer.name, tokenizer.ranks_sha256, tokenizer.n_vocab, tokenizer.end_of_text
    )
    return Manifest(
        **token_format(tokenizer.n_vocab),
        tokenizer=entry,
        source=source,
        settings=settings,
        split_rule=SplitRule("given", val_files=tuple(sorted(val))).as_json(),
        skipped_empty=sum(split.empty for split in taken.values()),
        train=taken["train"].entry,
        val=taken["val"].entry,
        duplicates=duplicates,
    ).sealed()


def _check_disk_space(out: Path, files: Sequence[TokenArray], tokenizer: Tokenizer) -> None:
    """Raises: ValueError if the disk has no room for the shards."""
    above = next(parent for parent in out.absolute().parents if parent.exists())
    each = tokenizer.token_dtype.itemsize + _MORE_BYTES
    needed = each * sum(file.tokens for file in files)
    free = shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"{above} has {free / 1e6:,.0f} MB free, but about {needed / 1e6:,.0f} are needed for "
            "shards; make room, or choose an --out on another disk"
        )


def main() -> None:
    """Read the options and take the tokens over."""
    options = parse_options(ReadyTokensOptions, description=__doc__)
    run_script(lambda: take_tokens(options))


if __name__ == "__main__":
    main()
