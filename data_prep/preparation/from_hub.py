"""Makes a data set from files of the Hub; shared by fineweb.py and tinystories.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.hub.download import Downloader
from data_prep.hub.listing import FOOTERS, Hub, HubSource, Listing, cached_listing, is_commit
from data_prep.hub.streaming import StreamedHubSource
from data_prep.hub.supply import Downloads, clean_downloads, download_lock
from data_prep.preparation.options import HubOptions
from data_prep.preparation.prepare import run_preparation
from data_prep.preparation.work_folder import finished_data_set


@dataclass(frozen=True)
class HubDataset:
    """The files of a repository that are used, and how their documents are read."""

    repository: str
    id: str
    """Name of the source in the manifest."""
    list_files: Callable[[Hub, str], Listing]
    """Asks the Hub for the files at a revision. They are used in the order of their names."""
    skip_blank: bool = False
    validation: tuple[str, ...] = ()
    stream: bool = False
    """Read parquet files over the network; only their footers are saved to disk."""


def make_from_hub(
    dataset: HubDataset, out: Path, options: HubOptions, downloader: Downloader | None = None
) -> None:
    """Download, prepare and delete file by file.

    For a finished data set at a pinned commit, the Hub is not asked.
    """
    folder = options.download_folder(out)
    finished = is_commit(options.revision) and _is_finished(dataset, out, options)
    if finished and not options.check:
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
        downloads = Downloads(
            hub, listing, _source(dataset, listing, folder, options), folder, options.keep_source
        )
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
    reading = {"skip_blank": dataset.skip_blank, "validation": dataset.validation}
    place = (dataset.id, listing.commit, own, listing.files)
    if dataset.stream:
        footers, repository = folder / FOOTERS, dataset.repository
        return StreamedHubSource(*place, **reading, footers=footers, repository=repository)
    return HubSource(*place, **reading, footers=folder / FOOTERS)


def _is_finished(dataset: HubDataset, out: Path, options: HubOptions) -> bool:
    """Whether the data set at `out` is complete and made from this source at this commit."""
    # Without asking the Hub: the files of a pinned commit never change.
    listing = Listing(dataset.repository, options.revision, ())
    source = _source(dataset, listing, Path(), options)
    found = finished_data_set(
        out,
        {**options.settings(), **source.settings()},
        options.chosen_tokenizer(),
        lambda found: (found.id, found.revision) == (source.id, source.revision),
    )
    return found is not None
