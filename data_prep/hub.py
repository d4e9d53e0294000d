"""Parquet files from the Hugging Face Hub: listed at one commit, downloaded, checked."""

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of httpx or requests, by its version)
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from data_prep.manifest import SourceFile
from data_prep.sources import FileSource
from storage.digest import file_sha256

log = logging.getLogger(__name__)

DOWNLOADS_AT_ONCE = 4
# Configurations of the data set that are samples; every other one is a dump below data/.
SAMPLES = {f"sample-{size}": f"sample/{size}" for size in ("10BT", "100BT", "350BT")}


def config_folder(config: str) -> str:
    """The folder of the repository that holds a configuration."""
    return SAMPLES.get(config) or ("data" if config == "default" else f"data/{config}")


@dataclass(frozen=True)
class HubFiles:
    """The files of one configuration at one commit."""

    repository: str
    config: str
    commit: str
    files: tuple[RepoFile, ...]

    def download(self, folder: Path, max_documents: int | None) -> FileSource:
        """Fetch the files (of `max_documents`, only as many as hold them) below `folder`.

        Files that are there already are kept. Raises: ValueError if one cannot be had whole.
        """
        if max_documents is None:
            with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as threads:
                fetched = list(threads.map(lambda file: self._fetch(file, folder), self.files))
        else:
            fetched = list(self._first_files(folder, max_documents))
        return FileSource(
            source_id(self.repository, self.config), self.commit, folder, tuple(fetched)
        )

    def _first_files(self, folder: Path, max_documents: int) -> Iterator[SourceFile]:
        documents = 0
        for file in self.files:
            if documents < max_documents:
                yield self._fetch(file, folder)
                documents += parquet.read_metadata(folder / file.path).num_rows

    def _fetch(self, file: RepoFile, folder: Path) -> SourceFile:
        with readable_errors(f"{self.repository}/{file.path}", self.commit):
            path = hf_hub_download(
                self.repository,
                file.path,
                repo_type="dataset",
                revision=self.commit,
                local_dir=folder,
            )
        digest = file_sha256(Path(path))
        wanted = file.lfs.sha256 if file.lfs else digest
        if digest != wanted:
            Path(path).unlink()
            raise ValueError(
                f"{path} arrived with sha256 {digest}, the Hub says {wanted}: it was damaged on "
                "the way and is deleted; run it again"
            )
        return SourceFile(file.path, file.size, digest)


def source_id(repository: str, config: str) -> str:
    """How the manifest names the source."""
    return f"{repository}/{config}"


def is_commit(revision: str) -> bool:
    """Whether the revision is pinned, so that it means the same files for ever."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def list_files(repository: str, config: str, revision: str) -> HubFiles:
    """The parquet files of a configuration, sorted by name.

    Raises: ValueError if the Hub, the repository, the revision or the configuration is not there.
    """
    api = HfApi()
    with readable_errors(repository, revision):
        commit = api.dataset_info(repository, revision=revision).sha or revision
        try:
            found = _parquet_files(api, repository, commit, config_folder(config))
        except EntryNotFoundError:
            found = []
        if not found:
            known = ", ".join(_configs(api, repository, commit))
            raise ValueError(f"config={config} is not one of {repository}, which has {known}")
    log.info("%s %s at %s: %d files", repository, config, commit, len(found))
    return HubFiles(repository, config, commit, tuple(found))


def _parquet_files(api: HfApi, repository: str, commit: str, folder: str) -> list[RepoFile]:
    tree = api.list_repo_tree(
        repository, folder, recursive=True, revision=commit, repo_type="dataset"
    )
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return sorted(
        (file for file in files if file.path.endswith(".parquet")), key=lambda file: file.path
    )


def _configs(api: HfApi, repository: str, commit: str) -> list[str]:
    dumps = api.list_repo_tree(repository, "data", revision=commit, repo_type="dataset")
    names = [entry.path.removeprefix("data/") for entry in dumps if not isinstance(entry, RepoFile)]
    return [*SAMPLES, "default", *sorted(names)]


@contextmanager
def readable_errors(what: str, revision: str) -> Iterator[None]:
    """Turn the Hub's errors into one sentence with a cure. Raises: ValueError."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise ValueError(f"revision={revision} of {what} is not on the Hub; try main") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{what} is not on the Hub or needs a login (`hf auth login`); check its name"
        ) from error
    except (HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{what} cannot be had from the Hub ({reason}); check the network and run it again, "
            "or name a folder of the same parquet files with --source"
        ) from error
