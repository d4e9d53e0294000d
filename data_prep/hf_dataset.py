"""Make a data set from any repository of the Hugging Face Hub with text.

    python data_prep/hf_dataset.py wikimedia/wikipedia --config 20231101.simple
    python data_prep/hf_dataset.py openai/gsm8k --config main --template "{question}\\n{answer}"
    python data_prep/hf_dataset.py fineweb

It reads parquet, JSON-lines and text files. A branch is pinned to its commit, and the sha256 of
every file is checked and recorded. Output: a data set folder for `train/main.py --data`. If it is
interrupted, the same command continues where it stopped, at the same commit.

Short names, each with the licence of its text:

"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data_prep.hub.chosen_files import FileChoice
from data_prep.hub.download import Downloader
from data_prep.hub.presets import HUB_PRESETS, HubPreset
from data_prep.preparation.console import run_script
from data_prep.preparation.from_hub import HubDataset, make_from_hub
from data_prep.preparation.options import HubOptions
from data_prep.preparation.split import SplitChoice
from data_prep.sources.splitting import typed_separator
from data_prep.sources.text_fields import typed_template
from storage.script_options import parse_options

_PLACES = re.compile(r"^(https://huggingface\.co/datasets/|hf://datasets/)|/+$")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class HfDatasetOptions(HubOptions):
    """Tokenize a data set of the Hugging Face Hub into one with checksums."""

    repository: tyro.conf.Positional[str] = ""
    """OWNER/NAME on the Hub, or a short name."""
    config: str | None = None
    """One of its configurations, as its page names them. Default: the only or the default one."""
    repository_split: Annotated[str, tyro.conf.arg(name="split")] = "train"
    """The split of the repository that is read."""
    val_split: str | None = None
    """A split of the repository that is validation, such as validation. Default: documents of
    --split that --validation chooses."""
    split: Annotated[Literal["hash", "first"], tyro.conf.arg(name="validation")] = "hash"
    """How validation documents are chosen.
    hash: by a hash of the text, so that all copies of a document are on one side.
    first: the first documents."""
    val_fraction: tyro.conf.Suppress[float] = 0.1
    files: tuple[str, ...] = ()
    """Patterns of file names, such as 'data/en/*.jsonl.gz', in place of --config and --split."""
    text_key: str | None = None
    """Column or key that holds the text; a.b is b inside a. Default: text, or the only one with
    text."""
    template: str | None = None
    """Several of them as the text, such as "{question}\\n{answer}". All must hold text, not numbers
    or null; {{ and }} are braces."""
    separator: str = "<|endoftext|>"
    """Text between the documents of a .txt file; "\\n\\n" is a blank line."""
    revision: str = ""
    """Commit, tag or branch. Default: the commit of a short name, if it has one, or main.
    refs/convert/parquet is the Hub's own conversion of many data sets."""
    out: Path | None = None
    """Folder of the data set; must not exist yet. Default: data/NAME. Downloads go to OUT.source
    beside it."""
    stream: bool = False
    """Read parquet files over the network without saving them.
    The shards are the same, but no sha256 checks what is read."""

    def preset(self) -> HubPreset:
        """The data set that is named. Raises: ValueError if it is none."""
        if self.repository in HUB_PRESETS:
            return HUB_PRESETS[self.repository]
        repository = _PLACES.sub("", self.repository)
        if not _REPOSITORY.fullmatch(repository):
            raise ValueError(
                f"repository={self.repository or 'none'} is neither OWNER/NAME nor one of "
                f"{', '.join(HUB_PRESETS)}; give one as the first word"
            )
        return HubPreset(repository, text_key=None)

    def chosen_out(self) -> Path:
        """The folder of the data set."""
        words = [self.preset().repository.split("/")[1], *([self.config] if self.config else [])]
        return self.out or Path("data", re.sub(r"\W+", "_", "_".join(words)).strip("_").lower())

    def choice(self, preset: HubPreset) -> FileChoice:
        """The files that are read. Raises: ValueError for options that contradict each other."""
        named = {"config": self.config, "split": self.repository_split, "val_split": self.val_split}
        if self.files and named != {"config": None, "split": "train", "val_split": None}:
            given = ", ".join(f"{name}={value}" for name, value in named.items() if value)
            raise ValueError(f"files={' '.join(self.files)} and {given}; give --files alone")
        for name in ("val_tokens", "max_documents"):
            if self.val_split is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning with val_split={self.val_split}, "
                    "whose documents all are validation; leave out --val-split"
                )
        if self.stream and self.keep_source:
            raise ValueError("stream and keep_source; files to keep are read without --stream")
        if self.files:
            return FileChoice(files=self.files)
        return FileChoice(self.config or preset.config, self.repository_split, self.val_split)


def prepare_hf_dataset(options: HfDatasetOptions, downloader: Downloader | None = None) -> None:
    """Prepare the files that the options name."""
    preset = options.preset()
    choice = options.choice(preset)
    dataset = HubDataset(
        preset.repository,
        choice.name(preset.repository),
        lambda hub, revision: preset.list_files(hub, revision, choice),
        validation=None,
        text_key=preset.text_key if options.text_key is None else options.text_key,
        separator=typed_separator(options.separator),
        template=typed_template(options.template, options.text_key),
        stream=options.stream,
    )
    split: SplitChoice = options.split if options.val_split is None else "given"
    options = replace(options, split=split, revision=options.revision or preset.revision)
    make_from_hub(dataset, options.chosen_out(), options, downloader)


def main() -> None:
    """Read the options and prepare."""
    listed = "\n".join(
        f"    {name:12} {preset.about}: {preset.repository}, {preset.licence}"
        for name, preset in HUB_PRESETS.items()
    )
    options = parse_options(HfDatasetOptions, description=f"{__doc__}{listed}\n")
    run_script(lambda: prepare_hf_dataset(options))


if __name__ == "__main__":
    main()
