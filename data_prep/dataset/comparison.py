"""Compares files of a data set with its manifest, several at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data_prep.dataset.shards import DataSet
from storage.digest import file_sha256


def differing_files(data: DataSet, digests: Sequence[tuple[str, str]], threads: int) -> list[str]:
    """A sentence for each file, given as its name and sha256 by the manifest, that differs."""
    paths = [data.folder / name for name, _ in digests]
    sizes = [path.stat().st_size for path in paths]
    found = []
    with (
        tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="bytes") as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        hashed = pool.map(file_sha256, paths)
        for path, (_, expected), size, digest in zip(paths, digests, sizes, hashed, strict=True):
            bar.update(size)
            if digest != expected:
                found.append(f"{path} has sha256 {digest}, the manifest says {expected}")
    return found
