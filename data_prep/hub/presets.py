"""Data sets of the Hub by a short name: where their text is, and under which licence."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_prep.hub.chosen_files import FileChoice, list_chosen
from data_prep.hub.listing import Hub, Listing


@dataclass(frozen=True)
class HubPreset:
    """One data set: its repository, licence, and how its files are found."""

    repository: str
    licence: str = ""
    about: str = ""
    config: str | None = None
    """The configuration if none is asked for."""
    revision: str = "main"
    text_key: str | None = "text"
    """None: the usual field, or the only one with text."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Of configurations whose folders are known, so that no README is read. {} stands for any
    other name."""

    def list_files(self, hub: Hub, revision: str, choice: FileChoice) -> Listing:
        """The files of a configuration. Raises: ValueError naming the known ones."""
        config = choice.config or ""
        folder = self.folders.get(config) or self.folders.get("{}", "").replace("{}", config)
        if choice.files or not folder:
            return list_chosen(hub, revision, choice)
        if choice.split != "train" or choice.val_split is not None:
            raise ValueError(
                f"split={choice.split} and val_split={choice.val_split}, but {self.repository} has "
                "the split train only; leave them out"
            )
        listing = hub.list_files(folder, lambda name: name.endswith(".parquet"), revision)
        if not listing.files:
            known = [name for name in self.folders if name != "{}"]
            if "{}" in self.folders:
                known += sorted(hub.folders(listing.commit, self.folders["{}"].split("/")[0]))
            raise ValueError(
                f"config={config} is not one of {hub.repository}, which has {', '.join(known)}"
            )
        return listing


# Samples, and everything or one dump of Common Crawl.
_OF_FINEWEB = {
    **{f"sample-{size}": f"sample/{size}" for size in ("10BT", "100BT", "350BT")},
    "default": "data",
    "{}": "data/{}",
}
_DCLM = (
    "filtered/OH_eli5_vs_rw_v2_bigram_200k_train/"
    "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train/processed_data"
)
HUB_PRESETS = {
    "fineweb-edu": HubPreset(
        "HuggingFaceFW/fineweb-edu",
        "ODC-By 1.0",
        "educational web pages in English",
        config="sample-10BT",
        revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
        folders=_OF_FINEWEB,
    ),
    "fineweb": HubPreset(
        "HuggingFaceFW/fineweb",
        "ODC-By 1.0",
        "web pages in English",
        config="sample-10BT",
        folders=_OF_FINEWEB,
    ),
    "dclm": HubPreset(
        "mlfoundations/dclm-baseline-1.0-parquet",
        "CC-BY-4.0",
        "filtered web pages in English; a hundredth",
        config="hundredth",
        folders={
            "hundredth": f"{_DCLM}/global-shard_01_of_10/local-shard_0_of_10",
            "tenth": f"{_DCLM}/global-shard_01_of_10",
            "default": _DCLM,
        },
    ),
    "dclm-edu": HubPreset("HuggingFaceTB/dclm-edu", "CC-BY-4.0", "educational pages of DCLM"),
    "climbmix": HubPreset(
        "karpathy/climbmix-400b-shuffle",
        # That of nvidia/Nemotron-ClimbMix, which is in tokens; this is its text.
        "CC-BY-NC-4.0, not for commercial use",
        "NVIDIA's ClimbMix, shuffled",
    ),
}
