"""From options to a data set of files on the Hub: what every script of a Hub source does alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.hub.download import Downloader
from data_prep.hub.listing import FOOTERS, Hub, HubSource, Listing, is_commit, remembered_listing
from data_prep.hub.streaming import StreamSource
from data_prep.hub.supply import Downloads, clean_downloads, download_lock
from data_prep.preparation.options import HubOptions
from data_prep.preparation.prepare import finished_data_set, make


@dataclass(frozen=True)
class HubDataset:
    """What of a repository is wanted, and how its documents are read."""

    repository: str
    id: str
    """How the manifest names the source."""
    list_files: Callable[[Hub, str], Listing]
    """Asks the Hub for the files at a revision; they are planned in the order of their names."""
    skip_blank: bool = False
    validation: tuple[str, ...] = ()
    stream: bool = False
    """Read parquet files over the network; nothing but their footers comes to disk."""


def make_from_hub(
    wanted: HubDataset, out: Path, options: HubOptions, downloader: Downloader | None = None
) -> None:
    """Download, prepare and delete file by file; a finished data set needs no word to the Hub."""
    folder = options.download_folder(out)
    if is_commit(options.revision) and _is_finished(wanted, out, options):
        clean_downloads(folder)
        return
    hub = Hub(wanted.repository, downloader or Downloader())
    with download_lock(folder):
        listing = remembered_listing(
            folder,
            options.revision,
            wanted.id,
            lambda: wanted.list_files(hub, options.revision),
        )
        downloads = Downloads(
            hub, listing, _source(wanted, listing, folder, options), folder, options.keep_source
        )
        downloads.describe(options.max_documents)
    if wanted.stream:
        make(downloads.source, out, options)
        if (out / MANIFEST_NAME).is_file():
            clean_downloads(folder)
    else:
        make(downloads.source, out, options, downloads)


def _source(wanted: HubDataset, listing: Listing, folder: Path, options: HubOptions) -> HubSource:
    part = options.chosen_part()
    own = folder if options.part is None else folder / f"part_{part.number}_of_{part.parts}"
    reading = {"skip_blank": wanted.skip_blank, "validation": wanted.validation}
    place = (wanted.id, listing.commit, own, listing.files)
    if wanted.stream:
        footers, repository = folder / FOOTERS, wanted.repository
        return StreamSource(*place, **reading, footers=footers, repository=repository)
    return HubSource(*place, **reading, footers=folder / FOOTERS)


def _is_finished(wanted: HubDataset, out: Path, options: HubOptions) -> bool:
    """A pinned commit never changes, so the manifest tells whether it was made of the same."""
    listing = Listing(wanted.repository, options.revision, ())
    source = _source(wanted, listing, Path(), options)
    found = finished_data_set(
        out,
        {**options.settings(), **source.settings()},
        options.chosen_tokenizer(),
        lambda found: (found.id, found.revision) == (source.id, source.revision),
    )
    return found is not None
