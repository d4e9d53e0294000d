"""Makes a data set from files of the Hub, for hf_dataset.py, fineweb.py and tinystories.py."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path

from data_prep.dataset.manifest import MANIFEST_NAME, read_manifest
from data_prep.hub.download import Downloader
from data_prep.hub.listing import FOOTERS, Hub, HubSource, Listing, cached_listing, is_commit
from data_prep.hub.streaming import StreamedHubSource
from data_prep.hub.supply import Downloads, clean_downloads, download_lock
from data_prep.hub.text_columns import check_first_record, chosen_text_key
from data_prep.preparation.options import HubOptions
from data_prep.preparation.prepare import run_preparation
from data_prep.preparation.work_folder import finished_data_set
from data_prep.sources.formats import format_of


@dataclass(frozen=True)
class HubDataset:
    """The files of a repository that are used, and how their documents are read."""

    repository: str
    id: str
    """Name of the source in the manifest."""
    list_files: Callable[[Hub, str], Listing]
    """Asks the Hub for the files at a revision. They are used in the order of their names."""
    skip_blank: bool = False
    validation: tuple[str, ...] | None = ()
    """Patterns of the validation files; None: as the listing says."""
    text_key: str | None = "text"
    """None: the usual field, or the only one that holds text."""
    separator: str = "<|endoftext|>"
    template: str | None = None
    stream: bool = False
    """Read parquet files over the network; only their footers are saved to disk."""


def make_from_hub(
    dataset: HubDataset, out: Path, options: HubOptions, downloader: Downloader | None = None
) -> None:
    """Download, prepare and delete file by file.

    For a finished data set at a pinned commit, the Hub is not asked; at a branch, it is asked for
    the names of the files only.
    """
    folder = options.download_folder(out)

    def is_complete(commit: str) -> bool:
        return not options.check and _is_finished(dataset, out, options, commit)

    if is_commit(options.revision) and is_complete(options.revision):
        clean_downloads(folder)
        return
    hub = Hub(dataset.repository, downloader or Downloader())
    with download_lock(folder):
        listing = cached_listing(
            folder,
            options.revision,
            dataset.id,
            lambda: dataset.list_files(hub, options.revision),
        )
        source = _source(dataset, listing, folder, options)
        downloads = Downloads(hub, listing, source, folder, options.keep_source)
        try:
            if not is_commit(options.revision) and is_complete(listing.commit):
                downloads.discard_planning_files()
                return
            _choose_text(downloads, dataset, tolerant=options.check or options.skip_bad > 0)
        except ValueError:
            if not options.work_folder(out).exists():
                downloads.discard_planning_files()
            raise
        downloads.fetch_for_planning(options.max_documents)
    if dataset.stream:
        run_preparation(downloads.source, out, options)
        if (out / MANIFEST_NAME).is_file():
            clean_downloads(folder)
    else:
        run_preparation(downloads.source, out, options, downloads=downloads)


def _source(dataset: HubDataset, listing: Listing, folder: Path, options: HubOptions) -> HubSource:
    part = options.chosen_part()
    own = folder if options.part is None else folder / f"part_{part.number}_of_{part.parts}"
    validation = dataset.validation
    if validation is None:
        validation = tuple(escape(name) for name in listing.validation)
    reading = {
        "text_key": dataset.text_key or "text",
        "separator": dataset.separator,
        "template": dataset.template,
        "skip_blank": dataset.skip_blank,
        "validation": validation,
    }
    place = (dataset.id, listing.commit, own, listing.files)
    if dataset.stream:
        footers, repository = folder / FOOTERS, dataset.repository
        return StreamedHubSource(*place, **reading, footers=footers, repository=repository)
    return HubSource(*place, **reading, footers=folder / FOOTERS)


def _choose_text(downloads: Downloads, dataset: HubDataset, tolerant: bool) -> None:
    """Decide which field is the text, and check it in the first file, before the others come.

    Raises: ValueError if the fields are not there, or the files cannot be streamed.
    """
    files = downloads.listing.files
    other = next((file.name for file in files if format_of(file.name) != ".parquet"), None)
    if dataset.stream and other is not None:
        raise ValueError(
            f"stream reads parquet files only, and {dataset.repository} has {other}; leave out "
            "--stream: each file is deleted when its text is in shards"
        )
    downloads.fetch_first_for_planning()
    if dataset.text_key is None and dataset.template is None:
        key = chosen_text_key(downloads.source, dataset.repository)
        downloads.source = replace(downloads.source, text_key=key)
    check_first_record(downloads.source, dataset.repository, tolerant)


def _is_finished(dataset: HubDataset, out: Path, options: HubOptions, commit: str) -> bool:
    """Whether the data set at `out` is complete and made from this source at this commit."""
    # Without asking the Hub: the files of a commit never change.
    listing = Listing(dataset.repository, commit, ())
    source = _source(dataset, listing, Path(), options)
    settings = {**options.settings(), **source.settings()}
    if (out / MANIFEST_NAME).is_file():
        known = read_manifest(out).settings
        # What is found out only from the files, which the name and the commit decide.
        later = {"text_key": dataset.text_key is None, "validation": dataset.validation is None}
        settings |= {name: known[name] for name in later if later[name] and name in known}
    found = finished_data_set(
        out,
        settings,
        options.chosen_tokenizer(),
        lambda found: (found.id, found.revision) == (source.id, source.revision),
    )
    return found is not None
